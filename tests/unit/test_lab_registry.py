"""Which labs exist: told by a lock that the holder's life holds, never by what a file says."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanpy.errors import LabError
from flanpy.lab import registry
from flanpy.lab.registry import LabRecord
from tests.support.lab import lab_directory, lab_spec


@pytest.fixture(autouse=True)
def base(tmp_path: Path) -> Iterator[Path]:
    with lab_directory(tmp_path / "labs"):
        yield tmp_path / "labs"


def test_a_lab_lives_as_long_as_its_lock_is_held(base: Path) -> None:
    spec = lab_spec("a", agent_flags=("--queues=2",))
    lock = registry.claim("a")
    registry.record(spec, 4711)
    assert registry.labs() == (LabRecord(spec, 4711),)
    os.close(lock)
    assert registry.labs() == ()
    assert not (base / "a").exists()


def test_a_lab_that_is_being_started_is_not_listed_and_not_swept(base: Path) -> None:
    lock = registry.claim("a")
    assert registry.labs() == ()
    assert (base / "a" / "logs").is_dir()
    os.close(lock)


def test_a_name_is_given_once(base: Path) -> None:
    lock = registry.claim("a")
    with pytest.raises(LabError, match="a: a lab of this name runs already"):
        registry.claim("a")
    os.close(lock)
    os.close(registry.claim("a"))


def test_the_logs_of_a_failed_lab_stay_until_the_next_of_its_name(base: Path) -> None:
    os.close(registry.claim("a"))
    (base / "a" / "logs" / "host1.log").write_text("why")
    registry.forget("a", keep_logs=True)
    assert registry.labs() == ()
    assert registry.has_failed("a")
    assert (base / "a" / "logs" / "host1.log").read_text() == "why"
    os.close(registry.claim("a"))
    assert not (base / "a" / "logs" / "host1.log").exists()


def test_a_free_name_gets_a_number_when_the_stem_is_taken() -> None:
    lock = registry.claim("demo")
    registry.record(lab_spec("demo"), 1)
    assert registry.free_name("demo") == "demo-2"
    assert registry.free_name("other") == "other"
    os.close(lock)


def test_the_only_lab_needs_no_name() -> None:
    lock = registry.claim("a")
    registry.record(lab_spec("a"), 1)
    assert registry.find(None).spec.name == "a"
    with pytest.raises(LabError, match=r"b: no lab of this name \(there are: a\)"):
        registry.find("b")
    os.close(lock)


def test_with_several_labs_one_must_be_named() -> None:
    locks = [registry.claim(name) for name in ("a", "b")]
    for name in ("a", "b"):
        registry.record(lab_spec(name), 1)
    with pytest.raises(LabError, match=r"which lab\? there are: a, b"):
        registry.find(None)
    for lock in locks:
        os.close(lock)


def test_without_a_lab_the_message_says_how_to_start_one() -> None:
    with pytest.raises(LabError, match="none runs; `flanpy lab up` starts one"):
        registry.find(None)


def test_a_symbolic_link_is_no_directory_for_labs(base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LabError, match="set FLANPY_LAB_DIR to a directory of your own"):
        registry.base_directory()
