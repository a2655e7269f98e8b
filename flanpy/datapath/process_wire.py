"""One connection to a datapath process: requests out, replies in, with descriptors. csrc/protocol.h says what they mean.

Every reply is checked for its length, magic, kind and number of descriptors before anything in it is believed, and every wait is bounded.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flanpy.datapath import core_api
from flanpy.datapath.core import VERDICTS, WORK_COUNTERS, ffi, lib
from flanpy.errors import DatapathError, DatapathWaits

REPLY_TIMEOUT_S = 3.0
"""A process that lives answers in microseconds; one that waits for a stuck worker in two seconds (PUBLISH_LIMIT_S in worker_table.c)."""
PING_S = 2.0
"""A process that was not heard of for so long is asked whether it is there."""
LOOK_S = 1.0
"""What counts of the time between two looks at most."""
_SHORT = (errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS)
"""The kernel is short of something; the process has no part in it."""
_REPLY_BYTES = 4096
_ERRNO_MAX = 4095
_STALE: tuple[bytes, tuple[int, ...]] = (b"", ())
POLLRDHUP = 0x2000
"""poll(2): the other end has closed; missing in Python's select."""


class Unresponsive(DatapathError):
    """The process has not answered in time: it is stopped or stuck, and has to be replaced."""


class Slow(DatapathWaits):
    """No answer yet."""


class Refused(DatapathWaits):
    """Descriptors could not be passed on, here or there: nothing is wrong with the process, and another attempt is right."""


class Nonsense(DatapathError):
    """An answer that none of our processes gives, of any version: somebody else has it in his hands, and it has to be replaced."""


