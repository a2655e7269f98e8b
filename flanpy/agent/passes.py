"""What the passes of the loop have cost so far: a frozen value, for metrics. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Upper bounds of the histogram of durations, seconds."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes from the desired to the actual state: how many, how many had problems, seconds in all, how many took at most each bound."""

    count: int = 0
    failed: int = 0
    seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * len(BUCKETS_S)

    def plus(self, seconds: float, *, failed: bool) -> Passes:
        """With one more pass."""
        return replace(
            self,
            count=self.count + 1,
            failed=self.failed + failed,
            seconds=self.seconds + seconds,
            buckets=tuple(count + (seconds <= bound) for count, bound in zip(self.buckets, BUCKETS_S, strict=True)),
        )
