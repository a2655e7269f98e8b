"""Runs the operator's commands (backend extension) in a thread of its own, one after the other, so that nothing waits for them.

    wanted hooks - begun hooks  -> their ``begin`` commands          begun hooks - wanted hooks  -> their ``end`` commands

No shell; an own process group, killed as a whole after ``TIMEOUT_S``; of what a command prints ``OUTPUT_BYTES`` are kept. A command
that fails is said and tried again with back-off, each on its own. What has begun is remembered by this process alone: a restarted
agent begins everything again, as flanneld does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping

from flanpy.agent.logs import event
from flanpy.core.reconcile import Retries
from flanpy.errors import PlatformError
from flanpy.model import Command, Hook

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
OUTPUT_BYTES = 64 * 1024
_IDLE_S = 3600.0


def run_command(name: str, command: Command, timeout_s: float = TIMEOUT_S) -> str:
    """Run to the end; returns what it has printed on either stream, stripped. Raises PlatformError that quotes it."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command.words,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **dict(command.environment)},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise PlatformError(f"{name}: cannot run {command.words[0]!r}: {error}") from error
        try:
            process.communicate(command.stdin.encode(errors="surrogateescape"), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise PlatformError(f"{name}: {command.words[0]!r} was ended after {timeout_s:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        said = output.read(OUTPUT_BYTES).decode(errors="replace").strip()
    if process.returncode:
        raise PlatformError(
            f"{name}: {command.words[0]!r} ended with status {process.returncode}: {said[:300] or 'it said nothing'}"
        )
    return said


class HookRunner:
    """From the first ``want`` to ``close``; the thread starts when there is something to do."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._wanted: frozenset[Hook] = frozenset()
        self._begun: frozenset[Hook] = frozenset()
        self._problems: dict[Hook, str] = {}
        self._news = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def want(self, hooks: frozenset[Hook]) -> tuple[list[str], list[str]]:
        """These are to have begun, and no others; returns what is wrong with essential ones (not done yet), and with the others."""
        with self._lock:
            self._wanted, self._news = hooks, False
            self._problems = {hook: text for hook, text in self._problems.items() if hook in hooks ^ self._begun}
            if self._thread is None and hooks:
                self._thread = threading.Thread(target=self._run, name="hooks", daemon=True)
                self._thread.start()
            self._lock.notify()
            waiting = {hook: f"{hook.name}: still runs" for hook in hooks - self._begun if hook.essential}
            wrong = sorted({**waiting, **self._problems}.items(), key=lambda item: item[1])
            essential = [text for hook, text in wrong if hook.essential]
            return essential, [text for hook, text in wrong if not hook.essential]

    def news(self) -> bool:
        """Whether ``want`` would say something else than the last time."""
        with self._lock:
            return self._news

    def close(self) -> None:
        """Begin nothing more; a command that runs is left to its own end."""
        with self._lock:
            self._closing = True
            self._lock.notify()

    def _run(self) -> None:
        retries: Retries[Hook] = Retries()
        while (hook := self._next(retries)) is not None:
            problem = self._turn(hook)
            now_s = time.monotonic()
            with self._lock:
                retries = retries.keep(self._wanted ^ self._begun)
                if problem is not None:
                    retries = retries.failed([hook], now_s, random.random())
                self._note(hook, problem)

    def _next(self, retries: Retries[Hook]) -> Hook | None:
        """Wait for the next hook that is due: those that end first, then the essential ones; None when closing."""
        with self._lock:
            while not self._closing:
                now_s = time.monotonic()
                due = retries.due(self._wanted ^ self._begun, now_s)
                if due:
                    return min(due, key=lambda hook: (hook in self._wanted, not hook.essential, hook.name))
                pending = retries.keep(self._wanted ^ self._begun).deadline_s()
                self._lock.wait(_IDLE_S if pending is None else max(0.0, pending - now_s))
        return None

    def _turn(self, hook: Hook) -> str | None:
        """Begin or end one hook; returns what went wrong."""
        begins = hook in self._wanted
        command = hook.begin if begins else hook.end
        try:
            said = run_command(hook.name, command) if command is not None else ""
        except PlatformError as error:
            log.error("%s", error, extra=event("command_failed", name=hook.name, problem=str(error)))
            return str(error)
        if command is not None:
            log.info("%s: %s ran: %s", hook.name, command.words[0], said, extra=event("command_ran", name=hook.name, output=said))
        with self._lock:
            self._begun = self._begun | {hook} if begins else self._begun - {hook}
        return None

    def _note(self, hook: Hook, problem: str | None) -> None:
        before: Mapping[Hook, str] = dict(self._problems)
        self._problems = {each: text for each, text in before.items() if each in self._wanted ^ self._begun and each != hook}
        if problem is not None:
            self._problems[hook] = problem
        self._news = self._news or self._problems != before or hook.essential
