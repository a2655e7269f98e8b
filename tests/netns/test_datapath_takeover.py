"""What an agent makes of a datapath process that an earlier agent has left in an unusual state: on loopback, a socket for a TUN queue."""

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flanpy.datapath import DatapathSettings, process_launch, process_wire
from flanpy.datapath.process import ProcessDatapath, ProcessOptions
from flanpy.datapath.process_launch import FRESH_SOCKET_NAME, SOCKET_NAME, Found, end_process, find_process
from flanpy.datapath.process_pages import F_ADD_SEALS
from flanpy.datapath.process_wire import Connection
from flanpy.datapath.sockets import adopt_underlay, open_underlay
from flanpy.model import ForwardTable

LOOPBACK = IPv4Address("127.0.0.1")


class FakeTun:
    """Something to read from and write to."""

    features: frozenset[str] = frozenset()
    degraded: tuple[str, ...] = ()

    def __init__(self, fds: tuple[int, ...] = ()) -> None:
        ours, self._other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._sockets = [socket.socket(fileno=os.dup(fd)) for fd in fds] or [ours]

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(each.fileno() for each in self._sockets)

    def close(self) -> None:
        for each in (*self._sockets, self._other):
            each.close()


def settings(port: int, spin_us: int = 150) -> DatapathSettings:
    return DatapathSettings("none0", IPv4Address("10.1.0.0"), LOOPBACK, port, spin_us=spin_us)


def table(generation: int) -> ForwardTable:
    return ForwardTable(generation, (), (IPv4Network("10.1.0.0/24"),))


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((str(LOOPBACK), 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def left(port: int, tmp_path: Path) -> Iterator[Path]:
    """The run directory in which an agent has left a process with a table; whatever is in it afterwards is ended."""
    with ProcessDatapath(settings(port), FakeTun(), open_underlay(LOOPBACK, port), ProcessOptions(tmp_path)) as datapath:
        datapath.publish(table(1))
    yield tmp_path
    for path in tmp_path.glob("*.sock*"):
        connection = Connection.open(path)
        if connection is not None:
            end_process(connection, path)


def taken_over(run_dir: Path, found: Found, port: int) -> ProcessDatapath:
    """By a process with other settings."""
    tun, underlay = FakeTun(found.state.tun_fds), adopt_underlay(found.state.udp_fds, LOOPBACK, port)
    assert underlay is not None
    return ProcessDatapath(settings(port, 0), tun, underlay, ProcessOptions(run_dir), found, same_queues=True)


def test_a_process_whose_agent_was_killed_before_the_rename_is_taken_over(left: Path, port: int) -> None:
    (left / SOCKET_NAME).rename(left / FRESH_SOCKET_NAME)
    found = find_process(left)
    assert found is not None
    with taken_over(left, found, port) as datapath:
        assert datapath.process.pid != found.pid
        assert [path.name for path in left.iterdir()] == [SOCKET_NAME]
        assert datapath.stats().generation == 1, "the table has been handed on"


def test_a_table_of_another_layout_is_not_handed_on_but_replaced(left: Path, port: int) -> None:
    """As after an upgrade: the process of the new build waits for a table of its own."""
    found = find_process(left)
    assert found is not None
    assert found.state.table_fd is not None
    memfd = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.write(memfd, b"fltable1" + bytes(400_000))
    fcntl.fcntl(memfd, F_ADD_SEALS, 15)
    os.dup2(memfd, found.state.table_fd, inheritable=False)
    os.close(memfd)
    found.state.table_bytes = 400_008
    with taken_over(left, found, port) as datapath:
        assert datapath.stats().generation == 0
        datapath.publish(table(2))
        assert datapath.stats().generation == 2


def test_counters_that_are_too_short_are_made_anew(left: Path, port: int) -> None:
    found = find_process(left)
    assert found is not None
    assert found.state.pages_fd is not None
    memfd = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    os.dup2(memfd, found.state.pages_fd, inheritable=False)
    os.close(memfd)
    with taken_over(left, found, port) as datapath:
        assert datapath.stats().generation == 1


def test_a_hung_process_of_another_user_is_ended_and_its_port_is_free(
    left: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection.open(left / SOCKET_NAME)
    assert connection is not None
    os.kill(connection.pid, signal.SIGSTOP)
    connection.close()
    monkeypatch.setattr(process_wire, "REPLY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(process_launch, "_user", lambda: (12345, 12345))
    assert find_process(left) is None
    open_underlay(LOOPBACK, port).close()
    assert list(left.iterdir()) == []
