"""The rows of docs/reliability.md: tests whose docstring begins with the number of a fault.

    def test_probes_go_on_while_the_agent_is_killed(measured) -> None:
        \"\"\"Row 6: the agent is killed (-9).

        What happens then, in a sentence or two.
        Passes when: 0 probes lost.
        \"\"\"
        ...
        measured("0 of 3,214 probes lost")

They may stand in any file below tests/. Read with ``ast``, so that nothing has to be imported.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
HEAD = re.compile(r"Row (\d+): (.+)", re.DOTALL)
CRITERION = "Passes when:"
FAULTS = 30
"""The faults that the project has set itself; rows beyond them are about overload."""
ROWS = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One test of one fault; ``node`` is its pytest id without parameters."""

    number: int
    fault: str
    happens: str
    criterion: str
    node: str
    measures: bool
    """Whether the test takes the fixture ``measured``."""


def rows() -> list[Row]:
    """All of them, by number, then by place. Raises ValueError for a docstring that has lost one of its parts."""
    return sorted(rows_by_place(), key=lambda row: row.number)


def rows_by_place() -> list[Row]:
    """All of them, file by file, each file's as they stand there."""
    return [row for path in sorted(TESTS.rglob("test_*.py")) for row in _rows_of(path)]


def _rows_of(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8")
    if "Row " not in text:
        return []
    functions = (
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )
    made = (_row(path, function) for function in sorted(functions, key=lambda node: node.lineno))
    return [row for row in made if row is not None]


def _row(path: Path, function: ast.FunctionDef) -> Row | None:
    head, _, body = (ast.get_docstring(function) or "").partition("\n\n")
    begun = HEAD.fullmatch(head)
    if begun is None:
        return None
    node = f"{path.relative_to(TESTS.parent)}::{function.name}"
    happens, found, criterion = body.partition(CRITERION)
    if not (happens.strip() and found and criterion.strip()):
        raise ValueError(f'{node}: after "Row {begun[1]}: fault." come what happens, and "{CRITERION} ..."')
    arguments = {argument.arg for argument in function.args.args}
    return Row(int(begun[1]), _line(begun[2]), _line(happens), _line(criterion), node, "measured" in arguments)


def _line(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")