class Gone(DatapathError):
    """The process has hung up. Whether it has ended is for its ``Life`` to say."""


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
    """An open connection. Not thread-safe.

    A request waits for its reply for as long as it is told to; after that the reply is still on its way (``Slow``), and the same request
    asked again goes on waiting for it. What is silent for REPLY_TIMEOUT_S in all is ``Unresponsive``, and is not waited for any longer: of
    the time between two looks no more than LOOK_S count, and of a wait what it was to take, for we, or the whole machine, may have been
    stopped meanwhile.
    """

    def __init__(self, opened: socket.socket, pid: int) -> None:
        self._socket = opened
        self.pid = pid
        self._asked: tuple[bytes, tuple[int, ...]] | None = None
        self._heard_s = self._looked_s = time.monotonic()
        self.silent_s = 0.0
        """For how long a reply has been waited for."""

    def fileno(self) -> int:
        """For poll: POLLHUP when the process has ended."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up; the process goes on. Safe to call twice."""
        self._socket.close()

    @property
    def is_lost(self) -> bool:
        """Whether the other end has hung up."""
        if self._socket.fileno() < 0:
            return True
        poller = select.poll()
        poller.register(self._socket, POLLRDHUP)
        return bool(poller.poll(0))

    def hello(self, within_s: float) -> State:
        """How the process is, with all its descriptors. Raises Refused, Slow, Gone, Unresponsive or DatapathError."""
        reply, fds = self._ask(lib.FP_MESSAGE_HELLO, _bare(lib.FP_MESSAGE_HELLO), within_s)
        try:
            return _state(reply, fds)
        except BaseException:
            _close(fds)
            raise

    def start(
        self, version: str, settings: bytes, queues: list[tuple[int, tuple[int, ...]]], pages_fd: int, within_s: float
    ) -> State:
        """Start the workers on these TUN descriptors, each with its UDP sockets; all stay ours too."""
        message = _head(lib.FP_MESSAGE_START, "struct fp_message_start")
        message.n_queues, message.n_lanes = len(queues), len(queues[0][1])
        message.version = version.encode("ascii")
        ffi.memmove(ffi.addressof(message, "settings"), settings, len(settings))
        fds = [fd for tun_fd, lanes in queues for fd in (tun_fd, *lanes)]
        reply, given = self._ask(lib.FP_MESSAGE_START, bytes(ffi.buffer(message)), within_s, [*fds, pages_fd])
        _close(given)
        return _state(reply, [])

    def table(self, memfd: int, size: int, within_s: float) -> None:
        """Let the workers forward by the table in this sealed memfd; returns when all do."""
        self._give(lib.FP_MESSAGE_TABLE, memfd, size, within_s)

    def hold(self, memfd: int, size: int, other: int | None, within_s: float) -> None:
        """Let the process check and keep this table until ``table``, or until we are no more and nor is the ``other`` one, by its pidfd."""
        self._give(lib.FP_MESSAGE_HOLD, memfd, size, within_s, other)

    def stop(self, within_s: float) -> None:
        """End the workers, what they have in hand being sent, and then the process; returns when no packet is read any more."""
        self._ask(lib.FP_MESSAGE_STOP, _bare(lib.FP_MESSAGE_STOP), within_s)

    def forget(self) -> None:
        """What was asked will not be asked again, though it may look the same: its reply is waited for and dropped."""
        if self._asked is not None:
            self._asked = _STALE

    def look(self) -> None:
        """See whether the process answers, without waiting: a reply that was due, or from time to time a question.

        ``silent_s`` says what was seen. Raises Gone or Unresponsive.
        """
        try:
            if self._asked is not None:
                self._take_late(0)
            if self._asked is None and time.monotonic() - self._heard_s >= PING_S:
                self._ask(lib.FP_MESSAGE_PING, _bare(lib.FP_MESSAGE_PING), 0)
        except Slow:
            return  # ``silent_s`` tells

    def _give(self, kind: int, memfd: int, size: int, within_s: float, other: int | None = None) -> None:
        message = _head(kind, "struct fp_message_table")
        message.bytes = size
        fds = [memfd] if other is None else [memfd, other]
        _close(self._ask(kind, bytes(ffi.buffer(message)), within_s, fds)[1])

    def _ask(self, kind: int, request: bytes, within_s: float, fds: list[int] | None = None) -> tuple[bytes, list[int]]:
        """Raises Slow, Refused, Gone, Unresponsive, or DatapathError with what the process has against it."""
        if self._socket.fileno() < 0:
            raise Gone(f"datapath process {self.pid}: the connection is closed")
        ends_s = time.monotonic() + within_s
        asked = request, tuple(fds or ())
        if self._asked not in (None, asked):
            self._take_late(within_s)
        if self._asked is None:
            self._send(asked, ends_s - time.monotonic())
        reply, given, flags = self._take(ends_s - time.monotonic())
        try:
            _check(reply, flags, kind, self.pid)
        except BaseException:
            _close(given)
            raise
        return reply, given

    def _send(self, asked: tuple[bytes, tuple[int, ...]], within_s: float) -> None:
        self._looked_s = time.monotonic()
        self._socket.settimeout(max(within_s, 0))
        try:
            socket.send_fds(self._socket, [asked[0]], asked[1])
        except (TimeoutError, BlockingIOError) as exc:
            raise self._slow(within_s) from exc
        except OSError as exc:
            raise self._failed(exc) from exc
        self._asked = asked

    def _take_late(self, within_s: float) -> None:
        """The reply to what was asked earlier: what it says is of no use any more."""
        _close(self._take(within_s)[1])

    def _take(self, within_s: float) -> tuple[bytes, list[int], int]:
        """A reply unchecked, with its descriptors and flags."""
        self._pass(LOOK_S)
        within_s = max(0, min(within_s, REPLY_TIMEOUT_S - self.silent_s))
        self._socket.settimeout(within_s)
        try:
            reply, given, flags, _ = socket.recv_fds(self._socket, _REPLY_BYTES, lib.FP_PROTOCOL_FDS_MAX, socket.MSG_CMSG_CLOEXEC)
        except (TimeoutError, BlockingIOError) as exc:
            raise self._slow(within_s) from exc
        except OSError as exc:
            raise self._failed(exc) from exc
        if not reply:
            _close(given)
            raise Gone(f"datapath process {self.pid}: has hung up")
        self._asked, self.silent_s, self._heard_s = None, 0.0, time.monotonic()
        return reply, given, flags

    def _failed(self, error: OSError) -> DatapathError:
        text = f"datapath process {self.pid}: {error.strerror}"
        return Refused(f"{text}; it goes on by the last table") if error.errno in _SHORT else Gone(text)

    def _pass(self, most_s: float) -> None:
        """The time since the last look counts, though not all of it."""
        now_s = time.monotonic()
        self.silent_s += min(now_s - self._looked_s, most_s)
        self._looked_s = now_s

    def _slow(self, within_s: float) -> DatapathError:
        self._pass(max(within_s, 0))
        if self.silent_s >= REPLY_TIMEOUT_S * 0.99:
            return Unresponsive(f"datapath process {self.pid}: no answer within {REPLY_TIMEOUT_S:g} s")
        return Slow(
            f"datapath process {self.pid}: no answer for {self.silent_s:.1f} s (is it stopped?); "
            f"after {REPLY_TIMEOUT_S:g} s another takes its place"
        )


