"""Desired against actual: the difference does what it says, and back-off is kept for each item on its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.core.reconcile import Backoff, Difference, Retries, after_failure, apply, diff

SETS = st.frozensets(st.integers(0, 20))


@given(SETS, SETS)
def test_applying_the_difference_gives_the_desired_set(desired: frozenset[int], actual: frozenset[int]) -> None:
    difference = diff(desired, actual)
    assert apply(difference, actual) == desired
    assert bool(difference) == (desired != actual)
    assert not difference.add & difference.remove


def test_the_difference_names_what_to_do() -> None:
    assert diff(frozenset({1, 2}), frozenset({2, 3})) == Difference(add=frozenset({1}), remove=frozenset({3}))


def test_the_delay_doubles_up_to_its_limit() -> None:
    backoff, delays = Backoff(), []
    for _ in range(8):
        backoff = after_failure(backoff, 100.0, 1.0)
        delays.append(backoff.not_before_s - 100.0)
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30] and backoff.attempt == 8


@pytest.mark.parametrize(("jitter", "delay_s"), [(0.0, 0.25), (0.5, 0.375), (1.0, 0.5)])
def test_jitter_spreads_the_upper_half_of_the_delay(jitter: float, delay_s: float) -> None:
    assert after_failure(Backoff(), 0.0, jitter) == Backoff(1, delay_s)


def test_a_very_long_row_of_failures_does_not_overflow() -> None:
    assert after_failure(Backoff(10**6, 0.0), 0.0, 1.0) == Backoff(10**6 + 1, 30.0)


def test_one_item_that_fails_never_delays_another() -> None:
    retries: Retries[str] = Retries()
    retries = retries.failed(["bad"], 0.0, 1.0)
    assert retries.due(["bad", "good"], 0.1) == frozenset({"good"})
    assert retries.deadline_s() == 0.5
    assert retries.due(["bad", "good"], 0.5) == frozenset({"bad", "good"})


def test_success_and_absence_forget_the_failures() -> None:
    retries: Retries[str] = Retries()
    retries = retries.failed(["a", "b"], 0.0, 1.0).failed(["a"], 1.0, 1.0)
    assert {item: backoff.attempt for item, backoff in retries.items.items()} == {"a": 2, "b": 1}
    assert retries.keep({"b"}).due(["a", "b"], 0.1) == frozenset({"a"})
    assert retries.keep(()).deadline_s() is None
