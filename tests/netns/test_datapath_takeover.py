"""What an agent makes of a datapath process that an earlier agent has left in an unusual state: on loopback, a socket for a TUN queue."""

import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flanpy.datapath import DatapathSettings, process_handle, process_life, process_record, process_wire
from flanpy.datapath.process import ProcessDatapath, ProcessOptions
from flanpy.datapath.process_find import Finder, Found, is_running
from flanpy.datapath.process_handle import Process
from flanpy.datapath.process_launch import FRESH_SOCKET_NAME, SOCKET_NAME
from flanpy.datapath.process_life import Life
from flanpy.datapath.process_pages import F_ADD_SEALS, is_pages, is_table, new_pages
from flanpy.datapath.process_wire import Connection, Slow
from flanpy.datapath.sockets import adopt_underlay, open_underlay
from flanpy.errors import DatapathError, DatapathWaits
from flanpy.model import ForwardTable
from tests.support.clusters import eventually
from tests.support.processes import use_of

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
    with suppress(ProcessLookupError, FileNotFoundError):
        for path in tmp_path.glob("*.sock*"):
            there = Process.connect(path)
            if there is not None:
                os.kill(there.pid, signal.SIGKILL)
                there.life.await_end(5)
                there.close()


def found_in(run_dir: Path) -> Found:
    found = Finder(run_dir).look()
    assert found is not None
    return found


def pid_at(path: Path) -> int:
    there = Process.connect(path)
    assert there is not None
    there.close()
    return there.pid


def lives(pid: int) -> bool:
    """A zombie of ours has ended."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return Path(f"/proc/{pid}").exists()


def taken_over(run_dir: Path, found: Found, port: int) -> ProcessDatapath:
    """By a process with other settings."""
    tun, underlay = FakeTun(found.state.tun_fds), adopt_underlay(found.state.udp_fds, LOOPBACK, port)
    assert underlay is not None
    return ProcessDatapath(settings(port, 0), tun, underlay, ProcessOptions(run_dir), found, same_queues=True)


def test_a_process_whose_agent_was_killed_before_the_rename_is_taken_over(left: Path, port: int) -> None:
    (left / SOCKET_NAME).rename(left / FRESH_SOCKET_NAME)
    found = found_in(left)
    with taken_over(left, found, port) as datapath:
        assert datapath.process.pid != found.pid
        assert pid_at(left / SOCKET_NAME) == found.pid, "it goes on by its table"
        assert datapath.stats().generation == 1, (
            "which is the one in use: a process that has none says nothing in the shared pages"
        )
        datapath.publish(table(2))
        assert {path.name for path in left.iterdir()} == {SOCKET_NAME, process_record.RECORD_NAME}
        assert pid_at(left / SOCKET_NAME) == datapath.process.pid
        assert not lives(found.pid)
        assert datapath.stats().generation == 2


def send_from_31(port: int) -> None:
    for number in range(1, 32):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((f"127.0.0.{number}", 0))
            sender.sendto(bytes(40), (str(LOOPBACK), port))


def test_a_process_of_an_earlier_build_reads_all_senders_until_another_has_taken_over(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has one socket, and knows nothing of those that join it on the port."""
    with monkeypatch.context() as earlier:
        earlier.setattr("flanpy.datapath.sockets.SOCKETS", 1)
        with ProcessDatapath(settings(port), FakeTun(), open_underlay(LOOPBACK, port), ProcessOptions(tmp_path)) as datapath:
            datapath.publish(table(1))
    with taken_over(tmp_path, found_in(tmp_path), port) as datapath:

        def read() -> int:
            return datapath.stats().counters["udp_received_segments"]

        send_from_31(port)
        eventually(lambda: read() == 31, 5, "the earlier process has read them all")
        datapath.publish(table(2))
        send_from_31(port)
        eventually(lambda: read() == 62, 5, "the new one has")
        datapath.teardown()


def test_a_table_of_another_layout_is_not_handed_on_but_replaced(left: Path, port: int) -> None:
    """As after an upgrade: the process of the new build waits for a table of its own."""
    found = found_in(left)
    assert found.state.table_fd is not None
    memfd = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.write(memfd, b"fltable1" + bytes(400_000))
    fcntl.fcntl(memfd, F_ADD_SEALS, 15)
    os.dup2(memfd, found.state.table_fd, inheritable=False)
    os.close(memfd)
    found.state.table_bytes = 400_008
    with taken_over(left, found, port) as datapath:
        datapath.publish(table(2))
        assert datapath.stats().generation == 2