def _bare(kind: int) -> bytes:
    return bytes(ffi.buffer(_head(kind, "struct fp_message")))


def _head(kind: int, name: str) -> Any:
    message = ffi.new(f"{name} *")
    head = message if name == "struct fp_message" else message.head
    head.magic, head.version, head.kind, head.bytes = lib.FP_PROTOCOL_MAGIC, lib.FP_PROTOCOL_VERSION, kind, ffi.sizeof(name)
    return message


def _check(reply: bytes, flags: int, kind: int, pid: int) -> None:
    if flags & socket.MSG_CTRUNC:
        raise Refused(
            f"datapath process {pid}: its descriptors cannot be taken now (out of descriptors? `ulimit -n`, LimitNOFILE=); it goes on "
            "by the last table"
        )
    if flags & socket.MSG_TRUNC or len(reply) < ffi.sizeof("struct fp_message"):
        raise Nonsense(f"datapath process {pid}: an answer of {len(reply)} bytes that was cut")
    head = ffi.from_buffer("struct fp_message *", reply)
    if head.magic != lib.FP_PROTOCOL_MAGIC or head.bytes != len(reply) or not -_ERRNO_MAX <= head.error <= 0:
        raise Nonsense(f"datapath process {pid}: an answer that is none of our protocol")
    if head.kind != kind | lib.FP_MESSAGE_REPLY:
        raise Nonsense(f"datapath process {pid}: an answer of kind {head.kind:#x} to a request of kind {kind}")
    if head.error == -errno.ETOOMANYREFS:
        raise Refused(
            f"datapath process {pid}: it cannot pass its descriptors on now ({os.strerror(-head.error)}: others of its user are on "
            "their way to somebody who does not take them); it goes on by the last table"
        )
    if head.error in (-errno.EPROTO, -errno.EPROTONOSUPPORT):
        raise DatapathError(f"datapath process {pid}: it is of another version of flanpy; {core_api.CURE}")
    if head.error:
        name = errno.errorcode.get(-head.error, str(head.error))
        raise DatapathError(f"datapath process {pid}: {os.strerror(-head.error)} ({name})")


def _state(reply: bytes, fds: list[int]) -> State:
    """``settings`` of another version are left out, and all that is before them can be read of any version."""
    least = ffi.offsetof("struct fp_message_state", "settings")
    if len(reply) < least:
        raise Nonsense(f"datapath process: a state of {len(reply)} bytes, {least} is the least")
    state = ffi.new("struct fp_message_state *")
    size = min(len(reply), ffi.sizeof("struct fp_message_state"))
    ffi.memmove(state, reply, size)
    same_form = size == len(reply) == ffi.sizeof("struct fp_message_state") and state.settings_bytes == ffi.sizeof(
        "struct fp_settings"
    )
    queues, tables = state.n_queues if fds else 0, int(state.table_bytes > 0)
    tun_fds, udp_fds, rest = _sorted(fds, queues, tables)
    ours = (lib.fp_page_bytes(), len(VERDICTS), len(WORK_COUNTERS))
    return State(
        running=state.state == lib.FP_PROCESS_RUNNING,
        version=bytes(ffi.buffer(state.version)).rstrip(b"\0").decode("ascii", "replace"),
        confined=state.confined,
        settings=bytes(ffi.buffer(ffi.addressof(state, "settings"))) if same_form else b"",
        n_pages=state.n_pages,
        pages_fit=(state.page_bytes, state.n_verdicts, state.n_work) == ours,
        tun_fds=tun_fds,
        udp_fds=udp_fds,
        pages_fd=rest[0] if fds else None,
        table_fd=rest[1] if fds and tables else None,
        table_bytes=state.table_bytes,
    )


def _sorted(fds: list[int], queues: int, tables: int) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    """TUN queues, UDP sockets as ``UnderlaySockets`` orders them, and the rest: counters, table. Each queue has as many lanes."""
    if not fds:
        return (), (), []
    count = len(fds) - 1 - tables
    if queues < 1 or count < 2 * queues or count % queues:
        raise Nonsense(f"datapath process: {len(fds)} descriptors for {queues} queues")
    each = count // queues
    lanes = (fds[queue * each + lane] for lane in range(1, each) for queue in range(queues))
    return tuple(fds[0:count:each]), tuple(lanes), fds[count:]


def _close(fds: list[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
