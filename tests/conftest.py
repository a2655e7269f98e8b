"""Rules of the whole suite: what needs root says so where there is none, and never in CI, where nothing is skipped."""

import os
from pathlib import Path

import pytest

NEED_ROOT = {"netns"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Outside CI and without root, tests that make namespaces and devices are skipped with the reason."""
    if os.geteuid() == 0 or os.environ.get("CI"):
        return
    skip = pytest.mark.skip(reason="needs root (network namespaces, TUN): run `sudo make test`")
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in NEED_ROOT or item.get_closest_marker("root"):
            item.add_marker(skip)
