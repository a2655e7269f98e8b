"""Which problems are worth a line in the log again: a new one at once, one that stays after growing waits. A frozen value. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

AGAIN_S = (30.0, 3600.0)
"""Wait before an unchanged problem is said again: doubling from the first to the second."""


@dataclass(frozen=True, slots=True)
class Said:
    """Each problem that stands, with when it is due again and the wait after that; what has gone is forgotten."""

    standing: Mapping[str, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))

    def say(self, problems: Iterable[str], now_s: float) -> tuple[Said, tuple[str, ...]]:
        """These problems stand now: the new state, and those that are due."""
        standing: dict[str, tuple[float, float]] = {}
        due: list[str] = []
        for problem in dict.fromkeys(problems):
            at_s, wait_s = self.standing.get(problem, (now_s, AGAIN_S[0]))
            if at_s <= now_s:
                due.append(problem)
                at_s, wait_s = now_s + wait_s, min(2 * wait_s, AGAIN_S[1])
            standing[problem] = (at_s, wait_s)
        return Said(MappingProxyType(standing)), tuple(due)
