"""The netlink sockets of one network namespace, and what their errors mean to an operator.

Two sockets: pyroute2's ``IPRoute`` for what is rare (devices, addresses), and a plain one for what comes by the ten thousand
(routes), on which we pack the messages ourselves:

    execute   many requests in one send, no acknowledgement asked for but of the last: the kernel works them off inside the
              send call and answers the failed ones alone, so one batch costs two system calls when all goes well.
    dump      one request, datagrams of up to 64 KB back; handed on as they come, so that memory does not grow with the table.

A ``Kernel`` belongs to the thread that made it: that thread's network namespace at that moment is the one it works on.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from types import TracebackType
from typing import TypeVar

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.iprsocket import IPRSocket

from flanpy.errors import SHORTAGES, FlanpyError, PlatformError, ResourceBusy
from flanpy.kernel.messages import (
    ACK,
    DUMP,
    DUMP_INTERRUPTED,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    error_of,
    message,
    split,
)

_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_BATCH = 256
"""Requests in one send. An answer takes about 1 KB of the socket's buffer, so even 256 failures fit in it."""
_DATAGRAM_BYTES = 65536
_ANSWER_S = 10.0
"""The kernel answers within the send call; a longer silence is a defect of it."""
_DUMP_ATTEMPTS = 5

T = TypeVar("T")
Failure = tuple[int, str]
"""errno and text of a request that the kernel refused."""


class Kernel:
    """The calling thread's network namespace by netlink. A context manager; not to be shared between threads."""

    def __init__(self) -> None:
        with explained("open a netlink socket"):
            self.ip = IPRoute(groups=0, strict_check=True, ext_ack=True)
            self.ip.bind(groups=0)
            self._bulk = IPRSocket(groups=0, strict_check=True, ext_ack=True)
            self._bulk.bind(groups=0)
        self._socket: socket.socket = self._bulk.socket
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.settimeout(_ANSWER_S)
        self._buffer = bytearray(_DATAGRAM_BYTES)
        self._sequence = 0

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets; safe to call twice."""
        self.ip.close()
        self._bulk.close()

    @property
    def ports(self) -> frozenset[int]:
        """Netlink ports of our own sockets: notifications caused through them carry one of these."""
        return frozenset((int(self.ip.asyncore.socket.getsockname()[0]), int(self._socket.getsockname()[0])))

    def execute(self, requests: Iterable[tuple[int, int, bytes]]) -> dict[int, Failure]:
        """Send requests (type, flags, body) in order; the refused ones by their position. Memory is bounded by one batch.

        Raises PlatformError when we may not write at all, and OSError when the socket fails.
        """
        remaining = iter(requests)
        failures: dict[int, Failure] = {}
        done = 0
        while batch := list(islice(remaining, _BATCH)):
            first = self._reserve(len(batch))
            last = len(batch) - 1
            packed = [
                message(kind, flags | (ACK if i == last else 0), first + i, body) for i, (kind, flags, body) in enumerate(batch)
            ]
            self._socket.send(b"".join(packed))
            for position, failure in self._answers(first, last):
                failures[done + position] = failure
            done += len(batch)
        return failures

    def _reserve(self, count: int) -> int:
        """The first of ``count`` fresh sequence numbers; they wrap long before the field does."""
        first = self._sequence + 1 if self._sequence + count < 2**31 else 1
        self._sequence = first + count - 1
        return first

    def _answers(self, first: int, last: int) -> Iterator[tuple[int, Failure]]:
        """Failures among the requests ``first`` .. ``first + last``; ends with the answer of the last one."""
        while True:
            for received in self._receive():
                position = received.sequence - first
                if received.kind != NLMSG_ERROR or not 0 <= position <= last:
                    continue
                code, text = error_of(received)
                if code == errno.EPERM:
                    raise platform_error("write to the kernel's tables", code, text)
                if code:
                    yield position, (code, text)
                if position == last:
                    return

    def dump(self, kind: int, body: bytes) -> Iterator[tuple[int, memoryview]]:
        """The (type, body) of each message of one dump. A body is valid until the next one is asked for.

        Ends with DumpInterrupted when the table changed under it and the picture may be torn (``settled`` reads it again).
        """
        sequence = self._reserve(1)
        self._socket.send(message(kind, DUMP, sequence, body))
        torn = False
        while True:
            for received in self._receive():
                if received.sequence != sequence:
                    continue
                torn = torn or bool(received.flags & DUMP_INTERRUPTED)
                if received.kind == NLMSG_ERROR:
                    code, text = error_of(received)
                    if code == errno.ENOENT:  # a routing table that was never written to
                        return
                    raise platform_error("read a table of the kernel", code, text)
                if received.kind == NLMSG_DONE:
                    if torn:
                        raise DumpInterrupted("read a table of the kernel: it changed meanwhile, again and again")
                    return
                yield received.kind, received.body

    def _receive(self) -> Iterator[Message]:
        size = self._socket.recv_into(self._buffer)
        return split(memoryview(self._buffer)[:size])


class DumpInterrupted(PlatformError):
    """A table changed while it was read; reading it again is right."""


def settled(what: str, read: Callable[[], Iterable[T]]) -> list[T]:
    """What one dump gives; read again when the table changed under it, five times at most.

    A table that never stands still is better known nearly than not at all: the last picture counts, and whoever changes it
    makes the monitor speak up.
    """
    found: list[T] = []
    with explained(what):
        for _ in range(_DUMP_ATTEMPTS):
            found.clear()
            with suppress(DumpInterrupted):
                found.extend(read())
                break
    return found


def explained_errno(code: int, text: str = "") -> str:
    """What an errno of netlink means, with the kernel's own words when it has some."""
    return f"{os.strerror(code)} ({text})" if text else os.strerror(code)


def platform_error(what: str, code: int, text: str = "") -> FlanpyError:
    """The error for an operator that stands for an errno of the kernel."""
    reason = f"{what}: {explained_errno(code, text)}"
    match code:
        case errno.EACCES if "IPv6 is disabled" in text:
            return PlatformError(f"{reason}; sysctl -w net.ipv6.conf.all.disable_ipv6=0, or a network config without EnableIPv6")
        case errno.EPERM | errno.EACCES:
            return PlatformError(f"{reason}; run as root or give the capability CAP_NET_ADMIN (systemd: AmbientCapabilities=)")
        case errno.EOPNOTSUPP | errno.EAFNOSUPPORT | errno.EPROTONOSUPPORT:
            return PlatformError(f"{reason}; this kernel is built without it")
        case errno.EBUSY | errno.EEXIST | errno.EADDRINUSE:
            return ResourceBusy(reason)
        case _:
            cure = SHORTAGES.get(code)
            return PlatformError(f"{reason}; {cure}" if cure else reason)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of netlink inside the block into FlanpyErrors that say what was being done."""
    try:
        yield
    except NetlinkError as error:
        raise platform_error(what, error.code, _text_of(error)) from error
    except OSError as error:
        raise platform_error(what, error.errno or errno.EIO) from error


def _text_of(error: NetlinkError) -> str:
    text = str(error.args[1]) if len(error.args) > 1 else ""
    return "" if text == os.strerror(error.code) else text
