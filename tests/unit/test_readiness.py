"""subnet.env: written when all is ready, again when somebody else has changed it, and not without end against a rival."""

import logging
import os
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flanpy.agent import readiness as module
from flanpy.agent.readiness import WAIT_S, Readiness
from flanpy.model import Subnets
from tests.support.networks import network

CONFIG, SUBNETS = network(), Subnets(IPv4Network("10.5.7.0/24"))


class Clock:
    """The monotonic clock of the module under test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def passes(readiness: Readiness, clock: Clock, seconds: int, mtu_bytes: int = 1472) -> int:
    """The loop over some seconds: a look each second, a pass when the file is due; how many passes that were."""
    count = 0
    for _ in range(seconds):
        clock.now_s += 1.0
        if readiness.is_due(clock.now_s):
            count += 1
            readiness.reached(CONFIG, SUBNETS, mtu_bytes)
    return count


def test_nothing_is_due_before_the_first_sync_and_after_the_file_stands(tmp_path: Path, clock: Clock) -> None:
    readiness = Readiness(tmp_path / "subnet.env", False)
    assert not readiness.is_due(clock.now_s + 100)
    readiness.reached(CONFIG, SUBNETS, 1472)
    assert passes(readiness, clock, 100) == 0


@pytest.mark.parametrize("damage", ["unlink", "write", "replace"])
def test_a_file_that_somebody_changed_is_as_it_was_within_two_seconds(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "subnet.env"
    readiness = Readiness(path, False)
    readiness.reached(CONFIG, SUBNETS, 1472)
    good = path.read_text()
    match damage:
        case "unlink":
            path.unlink()
        case "write":
            path.write_text("FLANNEL_SUBNET=10.9.9.1/24\n")
        case "replace":
            (tmp_path / "other").write_text(good.replace("10.5.7", "10.5.8"))
            (tmp_path / "other").replace(path)
    with caplog.at_level(logging.WARNING):
        assert passes(readiness, clock, 2) == 1
    assert path.read_text() == good
    assert [getattr(record, "event", None) for record in caplog.records] == ["subnet_file_changed"]


def test_a_rival_that_writes_all_the_time_is_fought_ever_more_rarely(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "subnet.env"
    readiness = Readiness(path, False)
    readiness.reached(CONFIG, SUBNETS, 1472)
    count = 0
    for round_ in range(120):
        path.write_text(f"FLANNEL_SUBNET=10.9.{round_}.1/24\n")
        os.utime(path, ns=(round_, round_))
        count += passes(readiness, clock, 1)
    assert 120 / WAIT_S[1] <= count <= 120 / WAIT_S[1] + 5


def test_a_new_subnet_or_mtu_is_written_at_once_even_in_a_wait(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "subnet.env"
    readiness = Readiness(path, False)
    for mtu in (1472, 1372, 1272):
        readiness.reached(CONFIG, SUBNETS, mtu)
        assert f"FLANNEL_MTU={mtu}\n" in path.read_text()


def test_a_write_that_failed_is_tried_again_soon_and_said_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "run"
    blocked.write_text("a file where the directory should be")
    readiness = Readiness(blocked / "subnet.env", False)
    readiness.reached(CONFIG, SUBNETS, 1472)
    assert readiness.problem is not None and "--subnet-file: cannot write" in readiness.problem
    assert passes(readiness, clock, 10) == 3
    blocked.unlink()
    assert passes(readiness, clock, int(WAIT_S[1])) == 1
    assert readiness.ready
    assert [getattr(record, "event", None) for record in caplog.records if record.levelno >= logging.ERROR] == [
        "subnet_file_failed"
    ]