def test_counters_that_are_too_short_are_made_anew(left: Path, port: int) -> None:
    found = found_in(left)
    assert found.state.pages_fd is not None
    memfd = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    os.dup2(memfd, found.state.pages_fd, inheritable=False)
    os.close(memfd)
    with taken_over(left, found, port) as datapath:
        datapath.publish(table(2))
        assert datapath.stats().generation == 2


def await_found(finder: Finder) -> Found | None:
    """As the agent does it: asked again while it waits."""
    result: list[Found | None] = []

    def look() -> bool:
        with suppress(DatapathWaits):
            result.append(finder.look())
        return bool(result)

    eventually(look, 15, "it is known what is there")
    return result[0]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs is given up after a second."""
    monkeypatch.setattr(process_wire, "REPLY_TIMEOUT_S", 1.0)
    monkeypatch.setattr(process_handle, "STEP_S", 0.3)


@pytest.mark.usefixtures("hasty")
def test_a_hung_process_is_ended_and_its_port_is_free(left: Path, port: int) -> None:
    pid = pid_at(left / SOCKET_NAME)
    os.kill(pid, signal.SIGSTOP)
    assert await_found(Finder(left)) is None
    open_underlay(LOOPBACK, port).close()
    assert list(left.iterdir()) == []
    assert not lives(pid)


def test_a_process_that_cannot_be_ended_keeps_its_socket_and_is_said(
    left: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for an agent without CAP_KILL whose helper may not become the process's user; then it may, and the process ends."""
    found = found_in(left)
    assert found.process is not None
    os.kill(found.pid, signal.SIGSTOP)

    def not_permitted(pidfd: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(process_life.signal, "pidfd_send_signal", not_permitted)
    found.process.life.user = (12345, 12345)
    with pytest.raises(
        DatapathWaits, match=rf"process {found.pid} of user 12345 cannot be ended \(Operation not permitted\).*kill -9"
    ):
        found.process.kill(1)
    assert (left / SOCKET_NAME).exists()
    assert lives(found.pid)
    status = Path(f"/proc/{found.pid}/status").read_text().split("Uid:\t")[1].split()[0]
    found.process.life.user = (int(status), int(status))
    assert found.process.kill(5) in ("has ended", "was ended by SIGKILL"), "by the helper, which has become its user"
    assert list(left.iterdir()) == []
    found.close()


def test_a_process_without_room_for_its_descriptors_here_goes_on(left: Path) -> None:
    """Out of descriptors on our side: the answer is cut (MSG_CTRUNC). The process has no part in it."""
    pid = pid_at(left / SOCKET_NAME)
    finder = Finder(left)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 6, before[1]))
        filled = []
        with suppress(OSError):
            while True:
                filled.append(os.dup(0))
        for fd in filled[:3]:
            os.close(fd)  # for a socket, a pidfd, and one descriptor of four
        for fd in filled[3:]:
            stack.callback(os.close, fd)
        with pytest.raises(DatapathWaits, match="descriptors"):
            finder.look()
    found = await_found(finder)
    assert found is not None
    assert (found.pid, lives(pid)) == (pid, True)
    found.close()


def test_a_process_that_may_not_pass_its_descriptors_on_goes_on(left: Path) -> None:
    """Somebody asks for them and does not take them: at some point the kernel refuses more of this user (ETOOMANYREFS)."""
    pid = pid_at(left / SOCKET_NAME)
    finder, greedy = Finder(left), []
    hello = process_wire._bare(process_wire.lib.FP_MESSAGE_HELLO)
    for _ in range(6):
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened.connect(str(left / SOCKET_NAME))
        greedy.append(opened)
        for _ in range(4):
            opened.send(hello)
    try:
        with pytest.raises(DatapathWaits, match="cannot pass its descriptors on now"):
            finder.look()
        assert (lives(pid), pid_at(left / SOCKET_NAME)) == (True, pid)
    finally:
        for opened in greedy:
            opened.close()
    found = await_found(finder)
    assert found is not None
    assert found.pid == pid
    found.close()


