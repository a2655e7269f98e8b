"""Desired against actual: the operations to do, and when to try again what has failed; no I/O, no clock.

Level-triggered: ``diff`` compares whole sets, so that start-up, a repair and a change are the same code. What failed stays in
the difference; ``Retries`` keeps the back-off of each item on its own, so that one bad peer never delays another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

T = TypeVar("T")

RETRY_FIRST_S = 0.5
RETRY_LONGEST_S = 30.0


@dataclass(frozen=True, slots=True)
class Difference(Generic[T]):
    """What makes the actual set the desired one; in which order is for who applies it (routes: add first, so that no gap opens)."""

    add: frozenset[T] = frozenset()
    remove: frozenset[T] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.add or self.remove)


def diff(desired: frozenset[T], actual: frozenset[T]) -> Difference[T]:
    """The operations that turn ``actual`` into ``desired``."""
    return Difference(desired - actual, actual - desired)


def apply(difference: Difference[T], actual: frozenset[T]) -> frozenset[T]:
    """What ``actual`` becomes when every operation succeeds."""
    return (actual - difference.remove) | difference.add


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often something has failed in a row, and when to try it again (monotonic seconds)."""

    attempt: int = 0
    not_before_s: float = 0.0

    def is_due(self, now_s: float) -> bool:
        """Whether the next attempt may be made."""
        return now_s >= self.not_before_s


def after_failure(
    backoff: Backoff, now_s: float, jitter: float, first_s: float = RETRY_FIRST_S, longest_s: float = RETRY_LONGEST_S
) -> Backoff:
    """One failure more: the delay doubles up to ``longest_s``; ``jitter`` (0 to 1) spreads it over its upper half."""
    delay_s = min(longest_s, first_s * 2 ** min(backoff.attempt, 32))
    return Backoff(backoff.attempt + 1, now_s + delay_s * (0.5 + 0.5 * jitter))


@dataclass(frozen=True, slots=True)
class Retries(Generic[T]):
    """The back-off of every item that has failed; an item that is not in it is due at once."""

    items: Mapping[T, Backoff] = field(default_factory=lambda: MappingProxyType({}))

    def due(self, wanted: Iterable[T], now_s: float) -> frozenset[T]:
        """Those of ``wanted`` that may be tried now."""
        return frozenset(item for item in wanted if item not in self.items or self.items[item].is_due(now_s))

    def failed(self, failed: Iterable[T], now_s: float, jitter: float) -> Retries[T]:
        """These items have failed (again)."""
        later = {item: after_failure(self.items.get(item, Backoff()), now_s, jitter) for item in failed}
        return Retries(MappingProxyType({**self.items, **later}))

    def keep(self, wanted: Collection[T]) -> Retries[T]:
        """Forget what is no longer wanted or has succeeded: only ``wanted`` items stay."""
        return Retries(MappingProxyType({item: backoff for item, backoff in self.items.items() if item in wanted}))

    def deadline_s(self) -> float | None:
        """When the next item becomes due; None when nothing waits."""
        return min((backoff.not_before_s for backoff in self.items.values()), default=None)
