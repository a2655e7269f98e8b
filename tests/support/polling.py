"""Waiting for something by looking again and again until a deadline: with words for what has not come, or for an assert of one's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flanpy.errors import FlanpyError
from tests.support.pace import SLOWNESS

LOOK_S = 0.05
SHORT_LOOK_S = 0.005


def eventually(check: Callable[[], object], within_s: float, what: str) -> Any:
    """Poll until ``check`` is true and return what it returned; an assertion with the last error when time is over."""
    __tracebackhide__ = True
    within_s *= SLOWNESS
    deadline = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            if last := check():
                return last
        except (AssertionError, OSError, LookupError, RuntimeError, FlanpyError) as error:
            last = error
        time.sleep(LOOK_S)
    raise AssertionError(f"not within {within_s} s: {what} (last: {last!r})")


def soon(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether the condition comes true in time; what it raises is a failure at once."""
    deadline = time.monotonic() + within_s * SLOWNESS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(SHORT_LOOK_S)
    return True
