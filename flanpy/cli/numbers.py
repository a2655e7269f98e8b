"""Numbers on the command line, for argparse's ``type``: what is none is refused by saying what would be right.

Ranges are each command's own, which also refuses what is no quantity (nan, inf).
"""

from __future__ import annotations

import argparse


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number such as 5") from None


def decimal(text: str) -> float:
    """A number, with or without decimals."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 2 or 0.5") from None
