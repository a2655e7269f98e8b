"""Medians with their spread, ratios paired by round, and the search for the highest rate. Pure: no I/O, no clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Middle and spread of some values; with fewer than four values the quartiles are the extremes."""

    count: int
    median: float
    low: float
    high: float
    quartile1: float
    quartile3: float


def summarize(values: Iterable[float]) -> Summary | None:
    """Summary of the values, or None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    if len(ordered) < 4:
        quartile1, quartile3 = ordered[0], ordered[-1]
    else:
        quartile1, _, quartile3 = statistics.quantiles(ordered, n=4, method="inclusive")
    return Summary(len(ordered), statistics.median(ordered), ordered[0], ordered[-1], quartile1, quartile3)


def paired_ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Summary | None:
    """Summary of ours / theirs, round by round: what disturbed a whole round cancels out. Rounds that lack one are left out."""
    return summarize(ours[each] / theirs[each] for each in ours.keys() & theirs.keys() if theirs[each] != 0)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the generator: what was asked, what was really sent, and what arrived."""

    asked_pps: float
    sent_pps: float
    sent: int
    received: int

    @property
    def loss(self) -> float:
        """Share of the packets that did not arrive, 0..1."""
        return 1 - self.received / self.sent if self.sent else 1.0

    @property
    def received_pps(self) -> float:
        """Packets that arrived, a second."""
        return self.sent_pps * (1 - self.loss)


@dataclass(frozen=True, slots=True)
class Found:
    """Outcome of a search: the best trial that met the limit (None: even the least rate lost too much) and all of them."""

    best: Trial | None
    trials: tuple[Trial, ...]
    generator_bound: bool
    """The link took all that the generator could send: the true limit is higher."""


def highest_rate(
    run: Callable[[float], Trial],
    *,
    start_pps: float,
    ceiling_pps: float,
    loss_limit: float,
    precision: float,
    most_trials: int,
    growth: float = 2.0,
) -> Found:
    """Search the highest rate whose loss is at most ``loss_limit``; a rate counts only when a second trial confirms it.

    Grows (or shrinks) by ``growth`` from ``start_pps`` until good and bad are bracketed, then bisects geometrically until the
    bracket is narrower than ``precision`` (0.05: 5 %). A good rate that does not repeat is the new upper end: loss near the limit is
    random, and one lucky trial must not decide. The rates compared are those really sent.
    """
    search = _Search(run, loss_limit, most_trials)
    good, bad, asked = 0.0, 0.0, start_pps
    while search.trials_left and not (good and bad and bad / good <= 1 + precision):
        fastest_pps = search.confirmed(asked)
        if fastest_pps is None:
            bad = asked
        else:
            good = max(good, asked)
            if fastest_pps < 0.9 * asked or asked >= ceiling_pps:
                return Found(search.best, tuple(search.trials), generator_bound=True)
        if good and bad:
            if bad <= good:
                break
            asked = (good * bad) ** 0.5
        else:
            asked = min(good * growth, ceiling_pps) if good else bad / growth
        if asked < 1:
            break
    return Found(search.best, tuple(search.trials), generator_bound=False)


class _Search:
    """Counts the trials and keeps the best; the budget is of trials, for each takes real time."""

    def __init__(self, run: Callable[[float], Trial], loss_limit: float, most_trials: int) -> None:
        self._run = run
        self._limit = loss_limit
        self._most = most_trials
        self.trials: list[Trial] = []
        self.best: Trial | None = None

    @property
    def trials_left(self) -> bool:
        return len(self.trials) < self._most

    def confirmed(self, asked: float) -> float | None:
        """What the faster of two good trials at this rate really sent, or None when one of them lost too much.

        A sender that was off the CPU for a moment sends less than asked: a third trial tells whether it cannot do more.
        """
        trials: list[Trial] = []
        while self.trials_left and (len(trials) < 2 or (len(trials) < 3 and max(t.sent_pps for t in trials) < 0.9 * asked)):
            trial = self._run(asked)
            self.trials.append(trial)
            if trial.loss > self._limit:
                return None
            trials.append(trial)
        if len(trials) < 2:
            return None
        worse = sorted(trials, key=lambda trial: trial.received_pps)[-2]
        if self.best is None or worse.received_pps > self.best.received_pps:
            self.best = worse
        return max(trial.sent_pps for trial in trials)
