"""What the commands that print share: tables, words for sizes and times, colour on a terminal only, and where the agent is asked.

Imports nothing heavy: ``flanpy status`` has to be there at once. What strangers wrote into etcd passes through ``printable``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEFAULT_RUN_DIR = "/run/flanpy"
"""The agent's default of --run-dir."""


def add_agent_arguments(parser: argparse.ArgumentParser, *, output: bool = True) -> None:
    """``--run-dir``, by which the agent is found, and ``--output``."""
    parser.add_argument(
        "--run-dir", metavar="DIR", help=f"the agent's run directory (FLANPY_RUN_DIR; default: {DEFAULT_RUN_DIR})"
    )
    if output:
        add_output_argument(parser)


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """``--output table|json``."""
    parser.add_argument("--output", choices=("table", "json"), default="table", help="what to print (default: table)")


def run_dir(arguments: argparse.Namespace) -> Path:
    """Where the agent's control socket is: flag, environment, default."""
    return Path(arguments.run_dir or os.environ.get("FLANPY_RUN_DIR") or DEFAULT_RUN_DIR)


def ask_agent(arguments: argparse.Namespace, command: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask the agent of this host; its answer without the protocol's own field. Raises AgentAbsent, FlanpyError."""
    from flanpy.agent.client import ask

    answer = ask(run_dir(arguments), command, arguments=more)
    answer.pop("ok")
    return answer


def ask_and_show(
    arguments: argparse.Namespace, question: str, render: Callable[[Mapping[str, Any], Paint], Iterable[str]]
) -> int:
    """Ask the agent one thing and print its answer as ``--output`` says; the exit status of having done so."""
    answer = ask_agent(arguments, question)
    if arguments.output == "json":
        show_json(answer)
    else:
        show(render(answer, paint()))
    return 0


# ------------------------------------------------------------------------------------------------ colour


class Paint:
    """Marks words for a terminal; leaves them alone when ``on`` is false. A plain class: dataclasses cost a third of the time to start."""

    __slots__ = ("on",)

    def __init__(self, on: bool) -> None:
        self.on = on

    def good(self, text: str) -> str:
        """All is well."""
        return self._in("32", text)

    def warn(self, text: str) -> str:
        """Look at this."""
        return self._in("33", text)

    def bad(self, text: str) -> str:
        """This is broken."""
        return self._in("31", text)

    def faint(self, text: str) -> str:
        """Names of things, beside their values."""
        return self._in("2", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text


def paint() -> Paint:
    """Colour on a terminal only, and not where NO_COLOR is set or the terminal is dumb."""
    return Paint(sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")


# ------------------------------------------------------------------------------------------------ words


def printable(text: object) -> str:
    """One line without control characters: nobody's key in etcd moves our cursor."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in " ".join(str(text).split("\n")))


def duration(seconds: float) -> str:
    """Two units at most: ``23 h 12 min``."""
    rest = int(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
        elif parts:
            break
    return " ".join(parts[:2]) or f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes by powers of ten: ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def number(count: float) -> str:
    """``1,204``."""
    return f"{count:,.0f}"


def counted(count: int, word: str) -> str:
    """``1 packet``, ``1,204 packets``."""
    return f"{number(count)} {word}{'' if count == 1 else 's'}"


# ------------------------------------------------------------------------------------------------ tables


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], colours: Paint | None = None, numbers: Collection[int] = ()
) -> list[str]:
    """Lines of a table, columns as wide as their widest cell, those of ``numbers`` aligned right; only the headers are marked."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    sides = [">" if column in numbers else "<" for column in range(len(headers))]
    layout = list(zip(sides, widths, strict=True))
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, (side, width) in zip(row, layout, strict=True)) for row in (headers, *cells)
    ]
    return [(colours or Paint(False)).faint(lines[0].rstrip()), *(line.rstrip() for line in lines[1:])]


def show(lines: Iterable[str]) -> None:
    """Print lines."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def show_json(value: object) -> None:
    """Print a value as JSON, readable for people too."""
    show([json.dumps(value, indent=2)])
