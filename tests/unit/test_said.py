"""Problems in the log: at once when they are new, then ever more rarely."""

from flanpy.agent.said import AGAIN_S, Said


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
