"""Medians, ratios and the search for the highest rate, the latter against links whose limit is known."""

import random
from collections.abc import Callable

import pytest

from flanpy.bench.statistics import Found, Summary, Trial, highest_rate, paired_ratio, summarize


def search(run: Callable[[float], Trial], start_pps: float = 1000.0, **changed: float) -> Found:
    options = {"ceiling_pps": 10e6, "loss_limit": 0.005, "precision": 0.04, "most_trials": 80, **changed}
    return highest_rate(run, start_pps=start_pps, **options)  # type: ignore[arg-type]


def link(capacity_pps: float, *, sender_pps: float = float("inf"), noise: float = 0.0, seed: int = 1) -> Callable[[float], Trial]:
    """A link that carries so many packets a second and drops the rest; the sender may be the slower of the two."""
    dice = random.Random(seed)

    def run(asked: float) -> Trial:
        sent_pps = min(asked, sender_pps)
        now = capacity_pps * (1 + dice.uniform(-noise, noise))
        return Trial(asked, sent_pps, round(sent_pps), round(min(sent_pps, now)))

    return run


def test_no_values_have_no_summary() -> None:
    assert summarize([]) is None


def test_one_value_is_its_own_spread() -> None:
    assert summarize([3.0]) == Summary(1, 3.0, 3.0, 3.0, 3.0, 3.0)


def test_median_extremes_and_quartiles_of_five() -> None:
    assert summarize([5, 1, 4, 2, 3]) == Summary(5, 3, 1, 5, 2, 4)


def test_ratios_are_taken_round_by_round_so_that_a_slow_round_cancels_out() -> None:
    ours, theirs = {0: 10.0, 1: 1.0, 2: 10.0}, {0: 5.0, 1: 0.5, 2: 5.0}
    assert paired_ratio(ours, theirs) == Summary(3, 2.0, 2.0, 2.0, 2.0, 2.0)


def test_rounds_without_a_partner_or_with_zero_are_left_out_of_ratios() -> None:
    assert paired_ratio({0: 1.0, 1: 2.0, 2: 3.0}, {1: 0.0, 2: 1.0, 7: 9.0}) == Summary(1, 3.0, 3.0, 3.0, 3.0, 3.0)
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("start_pps", [10.0, 1000.0, 123_456.0, 5e6])
@pytest.mark.parametrize("capacity_pps", [900.0, 50_000.0, 1_234_567.0])
def test_the_search_finds_the_limit_from_any_start(capacity_pps: float, start_pps: float) -> None:
    found = search(link(capacity_pps), start_pps)
    assert found.best is not None
    assert capacity_pps * 0.95 <= found.best.received_pps <= capacity_pps * 1.002
    assert found.best.loss <= 0.005
    assert not found.generator_bound


def test_a_found_rate_was_good_twice() -> None:
    tried: dict[float, list[Trial]] = {}
    run = link(50_000.0, noise=0.05)

    def watched(asked: float) -> Trial:
        tried.setdefault(asked, []).append(run(asked))
        return tried[asked][-1]

    best = search(watched).best
    assert best is not None
    assert len(tried[best.asked_pps]) >= 2
    assert all(trial.loss <= 0.005 for trial in tried[best.asked_pps])


def test_one_lucky_trial_does_not_decide() -> None:
    lucky = iter([True])

    def run(asked: float) -> Trial:
        if asked > 3000 and next(lucky, False):
            return Trial(asked, asked, 4000, 4000)
        return Trial(asked, asked, 4000, 4000 if asked <= 2000 else 2000)

    best = search(run).best
    assert best is not None
    assert best.asked_pps <= 2000


def test_a_sender_that_cannot_keep_up_bounds_the_search_and_says_so() -> None:
    found = search(link(1e6, sender_pps=30_000.0))
    assert found.generator_bound
    assert found.best is not None
    assert found.best.received_pps == 30_000.0


def test_a_link_that_carries_nothing_has_no_rate() -> None:
    found = search(lambda asked: Trial(asked, asked, 1000, 0))
    assert found.best is None


def test_the_budget_of_trials_holds() -> None:
    assert len(search(link(1e6, noise=0.5), most_trials=9).trials) <= 9


def test_a_trial_without_packets_is_all_loss() -> None:
    assert Trial(10, 0, 0, 0).loss == 1.0


def test_a_sender_that_was_off_the_cpu_once_does_not_end_the_search() -> None:
    run, calls = link(80_000.0), [0]

    def stumbling(asked: float) -> Trial:
        calls[0] += 1
        return run(asked) if calls[0] != 4 else Trial(asked, asked / 3, round(asked / 3), round(asked / 3))

    found = search(stumbling)
    assert not found.generator_bound
    assert found.best is not None
    assert found.best.received_pps >= 0.95 * 80_000