class Fake:
    """A process of our own that listens where a datapath process would, and does with each connection what it is told to."""

    def __init__(self, path: Path, answer: Callable[[socket.socket], None]) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.pid = os.fork()
        if self.pid == 0:
            with suppress(BaseException):
                self.listener.listen(8)
                while True:
                    answer(self.listener.accept()[0])
            os._exit(0)
        self.listener.close()
        eventually(lambda: Process.connect(path) is not None, 5, "it listens")

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def test_one_that_hangs_up_though_it_lives_keeps_its_socket(tmp_path: Path) -> None:
    fake = Fake(tmp_path / SOCKET_NAME, lambda connection: connection.close())
    try:
        with pytest.raises(DatapathWaits, match=f"process {fake.pid}: .*, though it lives"):
            Finder(tmp_path).look()
        assert (tmp_path / SOCKET_NAME).exists()
        assert lives(fake.pid)
    finally:
        fake.end()
    assert Finder(tmp_path).look() is None
    assert list(tmp_path.iterdir()) == []


def test_one_that_takes_no_connection_is_somebody(tmp_path: Path) -> None:
    """Stopped for so long that its backlog is full."""
    path = tmp_path / SOCKET_NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
                waiting.connect(str(path))
        with pytest.raises(DatapathWaits, match="takes no connection"):
            Finder(tmp_path).look()
        assert process_handle.is_somebody(path) == 0
        assert path.exists()


