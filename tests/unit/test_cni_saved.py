"""What is kept between ADD and DEL: whole, for root alone, under flannel's names."""

import os
import stat
from pathlib import Path

import pytest

from flanpy.cni import saved
from flanpy.cni.protocol import IO_FAILURE, Attachment
from flanpy.cni.saved import Saved
from flanpy.errors import CniError

CONFIG = {"name": "cbr0", "type": "bridge"}
ETH0, NET1 = Attachment("pod1", "eth0"), Attachment("pod1", "net1")


def test_what_was_kept_is_found_until_it_is_removed(tmp_path: Path) -> None:
    kept = Saved(ETH0, CONFIG, "/run/netns/pod1", {"ips": []})
    saved.store(tmp_path / "deep/down", kept)
    assert saved.load(tmp_path / "deep/down", ETH0) == kept
    saved.remove(tmp_path / "deep/down", kept)
    saved.remove(tmp_path / "deep/down", kept)
    assert saved.load(tmp_path / "deep/down", ETH0) is None


def test_the_file_is_for_root_alone_and_nothing_half_written_stays(tmp_path: Path) -> None:
    for result in (None, {"ips": []}):
        saved.store(tmp_path / "data", Saved(ETH0, CONFIG, "/n", result))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["pod1"]
    assert stat.S_IMODE((tmp_path / "data/pod1").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_two_interfaces_of_one_pod_are_kept_apart(tmp_path: Path) -> None:
    first, second = Saved(ETH0, CONFIG, "/n"), Saved(NET1, CONFIG | {"name": "other"}, "/n")
    saved.store(tmp_path, first)
    assert saved.load(tmp_path, NET1) is None
    saved.store(tmp_path, second)
    assert list(saved.all_saved(tmp_path)) == [first, second]
    saved.remove(tmp_path, second)
    assert list(saved.all_saved(tmp_path)) == [first]


def test_a_pod_of_flannels_plugin_is_found_by_any_interface(tmp_path: Path) -> None:
    (tmp_path / "pod1").write_text('{"name": "cbr0", "type": "bridge"}')
    for attachment in (ETH0, NET1):
        found = saved.load(tmp_path, attachment)
        assert found == Saved(attachment, CONFIG)
    assert (
        found is not None and found.is_one_of({Attachment("pod1", "eth7")}) and not found.is_one_of({Attachment("pod2", "net1")})
    )
    saved.remove(tmp_path, found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"type": "../sh"}', "\0\0\0"])
def test_a_file_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "pod1").write_text(text)
    assert saved.load(tmp_path, ETH0) is None
    assert list(saved.all_saved(tmp_path)) == []


@pytest.mark.parametrize("note", ["1", "[]", '{"ifname": 3, "netns": [], "result": 9}'])
def test_a_damaged_note_is_not_believed(tmp_path: Path, note: str) -> None:
    (tmp_path / "pod1").write_text(f'{{"type": "bridge", "flanpy": {note}}}')
    assert saved.load(tmp_path, ETH0) == Saved(ETH0, {"type": "bridge"})


def test_half_written_files_go_when_they_are_old(tmp_path: Path) -> None:
    (tmp_path / ".pod1.77").write_text("{")
    (tmp_path / ".pod2.78").write_text("{")
    os.utime(tmp_path / ".pod1.77", (0, 0))
    saved.sweep_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".pod2.78"]


def test_a_directory_that_cannot_be_written_is_a_cni_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CniError, match="make dataDir writable") as caught:
        saved.store(tmp_path / "file", Saved(ETH0, CONFIG))
    assert caught.value.code == IO_FAILURE
