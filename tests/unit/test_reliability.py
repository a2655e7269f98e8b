"""The table of faults: every row's docstring has its parts, and the words for it come out of figures."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import rows as rows_module
from tests.support.rows import FAULTS, ROWS, rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "scripts" / "reliability.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reliability"] = module
    spec.loader.exec_module(module)
    return module


def test_every_row_has_its_parts_and_measures_something() -> None:
    found = rows()
    assert [row for row in found if not (1 <= row.number <= ROWS and row.fault and row.happens and row.criterion)] == []
    assert [row.node for row in found if not row.measures] == []


def test_a_docstring_without_a_criterion_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tests" / "test_it.py"
    path.parent.mkdir()
    path.write_text('def test_it():\n    """Row 3: the sky falls.\n\n    Nothing.\n    """\n')
    monkeypatch.setattr(rows_module, "TESTS", path.parent)
    with pytest.raises(ValueError, match=r"test_it.py::test_it.*Passes when:"):
        rows()


def test_figures_of_all_parameters_stand_in_one_cell(script: ModuleType) -> None:
    row = rows()[0]
    figures = {
        f"{row.node}[userspace]": {"outcome": "passed", "measured": ["0 of 7 probes lost", "12 ms"]},
        f"{row.node}[ebpf]": {"outcome": "passed", "measured": []},
        f"{row.node}_too": {"outcome": "passed", "measured": ["not of this row"]},
    }
    line = next(line for line in script.document(figures).splitlines() if f"`{row.node}`" in line)
    assert "| userspace: 0 of 7 probes lost, 12 ms; ebpf: passed |" in line


def test_a_test_that_failed_or_did_not_run_says_so_in_its_row(script: ModuleType) -> None:
    row, other, *_ = rows()
    figures = {
        f"{row.node}[userspace]": {"outcome": "failed", "measured": ["9 s"]},
        f"{row.node}[ebpf]": {"outcome": "failed", "measured": []},
    }
    lines = script.document(figures).splitlines()
    assert "| userspace: **FAILED** (9 s); ebpf: **FAILED** |" in next(line for line in lines if f"`{row.node}`" in line)
    assert "| **did not run** |" in next(line for line in lines if f"`{other.node}`" in line)


def test_every_fault_of_the_list_has_a_test() -> None:
    found = {row.number for row in rows()}
    assert set(range(1, FAULTS + 1)) - found == set()


def test_the_document_names_every_fault_and_only_tests_that_there_are(script: ModuleType) -> None:
    named = script.named()
    assert set(range(1, FAULTS + 1)) - {number for number, _ in named} == set()
    assert {node for _, node in named} - {row.node for row in rows()} == set(), "run `make reliability`"