@pytest.mark.parametrize("by", ["inode", "start"])
def test_one_that_listens_no_more_is_found_and_ended(left: Path, port: int, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if somebody who has taken it over had closed its socket, to go on reading beside the next."""
    pid = pid_at(left / SOCKET_NAME)
    if by == "start":
        monkeypatch.setattr(process_record, "_inode_of", lambda pid: 7)
        process_record.write(left, pid, (1, 1))
    assert f" {by}:" in (left / process_record.RECORD_NAME).read_text()
    (left / SOCKET_NAME).unlink()
    assert await_found(Finder(left)) is None
    assert not lives(pid)
    open_underlay(LOOPBACK, port).close()
    assert list(left.iterdir()) == []


def test_a_pid_that_is_another_s_by_now_is_left_alone(left: Path) -> None:
    record = left / process_record.RECORD_NAME
    written = record.read_text()
    child = subprocess.Popen(["sleep", "60"])
    try:
        words = written.split()
        for forged in (
            f"{child.pid} {' '.join(words[1:])}\n",  # the pid is another's
            f"{child.pid} 0 0 inode:1 {words[4]}\n",
            f"{words[0]} 0 0 {words[3]} 0-0\n",  # another boot
            "1 0 0 inode:1 x\n",
            "",
            "x" * 1000,
        ):
            record.write_text(forged)
            assert process_record.recall(left) is None
        found = found_in(left)
        assert child.poll() is None
        found.close()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("old_kernel", [False, True])
def test_a_pid_is_not_taken_for_a_process(left: Path, old_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its life is known by a pidfd, also where the kernel does not give one for a socket (before Linux 6.5)."""
    if old_kernel:
        monkeypatch.setattr(process_life, "SO_PEERPIDFD", 9999)
    there = Process.connect(left / SOCKET_NAME)
    assert there is not None
    assert not there.life.has_ended
    os.kill(there.pid, signal.SIGKILL)
    assert there.life.await_end(5)
    there.close()
    if old_kernel:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as pair:
            pair.bind(str(left / "other"))
            pair.listen(1)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connected:
                connected.connect(str(left / "other"))
                assert Life.of_peer(connected, lambda: False).has_ended, "nobody listens there any more: the pid may be another's"


# ------------------------------------------------------------------------------------------------ in somebody else's hands


def reply(
    kind: int, *, error: int = 0, body: bytes = b"", magic: int = process_wire.lib.FP_PROTOCOL_MAGIC, more: int = 0
) -> bytes:
    return struct.pack("=IHHIi", magic, 2, kind, 16 + len(body) + more, error) + body


HELLO_REPLY = 0x8001


@pytest.mark.parametrize(
    "answer",
    [
        b"x",
        reply(HELLO_REPLY),
        reply(HELLO_REPLY, body=bytes(103)),
        reply(HELLO_REPLY, error=-(2**31)),
        reply(HELLO_REPLY, error=1),
        reply(HELLO_REPLY, magic=1),
        reply(HELLO_REPLY, more=1),
        reply(0x8002, body=bytes(200)),
        reply(HELLO_REPLY, body=b"\xff" * 5000),
        reply(HELLO_REPLY, error=-22),
    ],
    ids=["a byte", "no state", "short", "huge error", "no error", "magic", "length", "kind", "cut", "refusal"],
)
def test_a_process_that_talks_nonsense_is_ended(tmp_path: Path, answer: bytes) -> None:
    """It is not believed, and costs the agent no more than a DatapathError."""

    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.send(answer)
        connection.recv(4096)

    fake = Fake(tmp_path / SOCKET_NAME, talk)
    try:
        assert await_found(Finder(tmp_path)) is None
        assert list(tmp_path.iterdir()) == []
        assert not lives(fake.pid)
    finally:
        fake.end()


def test_descriptors_of_another_kind_are_not_taken_for_sockets_or_counters(left: Path, port: int) -> None:
    """A process that has been taken over by somebody gives what it has, in another order."""
    found = found_in(left)
    state = found.state
    assert state.pages_fd is not None
    assert state.table_fd is not None
    for odd in (state.pages_fd, state.table_fd, state.tun_fds[0]):
        assert adopt_underlay((odd,), LOOPBACK, port) is None
    assert not is_pages(state.table_fd, 1, 2)
    assert not is_pages(state.udp_fds[0], 1, 2)
    assert not is_table(state.pages_fd, os.fstat(state.pages_fd).st_size)
    assert not is_table(state.table_fd, state.table_bytes - 1)
    found.close()


def test_a_socket_that_was_connected_hears_of_all_again(left: Path, port: int) -> None:
    """The process may connect a socket (it asks for path MTUs so); the underlay's would be deaf to all peers but one."""
    found = found_in(left)
    with socket.socket(fileno=os.dup(found.state.udp_fds[0])) as theirs:
        theirs.connect(("127.0.0.1", 9))
    underlay = adopt_underlay(found.state.udp_fds, LOOPBACK, port)
    assert underlay is not None
    with socket.socket(fileno=os.dup(underlay.fds[0])) as ours:
        with pytest.raises(OSError, match="not connected"):
            ours.getpeername()
        assert ours.getsockname() == ("127.0.0.1", port)
    underlay.close()
    found.close()


def test_counters_of_ones_are_figures_and_nothing_else() -> None:
    """Whatever is in the pages: nothing in them is a length or a place."""
    pages = new_pages(1, 2)
    with mmap.mmap(pages.fd, 0) as mapped:
        mapped[:] = b"\xff" * len(mapped)
    stats = pages.stats()
    assert stats.generation == 2**64 - 1
    assert {count.packets for count in stats.verdicts.values()} == {2**64 - 2}
    assert list(pages.failures()) == [(0, "error -1")]
    assert pages.peers([LOOPBACK])[LOOPBACK].sent.packets == 0
    with mmap.mmap(pages.fd, 0) as mapped:
        size = len(mapped)
        mapped[:] = b"\x7f" * size
    assert list(pages.failures()) == [(0, f"error {0x7F7F7F7F}")]
    pages.close()


def test_neither_side_can_cut_pages_or_a_table_short(left: Path) -> None:
    """SIGBUS would be the end of the other; the seals cannot be taken back."""
    found = found_in(left)
    for fd in (found.state.pages_fd, found.state.table_fd):
        assert fd is not None
        size = os.fstat(fd).st_size
        for length in (0, size - 1, size + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, length)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, F_ADD_SEALS, 1)
    with pytest.raises(PermissionError):
        os.pwrite(found.state.table_fd or -1, b"x", 0)
    found.close()


def test_a_process_whose_worker_has_failed_is_not_adopted_again(left: Path, port: int) -> None:
    found = found_in(left)
    assert found.state.pages_fd is not None
    with mmap.mmap(found.state.pages_fd, 0) as mapped:
        at = process_wire.ffi.offsetof("struct fp_stats", "failed")
        mapped[at : at + 4] = (5).to_bytes(4, sys.byteorder)
    tun, underlay = FakeTun(found.state.tun_fds), adopt_underlay(found.state.udp_fds, LOOPBACK, port)
    assert underlay is not None
    with ProcessDatapath(settings(port), tun, underlay, ProcessOptions(left), found, same_queues=True) as datapath:
        datapath.publish(table(2))
        datapath.check()
        assert datapath.process.pid != found.pid


