"""What failed, first of all and in few lines: a log that is cut short still tells it, and one cause that hits many tests is told once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

LINES, CHARS = 8, 400
"""What a digest has of one failure's words."""


def digest(reports: Sequence[pytest.TestReport]) -> Iterator[str]:
    """Each failure with its place and its words; those with the same words share them. Failures of tests come before errors around them."""
    alike: dict[tuple[str, str], list[pytest.TestReport]] = {}
    for report in sorted(reports, key=lambda report: report.when != "call"):
        alike.setdefault((report.when or "", _words(report)), []).append(report)
    for (when, words), group in alike.items():
        for report in group:
            yield f"{'FAILED' if when == 'call' else f'ERROR at {when} of'} {report.nodeid}"
        lines = [line for line in words.splitlines() if line.strip()]
        yield from (f"    {line[:CHARS]}" for line in lines[:LINES])


def fold(reports: Sequence[pytest.TestReport]) -> None:
    """Of errors with the same words around several tests only the first keeps its traceback."""
    first: dict[str, str] = {}
    for report in reports:
        known = first.setdefault(_words(report), report.nodeid)
        if known != report.nodeid:
            report.longrepr = f"the same as of {known}"


def _words(report: pytest.TestReport) -> str:
    """Where it failed and what was said there."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return f"{crash.path}:{crash.lineno}: {crash.message}" if crash is not None else report.longreprtext
