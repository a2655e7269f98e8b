"""One connection to a datapath process: requests out, replies in, with descriptors. csrc/protocol.h says what they mean.

Every reply is checked for its length, magic, kind and number of descriptors before anything in it is believed, and every wait is bounded.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flanpy.datapath.core import VERDICTS, WORK_COUNTERS, ffi, lib
from flanpy.errors import DatapathError

REPLY_TIMEOUT_S = 5.0
"""A process that lives answers in microseconds; one that waits for a stuck worker in two seconds."""
_REPLY_BYTES = 4096
POLLRDHUP = 0x2000
"""poll(2): the other end has closed; missing in Python's select."""


class Unresponsive(DatapathError):
    """The process has not answered in time: it is stopped or stuck, and has to be replaced."""


class Gone(DatapathError):
    """The process has ended, or hung up."""


@dataclass(slots=True)
class State:
    """What a process says of itself. ``settings`` (``struct fp_settings``) and ``pages_fit`` compare with this build's forms.

    The descriptors belong to whoever has the state; ``close`` gives them up.
    """

    running: bool
    version: str
    confined: int
    settings: bytes
    pages_fit: bool
    n_pages: int = 0
    tun_fds: tuple[int, ...] = ()
    udp_fds: tuple[int, ...] = ()
    pages_fd: int | None = None
    table_fd: int | None = None
    table_bytes: int = 0

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors."""
        return self.tun_fds + self.udp_fds + tuple(fd for fd in (self.pages_fd, self.table_fd) if fd is not None)

    def close(self) -> None:
        """Close all descriptors; safe to call twice."""
        _close(list(self.fds))
        self.tun_fds, self.udp_fds, self.pages_fd, self.table_fd = (), (), None, None

    def give_up_queues(self) -> None:
        """Close TUN queues and sockets, and keep counters and table."""
        _close([*self.tun_fds, *self.udp_fds])
        self.tun_fds, self.udp_fds = (), ()


class Connection:
    """An open connection; ``pid`` is the process at its other end, ``user`` its user and group, None: as of today. Not thread-safe."""

    def __init__(self, opened: socket.socket, pid: int, user: tuple[int, int] | None = None) -> None:
        self._socket = opened
        self.pid = pid
        self.user = user
        self._socket.settimeout(REPLY_TIMEOUT_S)

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Connect to the process that listens there, or None. Its credentials are the listener's: the process itself."""
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            opened.settimeout(REPLY_TIMEOUT_S)
            opened.connect(str(path))
            pid, user, group = struct.unpack("iII", opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            opened.close()
            return None
        return cls(opened, pid, (user, group))

    def fileno(self) -> int:
        """For poll: POLLHUP when the process has ended."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up; the process goes on. Safe to call twice."""
        self._socket.close()

    @property
    def is_lost(self) -> bool:
        """Whether the other end has hung up."""
        return self.await_hang_up(0)

    def await_hang_up(self, within_s: float) -> bool:
        """Wait for the end of the process; whether it has come."""
        if self._socket.fileno() < 0:
            return True
        poller = select.poll()
        poller.register(self._socket, POLLRDHUP)
        return bool(poller.poll(within_s * 1e3))

    def hello(self) -> State:
        """How the process is, with all its descriptors. Raises Gone, Unresponsive or DatapathError."""
        reply, fds = self._ask(lib.FP_MESSAGE_HELLO, bytes(ffi.buffer(_head(lib.FP_MESSAGE_HELLO, "struct fp_message"))))
        try:
            return _state(reply, fds)
        except BaseException:
            _close(fds)
            raise

    def start(self, version: str, settings: bytes, queues: list[tuple[int, int]], pages_fd: int) -> State:
        """Start the workers on these pairs of TUN and UDP descriptors, which stay ours too."""
        message = _head(lib.FP_MESSAGE_START, "struct fp_message_start")
        message.n_queues = len(queues)
        message.version = version.encode("ascii")
        ffi.memmove(ffi.addressof(message, "settings"), settings, len(settings))
        fds = [fd for pair in queues for fd in pair]
        reply, given = self._ask(lib.FP_MESSAGE_START, bytes(ffi.buffer(message)), [*fds, pages_fd])
        _close(given)
        return _state(reply, [])

    def table(self, memfd: int, size: int) -> None:
        """Let the workers forward by the table in this sealed memfd; returns when all do."""
        message = _head(lib.FP_MESSAGE_TABLE, "struct fp_message_table")
        message.bytes = size
        self._ask(lib.FP_MESSAGE_TABLE, bytes(ffi.buffer(message)), [memfd])

    def stop(self) -> None:
        """End the workers, what they have in hand being sent, and then the process; returns when no packet is read any more."""
        self._ask(lib.FP_MESSAGE_STOP, bytes(ffi.buffer(_head(lib.FP_MESSAGE_STOP, "struct fp_message"))))

    def _ask(self, kind: int, request: bytes, fds: list[int] | None = None) -> tuple[bytes, list[int]]:
        """Raises Gone, Unresponsive, or DatapathError with what the process has against it."""
        try:
            socket.send_fds(self._socket, [request], fds or [])
            reply, given, flags, _ = socket.recv_fds(self._socket, _REPLY_BYTES, lib.FP_PROTOCOL_FDS_MAX, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as exc:
            raise Unresponsive(f"datapath process {self.pid}: no answer within {REPLY_TIMEOUT_S:g} s") from exc
        except OSError as exc:
            raise Gone(f"datapath process {self.pid}: {exc.strerror}") from exc
        try:
            if not reply:
                raise Gone(f"datapath process {self.pid}: has hung up")
            _check(reply, flags, kind, self.pid)
        except BaseException:
            _close(given)
            raise
        return reply, given


def _head(kind: int, name: str) -> Any:
    message = ffi.new(f"{name} *")
    head = message if name == "struct fp_message" else message.head
    head.magic, head.version, head.kind, head.bytes = lib.FP_PROTOCOL_MAGIC, lib.FP_PROTOCOL_VERSION, kind, ffi.sizeof(name)
    return message


def _check(reply: bytes, flags: int, kind: int, pid: int) -> None:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(reply) < ffi.sizeof("struct fp_message"):
        raise DatapathError(f"datapath process {pid}: an answer of {len(reply)} bytes that was cut")
    head = ffi.from_buffer("struct fp_message *", reply)
    if head.magic != lib.FP_PROTOCOL_MAGIC or head.bytes != len(reply):
        raise DatapathError(f"datapath process {pid}: an answer that is none of our protocol")
    if head.error:
        name = errno.errorcode.get(-head.error, str(head.error))
        raise DatapathError(f"datapath process {pid}: {os.strerror(-head.error)} ({name})")
    if head.kind != kind | lib.FP_MESSAGE_REPLY:
        raise DatapathError(f"datapath process {pid}: an answer of kind {head.kind:#x} to a request of kind {kind}")


def _state(reply: bytes, fds: list[int]) -> State:
    """``settings`` of another version are left out, and all that is before them can be read of any version."""
    least = ffi.offsetof("struct fp_message_state", "settings")
    if len(reply) < least:
        raise DatapathError(f"datapath process: a state of {len(reply)} bytes, {least} is the least")
    state = ffi.new("struct fp_message_state *")
    size = min(len(reply), ffi.sizeof("struct fp_message_state"))
    ffi.memmove(state, reply, size)
    same_form = size == len(reply) == ffi.sizeof("struct fp_message_state") and state.settings_bytes == ffi.sizeof(
        "struct fp_settings"
    )
    queues, tables = state.n_queues if fds else 0, int(state.table_bytes > 0)
    if fds and len(fds) != 2 * queues + 1 + tables:
        raise DatapathError(f"datapath process: {len(fds)} descriptors for {queues} queues")
    ours = (lib.fp_page_bytes(), len(VERDICTS), len(WORK_COUNTERS))
    return State(
        running=state.state == lib.FP_PROCESS_RUNNING,
        version=bytes(ffi.buffer(state.version)).rstrip(b"\0").decode("ascii", "replace"),
        confined=state.confined,
        settings=bytes(ffi.buffer(ffi.addressof(state, "settings"))) if same_form else b"",
        n_pages=state.n_pages,
        pages_fit=(state.page_bytes, state.n_verdicts, state.n_work) == ours,
        tun_fds=tuple(fds[0 : 2 * queues : 2]),
        udp_fds=tuple(fds[1 : 2 * queues : 2]),
        pages_fd=fds[2 * queues] if fds else None,
        table_fd=fds[2 * queues + 1] if fds and tables else None,
        table_bytes=state.table_bytes,
    )


def _close(fds: list[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
