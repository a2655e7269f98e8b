"""The file that kept leases outlive the agent in."""

import os
from pathlib import Path

import pytest

from flanpy.agent import kept_leases
from flanpy.agent.kept_leases import FILE, KeptLeases
from flanpy.core.grace import Grace
from flanpy.core.kept_file import TEXT_BYTES_MAX
from tests.unit.test_kept_file import kept

FOREVER = Grace(peer_s=1e9, loss_s=1e9)
ENDLESS_S = 5e8
SOME = dict([kept(1, ENDLESS_S), kept(2, ENDLESS_S, "lost")])


def test_the_next_agent_reads_what_this_one_has_written(tmp_path: Path) -> None:
    ours = KeptLeases(tmp_path)
    assert ours.load(FOREVER) == {}
    assert ours.save(SOME) is None
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert KeptLeases(tmp_path).load(FOREVER) == SOME


def test_the_file_goes_with_the_last_lease_and_follows_changes_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(kept_leases.time, "monotonic", lambda: now_s)
    ours = KeptLeases(tmp_path)
    assert ours.save({}) is None
    assert not (tmp_path / FILE).exists()
    assert ours.save(SOME) is None
    assert ours.save({}) == 1001.0, "too soon"
    assert (tmp_path / FILE).exists()
    now_s = 1001.0
    assert ours.save({}) is None
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("odd", ["link", "fifo", "directory", "large", "bytes"])
def test_what_is_no_file_of_ours_keeps_nothing_and_is_not_waited_for(tmp_path: Path, odd: str) -> None:
    path = tmp_path / FILE
    match odd:
        case "link":
            KeptLeases(tmp_path).save(SOME)
            path.rename(tmp_path / "other")
            path.symlink_to(tmp_path / "other")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "large":
            with path.open("wb") as file:
                file.truncate(TEXT_BYTES_MAX + 1)
        case "bytes":
            path.write_bytes(b"\xff\xfe")
    assert KeptLeases(tmp_path).load(FOREVER) == {}


def test_a_directory_that_cannot_be_written_is_said_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).mkdir()
    ours = KeptLeases(tmp_path)
    ours.load(FOREVER)
    assert ours.save(SOME) is None
    assert "kept leases cannot be written" in caplog.text
