"""Which problems are worth a line in the log: a new one at once, one that stays after growing waits, of a flood a few. Pure values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from flanpy.model import Refusal

AGAIN_S = (30.0, 3600.0)
"""Wait before an unchanged problem is said again: doubling from the first to the second."""

LINES_MAX, LINES_PER_S = 20.0, 0.5
"""A thousand bad leases at once are said in so many lines; then lines come back at this rate."""
TEXT_MAX = 400
"""Characters of one problem that are logged or reported: etcd takes keys of more than a megabyte."""


def shortened(text: str, most: int = TEXT_MAX) -> str:
    """The text, its end left off where it is too long to be read anyway."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def counted(number: int, thing: str) -> str:
    """``1 peer``, ``2 peers``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many lines may be logged; what was held back is summed up in one line as soon as one may."""

    lines: float = LINES_MAX
    at_s: float = 0.0
    held_back: int = 0

    def spend(self, wanted: int, now_s: float) -> tuple[Allowance, int, int]:
        """The new state, how many of the ``wanted`` lines to say, and the number of others that one more line is to tell (0: none)."""
        lines = min(LINES_MAX, self.lines + max(0.0, now_s - self.at_s) * LINES_PER_S)
        whole = int(lines)
        if not self.held_back and wanted <= whole:
            return Allowance(lines - wanted, now_s), wanted, 0
        if whole == 0:
            return Allowance(lines, now_s, self.held_back + wanted), 0, 0
        say = min(wanted, whole - 1)
        return Allowance(lines - say - 1, now_s), say, self.held_back + wanted - say


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


@dataclass(frozen=True, slots=True)
class Refused:
    """Why each refused key is refused: said once for each reason, not at every pass."""

    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def say(self, refusals: Iterable[Refusal]) -> tuple[Refused, tuple[tuple[str, str], ...]]:
        """These keys are refused now: the new state, and key and reason, shortened, of those that are new or have another reason."""
        now = {refusal.key: refusal.reason for refusal in refusals}
        news = tuple((shortened(key), shortened(reason)) for key, reason in now.items() if self.reasons.get(key) != reason)
        return Refused(MappingProxyType(now)), news
