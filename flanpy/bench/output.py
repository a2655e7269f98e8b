"""Writes a result where people look for it: ``bench-results/<time>/`` with result.json, report.md and plots, and the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from flanpy.bench.report import Table, markdown
from flanpy.bench.samples import Result, to_json
from flanpy.errors import PlatformError


def new_directory(parent: Path, started: str) -> Path:
    """A directory of this run's own below ``parent``, named by its start; a second one in the same second gets a number."""
    name = started.partition("+")[0].replace(":", "").replace("T", "-")
    try:
        for suffix in ("", *(f"-{n}" for n in range(2, 100))):
            directory = parent / f"{name}{suffix}"
            if not directory.exists():
                directory.mkdir(parents=True)
                return directory
    except OSError as error:
        raise PlatformError(f"{parent}: cannot write results there ({error.strerror}); name another with --directory") from error
    raise PlatformError(f"{parent}/{name}: exists a hundred times")


def write(result: Result, directory: Path) -> tuple[str, ...]:
    """Write all files; returns their names. Plots need matplotlib (the ``bench`` extra) and are left out without it."""
    (directory / "result.json").write_text(to_json(result))
    plots = _plots(result, directory)
    (directory / "report.md").write_text(markdown(result, [name for name in plots if name.endswith(".svg")]))
    return ("result.json", "report.md", *plots)


def _plots(result: Result, directory: Path) -> tuple[str, ...]:
    try:
        from flanpy.bench.plots import draw
    except ImportError:
        return ()
    names: tuple[str, ...] = draw(result, directory)
    return names


def print_tables(tables: Iterable[Table]) -> None:
    """Tables on standard output; where it is no terminal, as wide as they are unless COLUMNS is set."""
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=180)
    for table in tables:
        console.print(f"\n{table.title}", style="bold", highlight=False)
        grid = Grid(*table.header)
        for row in table.rows:
            grid.add_row(*(cell.replace("**", "") for cell in row))
        console.print(grid)