# ------------------------------------------------------------------------------------------------ killed on the way


def kill_at(datapath: ProcessDatapath, old: int, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that is about to take over is killed right before, or right after, this request of the take-over."""
    when, name = step.split()
    asked = getattr(Connection, name)

    def killing(self: Connection, *arguments: Any) -> Any:
        victim = datapath.process.pid
        if when == "after":
            result = asked(self, *arguments)
        os.kill(victim, signal.SIGKILL)
        life = Life.of_child(victim, (0, 0))
        assert life.await_end(5), "its last thread too, which holds the connection open"
        life.close()
        monkeypatch.setattr(Connection, name, asked)
        return result if when == "after" else asked(self, *arguments)

    monkeypatch.setattr(Connection, name, killing)


@pytest.mark.parametrize("step", ["before hold", "after hold", "before stop", "after stop", "before table", "after table"])
def test_a_death_of_the_new_one_leaves_a_process_with_a_table(
    left: Path, port: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_in(left)
    with taken_over(left, found, port) as datapath:
        first = datapath.process.pid
        kill_at(datapath, found.pid, step, monkeypatch)
        wanted = table(2)

        def published() -> bool:
            with suppress(DatapathWaits):
                datapath.publish(wanted)
                return True
            assert lives(found.pid) or datapath.process.restarts, (
                "the old one goes on, or another has been started with the table"
            )
            return False

        eventually(published, 10, "the table is published")
        with suppress(DatapathWaits):
            datapath.check()
        eventually(lambda: checks_well(datapath), 10, "the process is well")
        assert datapath.process.pid not in (first, found.pid)
        assert datapath.stats().generation == 2
        assert not lives(found.pid)


def checks_well(datapath: ProcessDatapath) -> bool:
    with suppress(DatapathWaits):
        datapath.check()
        return True
    return False


def die_before(datapath: ProcessDatapath, request: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that publishes a table is killed before it makes this request: as if by SIGKILL, all that it holds is closed."""

    class Killed(BaseException):
        pass

    def killed(*arguments: Any) -> None:
        raise Killed

    monkeypatch.setattr(Connection, request, killed)
    with pytest.raises(Killed):
        datapath.publish(table(2))
    datapath._stop_watching()  # it has a copy of the connection
    datapath._running().connection.close()
    monkeypatch.undo()


@pytest.mark.parametrize("step", ["hold", "stop"])
def test_a_death_of_the_agent_on_the_way_leaves_a_process_with_a_table(
    left: Path, port: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before it has asked for the next thing, as if by SIGKILL: all that it holds is closed by the kernel."""

    found = found_in(left)
    datapath = taken_over(left, found, port)
    fresh, old = datapath.process.pid, found.pid
    die_before(datapath, {"hold": "stop", "stop": "table"}[step], monkeypatch)
    assert lives(old) == (step == "hold")
    assert lives(fresh)
    again = await_found(Finder(left))
    assert again is not None
    assert again.state.table_fd is not None, "the old one goes on, or the new one has taken what it held"
    assert again.pid == (old if step == "hold" else fresh)
    again.close()
    datapath.close()


@pytest.mark.parametrize("hung", [False, True], ids=["killed", "stopped"])
def test_two_processes_never_read_the_same_queues_and_the_second_goes_on_when_the_first_has_ended(
    left: Path, port: int, hung: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent dies between HOLD and STOP, and no other comes: one process reads and counts, and the other follows it."""

    found = found_in(left)
    datapath = taken_over(left, found, port)
    die_before(datapath, "stop", monkeypatch)

    def counted(name: str) -> int:
        return datapath.stats().counters[name]

    tables = counted("tables")
    send_from_31(port)
    eventually(lambda: counted("udp_received_segments") == 31, 5, "each is counted once")
    assert (counted("tables"), datapath.stats().generation) == (tables, 1), "the second waits"
    if hung:
        os.kill(found.pid, signal.SIGSTOP)  # it may go on at any time, so it is not passed over
        os.waitpid(found.pid, os.WUNTRACED)  # every thread of it
        send_from_31(port)
        assert counted("udp_received_segments") == 31
    os.kill(found.pid, signal.SIGKILL)
    send_from_31(port)
    eventually(lambda: counted("udp_received_segments") == (93 if hung else 62), 5, "the second reads what has waited, too")
    assert datapath.stats().generation == 2
    assert pid_at(left / FRESH_SOCKET_NAME) == datapath.process.pid
    assert is_running(left) == datapath.process.pid, "the next agent takes the device and the port for ours"
    datapath.close()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGCONT], ids=["killed", "goes-on"])
