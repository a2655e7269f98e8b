"""A sandbox: namespaces of its own (network, mount, PID, and user where not started by root), held by one process.

That process is PID 1 of the PID namespace (``init.py``). When it ends, for whatever reason, the kernel removes everything that
was in it; so nothing here needs to clean up, and nothing outside is ever touched. A sandbox ends with its creator, also at
kill -9 (the end of a pipe), unless ``detach`` was called; then it lives on until ``close`` or until somebody kills PID 1.

A *place* is the name of a network namespace inside (``/run/netns/NAME`` of the sandbox's private /run), or None for the
sandbox's own. Commands get there by nsenter, which keeps a process of its own as parent outside: signals meant for the command
are sent to the command, exit statuses and deaths by signal come through.
"""

from __future__ import annotations

import ctypes
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from flanpy.errors import LabError
from flanpy.lab.process import Entered, environment, has_ended, require_tool

START_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 30.0
CLONE_NEWNET = 0x40000000
USER_NAMESPACE_CURE = (
    "without root a lab needs unprivileged user namespaces: run it as root, or allow them with "
    "`sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000` "
    "(and `kernel.apparmor_restrict_unprivileged_userns=0` where that exists)"
)


class Sandbox:
    """A living sandbox, made by ``create`` or found again by ``adopt``; a context manager that ends it."""

    def __init__(self, pid: int, *, lifeline: int | None = None, own_user_namespace: bool) -> None:
        self.pid = pid
        self._lifeline = lifeline
        self._own_user_namespace = own_user_namespace
        try:
            self._pidfd: int | None = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise LabError(f"process {pid}: the holder of the sandbox has ended") from error

    @classmethod
    def create(cls, *, pass_fds: Sequence[int] = ()) -> Self:
        """Start a new sandbox. ``pass_fds`` stay open in PID 1 for as long as it lives (a lock held by its life)."""
        require_tool("nsenter", "util-linux")
        report_read, report_write = os.pipe()
        life_read, life_write = os.pipe()
        inherited = (report_write, life_read, *pass_fds)
        argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("init.py")), str(report_write), str(life_read)]
        try:
            launcher = subprocess.Popen(argv, pass_fds=inherited, stdin=subprocess.DEVNULL, cwd="/")
        finally:
            os.close(report_write)
            os.close(life_read)
        with os.fdopen(report_read, encoding="utf-8") as report:
            pid = _await_ready(report)
        launcher.wait()
        return cls(pid, lifeline=life_write, own_user_namespace=os.geteuid() != 0)

    @classmethod
    def adopt(cls, pid: int) -> Self:
        """The living sandbox that is held by process ``pid``; LabError when that process has ended."""
        return cls(pid, own_user_namespace=os.geteuid() != 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill PID 1 and wait for its end: the kernel does the rest. Safe to call twice."""
        if self._pidfd is None:
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.wait_gone()
        os.close(self._pidfd)
        self._pidfd = None
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def detach(self) -> None:
        """Let the sandbox live on when this process ends."""
        if self._lifeline is not None:
            os.write(self._lifeline, b"d")
            os.close(self._lifeline)
            self._lifeline = None

    def wait_gone(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until PID 1, and with it every process of the sandbox, has ended; LabError at the time limit."""
        if self._pidfd is not None and not select.select([self._pidfd], [], [], timeout_s)[0]:
            raise LabError(f"process {self.pid}: the holder of the sandbox still lives {timeout_s:g} s after it was killed")

    @property
    def alive(self) -> bool:
        """Whether the sandbox still exists."""
        return self._pidfd is not None and not select.select([self._pidfd], [], [], 0)[0]

    def path(self, inside: str | Path) -> Path:
        """The path under which a file of the sandbox can be opened from outside."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def places(self) -> tuple[str, ...]:
        """Names of the network namespaces inside, sorted."""
        directory = self.path("/run/netns")
        return tuple(sorted(entry.name for entry in directory.iterdir())) if directory.is_dir() else ()

    def _network(self, place: str | None) -> Path:
        network = Path(f"/proc/{self.pid}/ns/net") if place is None else self.path(f"/run/netns/{place}")
        if not network.exists():
            raise LabError(f"{place}: no such host or pod in this lab (there are: {', '.join(self.places()) or 'none'})")
        return network

    def command(self, place: str | None, argv: Sequence[str], cwd: str | Path | None = None) -> list[str]:
        """The nsenter command line that runs ``argv`` at ``place``; for callers that start processes themselves."""
        user = ["--user", "--preserve-credentials"] if self._own_user_namespace else []
        enter = ["nsenter", f"--target={self.pid}", *user, "--mount", "--pid", f"--net={self._network(place)}", "--"]
        return [*enter, *(["env", "-C", str(cwd)] if cwd is not None else []), *argv]

    def popen(
        self,
        place: str | None,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.PIPE,
    ) -> Entered:
        """Start a command at a place; ``env`` is added to the caller's environment. Streams are text."""
        self._require_alive()
        return Entered(
            self.command(place, argv, cwd),
            env=environment(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            encoding="utf-8",
            errors="replace",
            cwd="/",
        )

    def run(
        self,
        place: str | None,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command at a place to its end; LabError when it fails (unless ``check`` is False) or takes too long."""
        process = self.popen(place, argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE)
        try:
            out, err = process.communicate(input, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{_what(place, argv)}: not done after {timeout_s:g} s") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if check and process.returncode != 0:
            self._require_alive()
            raise LabError(f"{_what(place, argv)}: exit status {process.returncode}: {(err or out).strip()}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def script(self, text: str) -> str:
        """Run a shell script in the sandbox's own network namespace, stopping at its first failure; returns its output."""
        return self.run(None, ["sh", "-eu", "-c", text]).stdout

    def start(self, place: str | None, argv: Sequence[str], log: str | Path, env: Mapping[str, str] | None = None) -> int:
        """Start a daemon at a place, child of PID 1, with its output appended to ``log``; returns its pid inside.

        It lives as long as the sandbox does, whatever becomes of the caller.
        """
        line = f"exec </dev/null >>{shlex.quote(str(log))} 2>&1; exec setsid {shlex.join(argv)}"
        started = self.run(place, ["sh", "-c", f"( {line} ) & echo $!"], env=env)
        return int(started.stdout)

    def process_alive(self, inner_pid: int) -> bool:
        """Whether a process (by its pid inside) lives; a zombie does not."""
        return not has_ended(inner_pid, self.path("/proc"))

    def signal(self, inner_pid: int, number: int) -> None:
        """Send a signal to a process by its pid inside."""
        self.run(None, ["sh", "-c", f"kill -{int(number)} {inner_pid}"])

    @contextmanager
    def enter(self, place: str | None) -> Iterator[None]:
        """Move the calling thread into a place's network namespace, for sockets and scapy; root only."""
        if self._own_user_namespace:
            raise LabError("entering a namespace in-process needs root (a thread cannot join a user namespace)")
        with Path("/proc/thread-self/ns/net").open("rb") as before, self._network(place).open("rb") as wanted:
            _setns(wanted.fileno())
            try:
                yield
            finally:
                _setns(before.fileno())

    def _require_alive(self) -> None:
        if not self.alive:
            raise LabError(f"process {self.pid}: the holder of the lab has ended, and the lab with it")


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise LabError(f"setns of thread {threading.get_native_id()}: {os.strerror(number)}")


def _what(place: str | None, argv: Sequence[str]) -> str:
    text = shlex.join(argv)
    return f"{place or 'lab'}: {text if len(text) <= 200 else text[:197] + '...'}"


def _await_ready(report: IO[str]) -> int:
    """Read the two lines of ``init.py`` (pid and ready, in any order) or its error."""
    pid: int | None = None
    ready = False
    for line in report:
        word, _, rest = line.strip().partition(" ")
        if word == "error":
            cure = (
                USER_NAMESPACE_CURE if os.geteuid() != 0 else "run the lab as root with CAP_SYS_ADMIN (not in a plain container)"
            )
            raise LabError(f"no sandbox: {rest}; {cure}")
        pid = int(rest) if word == "pid" else pid
        ready = ready or word == "ready"
    if pid is None or not ready:
        raise LabError("no sandbox: its first process ended before it was ready")
    return pid
