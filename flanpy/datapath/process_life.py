"""Whether a datapath process lives, and its end, by a pidfd: unlike a pid it never comes to mean another process.

Nothing else tells: a process that does not answer, refuses or hangs up may live all the same, with the same queues and sockets. So its
socket is not taken away, and no other process is started beside it, before it has ended as the kernel sees it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from flanpy.datapath.process_build import EXECUTABLE as _BUILT
from flanpy.errors import DatapathError, DatapathWaits

EXECUTABLE = Path(__file__).with_name(_BUILT.name)
SO_PEERPIDFD = 77
"""socket(7), Linux 6.5 and newer: a pidfd of whoever listens at the other end, in the place of SO_PEERCRED's pid."""
_PIDFD_FD = 3
_ENDED = (errno.ESRCH, errno.EINVAL)
"""What the kernel says of a process that has been reaped."""


class Life:
    """One process, from before its end to after; ``user`` is what it runs as, user and group. ``close`` when done."""

    def __init__(self, pid: int, fd: int, user: tuple[int, int]) -> None:
        """``fd`` is a pidfd, ours from now on; negative: the process has ended and been reaped."""
        self.pid = pid
        self.user = user
        self._fd = fd

    @classmethod
    def of_child(cls, pid: int, user: tuple[int, int]) -> Life:
        """Of a child of ours that we have not reaped. Raises OSError (EMFILE)."""
        return cls(pid, os.pidfd_open(pid), user)

    @classmethod
    def of_peer(cls, connected: socket.socket, listens: Callable[[], bool]) -> Life:
        """Of who listens where this socket is connected to. Raises OSError (EMFILE) or DatapathError.

        Before Linux 6.5 the pid may be another's when we open it; that somebody still ``listens`` there afterwards shows that it is not,
        for the process alone has the listening socket.
        """
        pid, user, group = struct.unpack("iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            fd = connected.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError as exc:
            if exc.errno == errno.ENOPROTOOPT:
                fd = _opened(pid, listens)
            elif exc.errno in _ENDED:
                fd = -1
            else:
                raise
        return cls(pid, fd, (user, group))

    def close(self) -> None:
        """Safe to call twice; what is not known any more counts as ended."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def pidfd(self) -> int | None:
        """For somebody else who waits for its end; ours to close. None: it has ended and been reaped."""
        return self._fd if self._fd >= 0 else None

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, threads and descriptors included; perhaps not reaped yet."""
        return self.await_end(0)

    def await_end(self, within_s: float) -> bool:
        """Wait for its end; whether it has come."""
        if self._fd < 0:
            return True
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(max(within_s, 0) * 1e3))

    def kill(self) -> None:
        """SIGKILL; what has ended is left alone. Raises DatapathWaits when the signal cannot be sent."""
        if self.has_ended:
            return
        try:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except ProcessLookupError:
            return
        except PermissionError:
            self._kill_as_its_user()

    def _kill_as_its_user(self) -> None:
        """An agent has no CAP_KILL, so the signal comes from our executable as the process's own user."""
        user, group = self.user
        argv = [EXECUTABLE.name, str(user), str(group), "--end"]
        try:
            helper = os.posix_spawn(EXECUTABLE, argv, {}, file_actions=[(os.POSIX_SPAWN_DUP2, self._fd, _PIDFD_FD)])
        except OSError as exc:
            raise self._not_killed(f"{EXECUTABLE}: {exc.strerror}") from exc
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
        if status not in (0, errno.ESRCH):
            raise self._not_killed(os.strerror(status) if status > 0 else f"{EXECUTABLE.name} was ended by signal {-status}")

    def _not_killed(self, reason: str) -> DatapathWaits:
        return DatapathWaits(
            f"datapath process {self.pid} of user {self.user[0]} cannot be ended ({reason}): it goes on with the last table; "
            f"`kill -9 {self.pid}` as root, then another is started"
        )

    def reap(self) -> str:
        """How it ended, in words; called once it has."""
        try:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # an earlier agent's child
            return "has ended"
        code = os.waitstatus_to_exitcode(status)
        if ended == 0:
            return "has ended"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has exited with {code}"


def _opened(pid: int, listens: Callable[[], bool]) -> int:
    if pid == 0:
        raise DatapathError("the datapath process runs in another pid namespace, where it has to be ended")
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    if listens():
        return fd
    os.close(fd)
    return -1
