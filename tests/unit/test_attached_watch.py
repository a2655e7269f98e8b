"""What the watch of the plugin's directory makes of things there that are no kept files, and of reads that fail."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from flanpy.agent import attached_watch
from flanpy.agent.attached_watch import BOOT_ID, AttachedWatch
from flanpy.agent.events import PodsAttached
from flanpy.core.attached import NOTE

Look = Callable[[], list[str]]


def kept(directory: Path, container: str, address: str) -> None:
    note = {"boot": BOOT_ID.read_text().strip(), "ifname": "eth0", "result": {"ips": [{"address": address}]}}
    (directory / f"{container}@eth0").write_text(json.dumps({"type": "bridge", NOTE: note}))


@pytest.fixture
def seen() -> SimpleQueue[PodsAttached]:
    return SimpleQueue()


@pytest.fixture
def watch(tmp_path: Path, seen: SimpleQueue[PodsAttached]) -> Iterator[AttachedWatch]:
    """Not started: the tests look themselves."""
    made = AttachedWatch(tmp_path, seen.put)
    yield made
    made.close()


@pytest.fixture
def look(watch: AttachedWatch, seen: SimpleQueue[PodsAttached]) -> Look:
    """Look once; the addresses that were told, of all that was told."""

    def looked() -> list[str]:
        watch._look()
        return [] if seen.empty() else [str(pod.address) for pod in seen.get_nowait().pods]

    return looked


def test_a_directory_and_a_pipe_cost_no_descriptor_and_one_line_each(
    tmp_path: Path, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path, "web", "10.9.8.7/24")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [look() for _ in range(3)] == [["10.9.8.7"]] * 3
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(caplog.records) == 2


def test_what_cannot_be_read_for_the_moment_is_as_it_was(
    tmp_path: Path, look: Look, seen: SimpleQueue[PodsAttached], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path, "web", "10.9.8.7/24")
    assert look() == ["10.9.8.7"]

    def without_descriptors(*arguments: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(attached_watch.os, "open", without_descriptors)
        assert look() == ["10.9.8.7"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", without_descriptors)
        assert look() == [], "nothing is told, so what was told stands"
    (tmp_path / "web@eth0").unlink()
    look()
    kept(tmp_path, "db", "10.9.8.9/24")
    assert look() == ["10.9.8.9"]


def test_a_file_that_could_never_be_read_yet_leaves_open_what_else_is_attached(
    tmp_path: Path, watch: AttachedWatch, seen: SimpleQueue[PodsAttached], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path, "web", "10.9.8.7/24")
    kept(tmp_path, "db", "10.9.8.9/24")
    real = attached_watch.os.open

    def failing(path: Path, *arguments: Any) -> int:
        if Path(path).name.startswith("web"):
            raise OSError(5, "Input/output error")
        return real(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(attached_watch.os, "open", failing)
        watch._look()
    told = seen.get_nowait()
    assert ([str(pod.address) for pod in told.pods], told.whole) == (["10.9.8.9"], False)
    watch._look()
    told = seen.get_nowait()
    assert (sorted(str(pod.address) for pod in told.pods), told.whole) == (["10.9.8.7", "10.9.8.9"], True)


def test_a_defect_costs_one_look_and_is_said(
    tmp_path: Path, look: Look, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path, "web", "10.9.8.7/24")

    def broken(*arguments: object) -> None:
        raise IndexError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(attached_watch, "parse_kept", broken)
        assert look() == []
    assert "IndexError: a defect" in caplog.text
    assert look() == ["10.9.8.7"]
