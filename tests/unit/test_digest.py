"""What stands first when several tests of this suite have failed."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.digest import digest, fold


def report(name: str, when: Any, message: str, line: int = 7) -> pytest.TestReport:
    longrepr: Any = SimpleNamespace(reprcrash=SimpleNamespace(path="t.py", lineno=line, message=message))
    return pytest.TestReport(f"t.py::{name}", ("t.py", 1, name), {}, "failed", longrepr, when)


def test_failures_come_before_errors_and_the_same_words_are_said_once() -> None:
    reports = [
        report("a", "teardown", "not healed"),
        report("b", "teardown", "not healed"),
        report("b", "call", "1 lost\n\nof 2", 3),
    ]

    assert list(digest(reports)) == [
        "FAILED t.py::b",
        "    t.py:3: 1 lost",
        "    of 2",
        "ERROR at teardown of t.py::a",
        "ERROR at teardown of t.py::b",
        "    t.py:7: not healed",
    ]


def test_what_is_long_is_cut() -> None:
    cut = list(digest([report("a", "call", "x" * 1000 + "\ny" * 20)]))
    assert (len(cut), cut[1][:14], len(cut[1])) == (9, "    t.py:7: xx", 404)


def test_of_errors_that_say_the_same_the_first_alone_keeps_its_traceback() -> None:
    reports = [report("a", "setup", "no room"), report("b", "setup", "no room"), report("c", "setup", "no room", 8)]
    fold(reports)
    assert [isinstance(each.longrepr, str) and each.longrepr for each in reports] == [False, "the same as of t.py::a", False]
