"""Changed options while the agent runs: reads options file and environment again, applies what may change, says what needs a restart.

Parts of the agent register what they can apply without a packet being lost (``Flag.live`` in ``config.agent_flags`` is the same list, for
the reference). Called by the loop's thread alone. A file that is wrong changes nothing at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from flanpy.agent.logs import event
from flanpy.agent.notify import notify
from flanpy.config.agent_flags import AGENT_FLAGS
from flanpy.config.options import AgentOptions
from flanpy.errors import FlanpyError, UsageError

log = logging.getLogger(__name__)

Apply = Callable[[AgentOptions], None]
"""Takes the new options; raises FlanpyError, having changed nothing, when they cannot be applied."""


@dataclass(frozen=True, slots=True)
class _Part:
    keys: frozenset[str]
    apply: Apply


class Reload:
    """``options`` are those in force; ``load`` reads them anew (raising UsageError)."""

    def __init__(self, options: AgentOptions, load: Callable[[], AgentOptions]) -> None:
        self.options = options
        self._as_read = options
        self._load = load
        self._parts: list[_Part] = []

    def begin_with(self, options: AgentOptions) -> None:
        """What the start made of the options (the endpoint of an etcd of our own) is in force, and no change of the operator's."""
        self.options = options

    def add(self, keys: tuple[str, ...], apply: Apply) -> None:
        """Register what some part of the agent applies: the keys of the options, and how."""
        self._parts.append(_Part(frozenset(keys), apply))

    @property
    def live(self) -> frozenset[str]:
        """Keys of the options that some part applies."""
        return frozenset[str]().union(*(part.keys for part in self._parts))

    def describe(self) -> dict[str, Any]:
        """The options in force by their flags, without secrets."""
        secret = {flag.key for flag in AGENT_FLAGS if flag.secret}
        values = {field.name: getattr(self.options, field.name) for field in fields(AgentOptions) if field.name not in secret}
        return {"ok": True, "options": {key.replace("_", "-"): _shown(value) for key, value in values.items()}}

    def reload(self, ready: bool) -> dict[str, Any]:
        """Do it, tell the service manager if it takes us for ready, and return the answer for the operator."""
        if ready:
            notify(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))
        try:
            answer = self._reload()
        except UsageError as error:
            problems = str(error).splitlines()
            log.error(
                "not reloaded, nothing is changed: %s", "; ".join(problems), extra=event("reload_refused", reason=str(error))
            )
            answer = {"ok": True, "refused": True, "applied": [], "restart": [], "problems": problems}
        if ready:
            notify(READY="1")
        return answer

    def _reload(self) -> dict[str, Any]:
        new = self._load()
        names = [field.name for field in fields(AgentOptions)]
        changed = frozenset(key for key in names if getattr(new, key) != getattr(self._as_read, key))
        live, problems = changed & self.live, []
        wanted = replace(self.options, **{key: getattr(new, key) for key in live})
        failed: set[str] = set()
        for part in self._parts:
            if part.keys & live:
                try:
                    part.apply(wanted)
                except FlanpyError as error:
                    failed |= part.keys & live
                    problems.append(str(error))
        applied = sorted(live - failed)
        self.options = replace(self.options, **{key: getattr(new, key) for key in applied})
        self._as_read = replace(self._as_read, **{key: getattr(new, key) for key in applied})
        answer = {"applied": _flags(applied), "restart": _flags(sorted(changed - self.live)), "problems": problems}
        _say(answer)
        return {"ok": True, "refused": False, **answer}


def _shown(value: object) -> object:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _flags(keys: list[str]) -> list[str]:
    return [key.replace("_", "-") for key in keys]


def _say(answer: dict[str, list[str]]) -> None:
    applied, restart = ", ".join(answer["applied"]) or "nothing has changed", ", ".join(answer["restart"])
    log.info("reloaded: %s%s", applied, f"; needs a restart: {restart}" if restart else "", extra=event("reloaded", **answer))
    for problem in answer["problems"]:
        log.error("not applied: %s", problem, extra=event("reload_failed", reason=problem))
