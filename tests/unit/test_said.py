"""Problems in the log: at once when they are new, then ever more rarely, and of a flood a few lines."""

from hypothesis import given
from hypothesis import strategies as st

from flanpy.agent.said import AGAIN_S, LINES_MAX, LINES_PER_S, TEXT_MAX, Allowance, Refused, Said, shortened
from flanpy.model import Refusal


def test_an_unchanged_problem_is_said_at_once_and_then_after_growing_waits() -> None:
    said, spoken = Said(), []
    for second in range(8000):
        said, due = said.say(("port taken",), float(second))
        spoken += [second for _ in due]
    first = int(AGAIN_S[0])
    assert spoken == [0, first, 3 * first, 7 * first, 15 * first, 31 * first, 63 * first, 127 * first, 127 * first + 3600]


def test_a_new_problem_is_said_beside_one_that_was_said_already() -> None:
    said, due = Said().say(("a",), 0.0)
    assert due == ("a",)
    said, due = said.say(("a", "b"), 1.0)
    assert due == ("b",)


def test_a_problem_that_went_and_came_back_is_new() -> None:
    said, _ = Said().say(("a",), 0.0)
    said, _ = said.say((), 1.0)
    assert said.say(("a",), 2.0)[1] == ("a",)


def test_of_a_thousand_lines_a_few_are_said_and_the_rest_in_one() -> None:
    allowance, say, more = Allowance().spend(1000, 5.0)
    assert (say, more) == (int(LINES_MAX) - 1, 1000 - int(LINES_MAX) + 1)
    allowance, say, more = allowance.spend(7, 5.5)
    assert (say, more) == (0, 0), "nothing is left for now"
    allowance, say, more = allowance.spend(0, 7.5)
    assert (say, more) == (0, 7), "what was held back is told as soon as a line may be said"
    assert allowance.spend(0, 8.0)[1:] == (0, 0)


def test_a_few_lines_now_and_then_are_all_said() -> None:
    allowance = Allowance()
    for second in range(0, 1000, 10):
        allowance, say, more = allowance.spend(5, float(second))
        assert (say, more) == (5, 0)


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 50)), max_size=50))
def test_every_line_is_said_or_counted_and_never_more_than_allowed(bursts: list[tuple[int, float]]) -> None:
    allowance, now_s, lines, told = Allowance(), 0.0, 0, 0
    for wanted, pause_s in bursts:
        now_s += pause_s
        allowance, say, more = allowance.spend(wanted, now_s)
        lines += say + bool(more)
        told += say + more
    assert told + allowance.held_back == sum(wanted for wanted, _ in bursts)
    assert lines <= LINES_MAX + now_s * LINES_PER_S + 1e-6


def test_a_text_that_nobody_would_read_is_cut() -> None:
    assert shortened("a" * TEXT_MAX) == "a" * TEXT_MAX
    assert shortened("b" * 1_000_000) == "b" * TEXT_MAX + "... (1000000 characters)"


def test_a_refused_key_is_said_once_for_each_reason_and_again_after_it_was_well() -> None:
    refused, news = Refused().say([Refusal("a", "no JSON"), Refusal("b", "x" * 1000)])
    assert news == (("a", "no JSON"), ("b", shortened("x" * 1000)))
    refused, news = refused.say([Refusal("a", "no JSON"), Refusal("b", "taken")])
    assert news == (("b", "taken"),)
    refused, news = refused.say([])
    assert (refused, news) == (Refused(), ())
    assert refused.say([Refusal("a", "no JSON")])[1] == (("a", "no JSON"),)
