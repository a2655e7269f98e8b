"""Starts flanpy-datapath, and finds the one that an earlier agent has left: by its socket in the run directory.

datapath.sock       of the process that carries the packets
datapath.sock.new   of one that is about to take over; renamed when it has
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import select
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

from flanpy.datapath.process_build import EXECUTABLE as _BUILT
from flanpy.datapath.process_wire import Connection, State
from flanpy.errors import DatapathError

EXECUTABLE = Path(__file__).with_name(_BUILT.name)
SOCKET_NAME = "datapath.sock"
FRESH_SOCKET_NAME = "datapath.sock.new"
USERS = ("flanpy", "nobody")
"""Who the process runs as: the first that this machine has."""
END_TIMEOUT_S = 2.0
_NOBODY = 65534
_LISTENER_FD, _CONNECTION_FD = 3, 4


class Found:
    """A process that an earlier agent has left, with its connection and descriptors."""

    def __init__(self, path: Path, connection: Connection, state: State) -> None:
        self.path = path
        self.connection = connection
        self.state = state
        self.has_ended = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.connection.pid

    def end(self) -> None:
        """Stop it; returns when it has left its last packet. Its descriptors are still ours."""
        if not self.has_ended:
            end_process(self.connection, self.path)
            self.has_ended = True

    def move(self, path: Path) -> None:
        """Its socket is found there from now on."""
        with suppress(FileNotFoundError):
            self.path.rename(path)
        self.path = path

    def close(self, *, hang_up: bool = True) -> None:
        """Close the descriptors that it has given, and hang up: a process that has not been ended goes on."""
        self.state.close()
        if hang_up:
            self.connection.close()


def find_process(run_dir: Path) -> Found | None:
    """The process of this run directory; one beside it that was about to take over from it, or has hung, is ended.

    A process that does not answer cannot be adopted: its descriptors cannot be had.
    """
    found: Found | None = None
    for path in (run_dir / SOCKET_NAME, run_dir / FRESH_SOCKET_NAME):
        connection = Connection.open(path)
        if connection is None:
            continue
        try:
            state = connection.hello()
        except DatapathError:
            kill(connection)
            await_end(connection, path)  # until then it has name and port
            continue
        there = Found(path, connection, state)
        if state.running and (found is None or (found.state.table_fd is None and state.table_fd is not None)):
            found, there = there, found or there
        if there is not found:
            there.end()
            there.close()
    return found


def is_running(run_dir: Path) -> int | None:
    """The pid of the process of this run directory, None when there is none; nothing is changed or adopted."""
    connection = Connection.open(run_dir / SOCKET_NAME)
    if connection is None:
        return None
    connection.close()
    return connection.pid


def launch(run_dir: Path, executable: Path = EXECUTABLE) -> tuple[Connection, Path]:
    """Start a process that waits for START; its connection and its socket's path. Raises DatapathError."""
    path = run_dir / FRESH_SOCKET_NAME
    user, group = _user()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with theirs, _bound(path) as listener:
            pid = _spawn(executable, [executable.name, str(user), str(group)], listener, theirs)
    except OSError as exc:
        ours.close()
        path.unlink(missing_ok=True)
        reason = (
            f"{exc.strerror}; install flanpy anew, or `make build` in a checkout" if isinstance(exc, FileNotFoundError) else exc
        )
        raise DatapathError(f"{executable}: the datapath process cannot be started: {reason}") from exc
    return Connection(ours, pid), path


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before the process listens; a umask would be that of all threads
    except BaseException:
        listener.close()
        raise
    return listener


def _spawn(executable: Path, argv: list[str], listener: socket.socket, connection: socket.socket) -> int:
    """A session of its own: no signal to the agent's group or terminal reaches it. Nothing of our environment goes along."""
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, _CONNECTION_FD + 1) for each in (listener, connection)]
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
            (os.POSIX_SPAWN_DUP2, high[0], _LISTENER_FD),
            (os.POSIX_SPAWN_DUP2, high[1], _CONNECTION_FD),
        ]
        handled = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
        return os.posix_spawn(executable, argv, {}, file_actions=actions, setsid=True, setsigmask=[], setsigdef=handled)
    finally:
        for fd in high:
            os.close(fd)


def _user() -> tuple[int, int]:
    for name in USERS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    return _NOBODY, _NOBODY


def end_process(connection: Connection, path: Path) -> str:
    """Stop it, by force if it does not listen; its socket goes. Returns how it ended, as far as we can know."""
    with suppress(DatapathError):
        connection.stop()
        return await_end(connection, path)
    kill(connection)
    return await_end(connection, path)


def await_end(connection: Connection, path: Path) -> str:
    """Wait for a process that is ending, reap it if it is ours, and take away its socket; how it ended."""
    pid = connection.pid
    if not connection.await_hang_up(END_TIMEOUT_S):
        kill(connection)
        connection.await_hang_up(END_TIMEOUT_S)
    connection.close()
    with suppress(OSError):
        path.unlink()
    _await_exit(pid)
    return _reap(pid)


def _await_exit(pid: int) -> None:
    """It hangs up a moment before its other descriptors are closed, the underlay's port among them: wait for these, too."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        poller = select.poll()
        poller.register(process, select.POLLIN)
        poller.poll(END_TIMEOUT_S * 1e3)
    finally:
        os.close(process)


def _reap(pid: int) -> str:
    """How it ended. It hangs up before it can be reaped: that much is waited for."""
    deadline_s = time.monotonic() + END_TIMEOUT_S
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
        while ended == 0 and time.monotonic() < deadline_s:
            time.sleep(0.001)
            ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # an earlier agent's child
        return "has ended"
    code = os.waitstatus_to_exitcode(status)
    return "has ended" if ended == 0 else f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has exited with {code}"


def kill(connection: Connection) -> None:
    """SIGKILL to the process at the other end. While it has not hung up it lives, so its pid cannot be another's by now.

    The signal comes from our executable as the process's own user, for we have no CAP_KILL, and as nobody it could hit nobody of ours.
    """
    if connection.is_lost:
        return
    user, group = connection.user or _user()  # an earlier agent may have found another one
    with suppress(OSError):
        helper = os.posix_spawn(EXECUTABLE, [EXECUTABLE.name, str(user), str(group), "--end", str(connection.pid)], {})
        os.waitpid(helper, 0)


def version_of(executable: Path) -> str:
    """What tells one build from another: the digest of the file."""
    try:
        return hashlib.sha256(executable.read_bytes()).hexdigest()
    except OSError as exc:
        raise DatapathError(
            f"{executable}: cannot be read: {exc.strerror}; install flanpy anew, or `make build` in a checkout"
        ) from exc
