"""`flanpy lab demo`, whole, on a machine of the test's own: it shows what it promises, and leaves nothing however it ends."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import Machine, machine


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        yield made


@pytest.mark.timeout(100)
def test_the_demo_shows_everything_and_leaves_nothing(here: Machine) -> None:
    before = here.state()
    shown = " ".join(here.flanpy("demo").split())  # lines are wrapped at the terminal's width
    signs = [
        "10.5.0.0/16",
        "meet on the bridge",
        "ICMP",
        "plain routing",
        "kernel VXLAN",
        "Ratios are medians of the ratios of each round.",
        "own subnet",
        "removed again",
        "The demo took",
    ]
    assert [sign for sign in signs if sign not in shown] == []
    assert "LOST" not in shown
    assert [entry.name for entry in here.labs.iterdir()] == [".lock"]
    assert here.becomes(before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_demo_that_is_ended_leaves_nothing(here: Machine, number: int, status: int) -> None:
    before = here.state()
    with here.start("demo") as process:
        assert process.stdout is not None
        assert any("etcd" in line for line in process.stdout)
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(20) == status
    assert ("interrupted; everything is removed" in rest) is (status > 0)
    assert here.becomes(before)
    here.flanpy("list")
    assert [entry.name for entry in here.labs.iterdir()] == [".lock"]


def test_a_demo_whose_lab_is_killed_fails(here: Machine) -> None:
    before = here.state()
    with here.start("demo") as process:
        here.sandbox.signal(here.holder("demo"), signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait(30) == 9
    assert here.becomes(before)