def test_an_agent_that_stops_while_the_old_process_has_not_ended_leaves_one_with_a_table(
    left: Path, port: int, signal_number: int
) -> None:
    """STOP waits in the socket of one that is stopped: it reads it as soon as it goes on, whoever has hung up meanwhile."""
    found = found_in(left)
    datapath = taken_over(left, found, port)
    fresh = datapath.process.pid
    os.kill(found.pid, signal.SIGSTOP)
    with pytest.raises(DatapathWaits, match="no answer"):
        datapath.publish(table(2))
    datapath.close()
    os.kill(found.pid, signal_number)
    eventually(lambda: not lives(found.pid), 5, "the old one has ended")
    again = await_found(Finder(left))
    assert again is not None, "nobody carries packets"
    assert again.pid == fresh
    assert again.state.table_fd is not None, "it has taken what it held"
    again.close()


def test_a_hung_process_is_seen_within_seconds_and_never_waited_for(left: Path, port: int) -> None:
    """SIGSTOP: no call takes longer than a second, what is wrong is said meanwhile, and another takes its place."""
    found = found_in(left)
    tun, underlay = FakeTun(found.state.tun_fds), adopt_underlay(found.state.udp_fds, LOOPBACK, port)
    assert underlay is not None
    with ProcessDatapath(settings(port), tun, underlay, ProcessOptions(left), found, same_queues=True) as datapath:
        assert datapath.process.adopted
        os.kill(found.pid, signal.SIGSTOP)
        said: list[str] = []
        longest_s = 0.0
        clock = process_wire.time.monotonic
        wanted = table(2)
        ends_s = clock() + 30
        while datapath.process.pid == found.pid and clock() < ends_s:
            begun_s = clock()
            try:
                datapath.check()
                datapath.publish(wanted)
            except DatapathWaits as error:
                said.append(str(error))
            longest_s = max(longest_s, clock() - begun_s)
        assert datapath.process.pid != found.pid
        assert longest_s < 2.5, "a second; the rest is room for a busy machine"
        assert any("no answer for" in line or "has not answered for" in line for line in said)
        assert not lives(found.pid)
        datapath.publish(wanted)
        assert datapath.stats().generation == 2


def late(directory: Path, first: str) -> Path:
    """An executable that does this before it becomes the real one, the first time that it is started."""
    script, mark = directory / "late", directory / "late.begun"
    script.write_text(f'#!/bin/sh\n[ -e {mark} ] || {{ : >{mark}; {first}; }}\nexec {process_life.EXECUTABLE} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("first", "beside"), [("sleep 2.2", False), ("kill -STOP $$", True)], ids=["slow, alone", "stopped, beside another"]
)
def test_a_process_that_is_slow_to_start_is_never_waited_for(
    left: Path, port: int, tmp_path_factory: pytest.TempPathFactory, first: str, beside: bool
) -> None:
    """No call takes longer than a second, the old one reads meanwhile, and one that does not start at all is replaced."""
    found = found_in(left)
    options = ProcessOptions(left, executable=late(tmp_path_factory.mktemp("bin"), first))
    if not beside:
        found.end()
    tun, underlay = FakeTun(found.state.tun_fds), adopt_underlay(found.state.udp_fds, LOOPBACK, port)
    assert underlay is not None
    clock, wanted, longest_s, said = process_wire.time.monotonic, table(2), 0.0, set[str]()
    begun_s = clock()
    with ProcessDatapath(settings(port, 0), tun, underlay, options, found, same_queues=True) as datapath:

        def published() -> bool:
            nonlocal begun_s, longest_s
            try:
                datapath.publish(wanted)
                return True
            except DatapathWaits as error:
                said.add(str(error))
            finally:
                longest_s, begun_s = max(longest_s, clock() - begun_s), clock()
            with suppress(DatapathWaits):
                datapath.check()
            return False

        asked, longest_s, begun_s = datapath.process.pid, clock() - begun_s, clock()
        if beside:
            send_from_31(port)
            eventually(lambda: datapath.stats().counters["udp_received_segments"] == 31, 5, "the old one reads")
            begun_s = clock()
        eventually(published, 20, "the table is published")
        assert longest_s < 2, "a second; the rest is room for a busy machine"
        assert any("no answer for" in line for line in said)
        assert (datapath.process.pid == asked, datapath.process.restarts) == ((True, 0) if "sleep" in first else (False, 1))
        assert not lives(found.pid)
        assert (datapath.stats().generation, pid_at(left / SOCKET_NAME)) == (2, datapath.process.pid)
        datapath.teardown()


