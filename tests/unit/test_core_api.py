"""Whether a compiled core is of the headers that lie beside it: told by what they declare, not by how they are written."""

import shutil
from pathlib import Path

import pytest

from flanpy.datapath import core, core_api

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    for header in core_api.HEADERS:
        shutil.copy(CSRC / header, tmp_path)
    return tmp_path


def changed(headers: Path, name: str, old: str, new: str) -> str:
    text = (headers / name).read_text()
    assert old in text
    (headers / name).write_text(text.replace(old, new, 1))
    return core_api.digest(headers)


def test_the_core_that_runs_here_is_of_this_checkout() -> None:
    built = core._built_from()
    assert (built, core_api.problem(built, CSRC)) == (core_api.digest(CSRC), None)


def test_comments_and_spaces_are_no_other_version(headers: Path) -> None:
    before = core_api.digest(headers)
    assert changed(headers, "flanpy.h", "struct fp_hop {", "/* A peer. */ struct   fp_hop\n{") == before


@pytest.mark.parametrize(
    ("header", "old", "new"),
    [
        ("flanpy.h", "uint16_t flags;", "uint32_t flags;"),
        ("verdicts.h", "X(ENCAPSULATED,", "X(WRAPPED,"),
        ("protocol.h", "FP_MESSAGE_HOLD = 6", "FP_MESSAGE_HOLD = 7"),
    ],
)
def test_a_changed_declaration_is_another_version_with_its_cure(headers: Path, header: str, old: str, new: str) -> None:
    before = core_api.digest(headers)
    assert changed(headers, header, old, new) != before
    said = f"the compiled C core is not of this version of flanpy (its headers in {headers} have changed since)"
    assert core_api.problem(before, headers) == said


def test_a_core_that_tells_no_version_is_an_old_one() -> None:
    assert core_api.problem(None, CSRC) is not None


def test_without_headers_beside_it_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert core_api.problem("a package that was installed", tmp_path / "csrc") is None
