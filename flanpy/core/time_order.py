"""Puts what several queues give into the order of its time. Pure: times are passed in, nothing waits here.

    flannel0  ──▶ 1   3      ┐ heap ──▶ 1 2 3        each queue has an order of its own but for the window, and nothing tells by which of
    eth0      ──▶   2   4    ┘                       them a packet will come next

An item leaves when no queue can bring an earlier one any more: each has given a later one, or was found empty later, by more than the
window, which is the time from a packet's stamp to its place in the queue. What would be more than ``most_bytes`` leaves earlier.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class TimeOrder(Generic[T]):
    """Items of the queues 0 to ``queues`` - 1, in order. Times are nanoseconds of one clock; one that jumps back costs order, no items."""

    def __init__(self, queues: int, window_ns: int, most_bytes: int) -> None:
        self._reached_ns = [0] * queues
        self._window_ns = window_ns
        self._most_bytes = most_bytes
        self._held: list[tuple[int, int, int, int, T]] = []
        self._held_bytes = 0
        self._added = 0

    def __len__(self) -> int:
        """How many are held."""
        return len(self._held)

    def add(self, time_ns: int, rank: int, size_bytes: int, item: T) -> None:
        """An item; of equal times the lower rank comes first, then what was added first."""
        heapq.heappush(self._held, (time_ns, rank, self._added, size_bytes, item))
        self._added += 1
        self._held_bytes += size_bytes

    def reached(self, queue: int, time_ns: int) -> None:
        """The queue has given something of this time, or was empty then."""
        self._reached_ns[queue] = max(self._reached_ns[queue], time_ns)

    def due(self) -> Iterator[T]:
        """What no queue can bring anything before, and what there is no room for."""
        until_ns = min(self._reached_ns) - self._window_ns
        while self._held and (self._held[0][0] < until_ns or self._held_bytes > self._most_bytes):
            yield self._first()

    def rest(self) -> Iterator[T]:
        """Everything that is held: nothing more will come."""
        while self._held:
            yield self._first()

    def _first(self) -> T:
        _, _, _, size_bytes, item = heapq.heappop(self._held)
        self._held_bytes -= size_bytes
        return item
