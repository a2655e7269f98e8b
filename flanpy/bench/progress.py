"""How far a run is: a bar on a terminal, a plain line for each step elsewhere; on standard error, so that output stays clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flanpy.bench.runner import Progress


class PlainProgress:
    """One line for each step, with its number and the seconds since the start."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._begin = time.monotonic()

    def step(self, doing: str) -> None:
        """Print the step that begins."""
        self._done += 1
        self.note(f"{self._done}/{self._steps}  {doing}")

    def note(self, text: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self._begin:7.1f} s  {text}", file=sys.stderr, flush=True)


@contextmanager
def show_progress(steps: int) -> Iterator[Progress]:
    """The progress display that fits standard error."""
    if not sys.stderr.isatty():
        yield PlainProgress(steps)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=steps)

        class BarProgress:
            """Moves the bar."""

            def __init__(self) -> None:
                self._begun = False

            def step(self, doing: str) -> None:
                """The step before this one is done."""
                bar.update(task, advance=1 if self._begun else 0, description=doing)
                self._begun = True

            def note(self, text: str) -> None:
                """Name it beside the bar."""
                bar.update(task, description=text)

        yield BarProgress()
