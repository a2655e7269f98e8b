"""Python packages that a host running the agent does not need: looked for before a command begins, named with the cure.

They are the extras of pyproject.toml; imports nothing of them.
"""

from __future__ import annotations

import importlib.util

from flanpy.errors import LabError

EXTRAS = {"lab": ("rich", "scapy"), "bench": ("rich",)}
"""Extra -> what its commands cannot do without. matplotlib is in `bench` too: without it there are no plots, and that is said there."""


def need(extra: str) -> None:
    """Raise LabError when a package of an extra is not installed."""
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise LabError(
            f"not installed: the Python package{'s' * (len(missing) > 1)} {', '.join(missing)}; pip install 'flanpy[{extra}]'"
        )
