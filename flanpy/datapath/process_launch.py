"""Starts flanpy-datapath.

datapath.sock       of the process that carries the packets
datapath.sock.new   of one that is about to take over; renamed when it has
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

from flanpy.datapath.process_handle import Process
from flanpy.datapath.process_life import EXECUTABLE, Life
from flanpy.datapath.process_wire import Connection
from flanpy.errors import DatapathError, reason_of

SOCKET_NAME = "datapath.sock"
FRESH_SOCKET_NAME = "datapath.sock.new"
_LISTENER_FD, _CONNECTION_FD = 3, 4


def launch(run_dir: Path, user: tuple[int, int], executable: Path = EXECUTABLE) -> Process:
    """Start a process that waits for START. Raises DatapathError.

    No other process has its socket at the place beside, for whoever is there has been found and ended.
    """
    path = run_dir / FRESH_SOCKET_NAME
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with theirs, _bound(path) as listener:
            pid = _spawn(executable, [executable.name, *map(str, user)], listener, theirs)
        return Process(path, Connection(ours, pid), _life(pid, user))
    except OSError as exc:
        ours.close()
        path.unlink(missing_ok=True)
        cure = "; install flanpy anew, or `make build` in a checkout" if isinstance(exc, FileNotFoundError) else ""
        raise DatapathError(f"{executable}: the datapath process cannot be started: {reason_of(exc)}{cure}") from exc


def _life(pid: int, user: tuple[int, int]) -> Life:
    """One that cannot be watched ends by itself when we hang up, for nobody could START it."""
    try:
        return Life.of_child(pid, user)
    except OSError:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)  # our own child, not reaped yet
        raise


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
    """A process group of its own and no SIGHUP: no signal to the agent's group or terminal reaches it. Our environment stays here.

    Not a session of its own: the kernel shares a CPU between sessions first (sched(7), autogroup), and the workers then wait for
    their turn while those that they carry for have theirs.
    """
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
        return os.posix_spawn(
            executable, argv, {}, file_actions=actions, setpgroup=0, setsigmask=[signal.SIGHUP], setsigdef=handled
        )
    finally:
        for fd in high:
            os.close(fd)


def version_of(executable: Path) -> str:
    """What tells one build from another: the digest of the file."""
    try:
        return hashlib.sha256(executable.read_bytes()).hexdigest()
    except OSError as exc:
        raise DatapathError(
            f"{executable}: cannot be read: {exc.strerror}; install flanpy anew, or `make build` in a checkout"
        ) from exc
