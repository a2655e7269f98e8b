"""What commands say of a host whose agent does not answer: one that hangs needs another cure than one that has ended."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flanpy.cli.left import left_behind

START, RESTART = "`systemctl start flanpy`", "`systemctl restart flanpy`"


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A datapath process listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as datapath:
        datapath.bind(str(tmp_path / "datapath.sock"))
        datapath.listen()
        yield tmp_path


def test_an_agent_that_has_ended_is_started_again(run_dir: Path) -> None:
    assert START in left_behind(run_dir)
    with socket.socket(socket.AF_UNIX) as control:  # one that was killed leaves its socket
        control.bind(str(run_dir / "control.sock"))
    said = left_behind(run_dir)
    assert START in said
    assert RESTART not in said


@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_an_agent_that_hangs_is_ended_first(run_dir: Path, waiting: int) -> None:
    """However many wait to be let in; a cleanup would be refused."""
    with socket.socket(socket.AF_UNIX) as control, ExitStack() as clients:
        control.bind(str(run_dir / "control.sock"))
        control.listen(0)
        for _ in range(waiting):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(run_dir / "control.sock"))
        said = left_behind(run_dir)
    assert RESTART in said
    assert START not in said
    assert "cleanup" not in said
