"""What the lab shows: steps with a spinner on a terminal, plain lines elsewhere, and tables. Decides nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from flanpy.lab.status import HostStatus, LabStatus

PLAIN_WIDTH = 140
COLOURS = {
    "ready": "green",
    "degraded": "yellow",
    "not ready": "yellow",
    "no answer": "yellow",
    "stopped": "red",
    "plugged": "green",
    "cut": "red",
}


class Screen:
    """Progress and results; used as a context manager around all of a lab's start (or life), no step stays unfinished."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        if not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console = Console(highlight=False, width=PLAIN_WIDTH)
        self._spinner: Status | None = None
        self._step: str | None = None
        self._since_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end_step("green" if error is None else "red", "✓" if error is None else "✗")
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.say("interrupted; everything is removed")

    def working(self, step: str) -> None:
        """Begin a step; the one before it is done."""
        self.done()
        self._step, self._since_s = step, time.monotonic()
        if self._console.is_terminal:
            self._spinner = self._console.status(escape(step))
            self._spinner.start()

    def done(self) -> None:
        """The current step, if there is one, has succeeded."""
        self._end_step("green", "✓")

    def _end_step(self, colour: str, sign: str) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None
        if self._step is not None:
            took_s = time.monotonic() - self._since_s
            self._console.print(f"[{colour}]{sign}[/] {escape(self._step)} [dim]{took_s:.1f} s[/]")
            self._step = None

    def title(self, text: str) -> None:
        """A heading."""
        self.done()
        self._console.print(f"\n[bold]{escape(text)}[/]")

    def say(self, text: str) -> None:
        """A line of text."""
        self._console.print(escape(text))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), gap: int = 2) -> None:
        """A table; columns named in ``right`` are aligned to the right. A cell with a word of COLOURS gets its colour."""
        self.done()
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(f"[{COLOURS[cell]}]{cell}[/]" if cell in COLOURS else escape(cell) for cell in row))
        self._console.print(table)

    def status(self, status: LabStatus) -> None:
        """The state of a lab."""
        self.say(
            f"lab {status.name}: held by process {status.holder}, underlay {status.mode}, etcd {status.etcd}, logs {status.logs}"
        )
        columns = ("host", "underlay", "cable", "subnet", "agent", "datapath", "peers")
        self.table(columns, [_host_row(host) for host in status.hosts], right=("peers",))
        for host in status.hosts:
            shown = [" ".join(filter(None, (pod.name, pod.address, pod.address6))) for pod in host.pods]
            self._console.print(Columns(shown, padding=(0, 2)))
        for host in status.hosts:
            for problem in host.problems:
                self.say(f"{host.name}: {problem}")


def _host_row(host: HostStatus) -> tuple[str, ...]:
    impaired = [f"{host.loss_percent:g} % loss"] if host.loss_percent else []
    impaired += [f"{host.rate_mbit:g} Mbit/s"] if host.rate_mbit else []
    return (
        host.name,
        host.underlay,
        ", ".join([host.cable, *impaired]),
        " ".join(filter(None, (host.subnet, host.subnet6))) or "-",
        host.agent,
        host.datapath or "-",
        "-" if host.peers is None else str(host.peers),
    )