def test_what_a_process_does_without_is_known_when_it_has_started(port: int, tmp_path: Path) -> None:
    nobody = 65534
    options = ProcessOptions(tmp_path, user=(nobody, nobody), executable=late(tmp_path, "sleep 1.2"))
    with ProcessDatapath(settings(port), FakeTun(), open_underlay(LOOPBACK, port), options) as datapath:
        assert datapath.degraded == (), "it has not said yet"
        eventually(lambda: checks_well(datapath) and datapath.degraded != (), 10, "it has")
        assert "it runs as nobody" in datapath.degraded[0]
        datapath.teardown()


def test_descriptors_and_threads_are_flat_after_a_hundred_restarts(left: Path, port: int) -> None:
    found = found_in(left)
    tun, underlay = FakeTun(found.state.tun_fds), adopt_underlay(found.state.udp_fds, LOOPBACK, port)
    assert underlay is not None
    before: tuple[int, int] | None = None
    with ProcessDatapath(settings(port), tun, underlay, ProcessOptions(left), found, same_queues=True) as datapath:
        for number in range(100):
            os.kill(datapath.process.pid, signal.SIGKILL)
            datapath._launched_s = float("-inf")  # it has lived for long
            eventually(lambda: checks_well(datapath), 10, "another has been started")
            datapath.publish(table(number + 2))
            if number == 4:
                before = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
        assert datapath.process.restarts == 100
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before  # noqa: PTH208


def test_a_process_without_descriptors_does_not_spin_and_serves_again(port: int, tmp_path: Path) -> None:
    """accept fails with EMFILE while somebody waits: poll would return at once, for ever. It runs as we do, so that we may limit it."""
    options = ProcessOptions(tmp_path, user=(os.getuid(), os.getgid()))
    with ExitStack() as stack:
        datapath = ProcessDatapath(settings(port), FakeTun(), open_underlay(LOOPBACK, port), options)
        stack.callback(datapath.teardown)
        proc = Path(f"/proc/{datapath.process.pid}")
        before = resource.prlimit(datapath.process.pid, resource.RLIMIT_NOFILE)
        opened = len(list((proc / "fd").iterdir()))
        resource.prlimit(datapath.process.pid, resource.RLIMIT_NOFILE, (opened, before[1]))
        there = Process.connect(tmp_path / SOCKET_NAME)
        assert there is not None
        stack.callback(there.close)
        with pytest.raises(Slow):
            there.connection.hello(0.1)
        first = use_of(proc)
        with pytest.raises(Slow):
            there.connection.hello(1.0)  # the time over which the use of CPU is taken
        assert first.cpu_share(use_of(proc)) < 0.2, "ten attempts a second"
        datapath.check()
        resource.prlimit(datapath.process.pid, resource.RLIMIT_NOFILE, before)
        there.connection.hello(5.0).close()


def test_a_refused_table_leaves_the_old_process_at_work(left: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_in(left)
    with taken_over(left, found, port) as datapath:
        monkeypatch.setattr(
            Connection, "hold", lambda self, fd, size, other, within_s: Connection.table(self, fd, size + 1, within_s)
        )
        with pytest.raises(DatapathError, match="Invalid argument"):
            datapath.publish(table(2))
        assert lives(found.pid)
