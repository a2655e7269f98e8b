"""Tells when devices, addresses, routes or overlay entries change, whoever changed them: a thread that reads notifications.

What arrives is reduced in four steps, each cheaper to pass than the next:

    1  a filter in the kernel drops routes that are neither of our protocol nor default routes, neighbours that come and are not
       permanent, and all that our own sockets have caused; for these no thread wakes up
    2  a message that tells nothing new (an address whose lifetime was refreshed) is dropped
    3  what comes within 10 ms is one burst; the same thing said twice is said once
    4  a burst of more than 256 events becomes one ``Overrun``, as when the kernel itself had to drop some

Events say where to look, not what to do: who hears one compares whole states. Nothing here knows what is desired.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Collection
from types import TracebackType

from pyroute2.netlink.rtnl.iprsocket import IPRSocket

from flanpy.errors import FlanpyError
from flanpy.kernel.devices import list_addresses, list_devices
from flanpy.kernel.messages import split
from flanpy.kernel.netlink import Kernel, explained
from flanpy.kernel.notifications import (
    AddressChanged,
    KernelEvent,
    LinkChanged,
    NeighbourChanged,
    Overrun,
    RouteChanged,
    View,
    filter_program,
    subject,
)
from flanpy.model import ROUTE_PROTOCOL

__all__ = ["AddressChanged", "KernelEvent", "LinkChanged", "Monitor", "NeighbourChanged", "Overrun", "RouteChanged"]

_GROUPS = 0x1 | 0x4 | 0x10 | 0x100 | 0x40 | 0x400
"""RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV6_IFADDR, IPV4_ROUTE, IPV6_ROUTE."""
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER_BYTES = 8 << 20
_DATAGRAM_BYTES = 65536
_BURST_S = 0.01
_BURST_EVENTS = 256
_BURST_DATAGRAMS = 1024
_DRAIN = 65536
"""Notifications thrown away at most after an overrun; more than any buffer holds."""


class Monitor:
    """Watches the network namespace of the thread that makes it; ``sink`` is called in the monitor's own thread.

    When the constructor returns, no later change is missed. ``own_ports`` (``Kernel.ports``): changes made through these
    sockets are not reported, for who made them knows. A context manager.
    """

    def __init__(
        self,
        sink: Callable[[KernelEvent], None],
        own_ports: Collection[int] = (),
        protocol: int = ROUTE_PROTOCOL,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self._sink = sink
        self._netlink = subscribe(own_ports, protocol, buffer_bytes)
        self._wake = self._open_wake()
        self._view = _look()
        self._thread = threading.Thread(target=self._run, name="kernel-monitor", daemon=True)
        self._thread.start()

    def _open_wake(self) -> int:
        with explained("watch the kernel's devices and routes"):
            try:
                return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                self._netlink.close()
                raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread as soon as ``sink`` has returned, and close the socket; safe to call twice, never from ``sink``."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._netlink.close()
        os.close(self._wake)
        self._wake = -1

    def _run(self) -> None:
        receiver: socket.socket = self._netlink.socket
        poll = select.poll()
        poll.register(receiver, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        only_wake = select.poll()
        only_wake.register(self._wake, select.POLLIN)
        while True:
            ready = poll.poll()
            if any(fd == self._wake for fd, _ in ready):
                return
            for event in self._burst(receiver):
                self._sink(event)
            if only_wake.poll(_BURST_S * 1000):  # what comes meanwhile is the next burst
                return

    def _burst(self, receiver: socket.socket) -> list[KernelEvent]:
        """What waits in the socket, reduced; at most so many datagrams that ``close`` is not kept waiting by a flood."""
        events: dict[object, KernelEvent] = {}
        try:
            for _ in range(_BURST_DATAGRAMS):
                for message in split(memoryview(receiver.recv(_DATAGRAM_BYTES, socket.MSG_DONTWAIT))):
                    for event in self._view.events(message):
                        events[subject(event)] = event
                if len(events) > _BURST_EVENTS:
                    return [self._overrun(f"more than {_BURST_EVENTS} changes at once", receiver)]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return [self._overrun("the kernel dropped notifications", receiver)]
        return list(events.values())

    def _overrun(self, reason: str, receiver: socket.socket) -> Overrun:
        """Drop what waits and look at everything anew, in this order: a change in between is then told again, not missed."""
        for _ in range(_DRAIN):
            try:
                receiver.recv(_DATAGRAM_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        self._view = _look()
        return Overrun(reason)


def subscribe(own_ports: Collection[int], protocol: int, buffer_bytes: int) -> IPRSocket:
    """A socket in the groups, with its filter and buffer in place before the first notification can come."""
    with explained("watch the kernel's devices and routes"):
        netlink = IPRSocket(groups=_GROUPS)
        receiver: socket.socket = netlink.socket
        program = filter_program(protocol, own_ports)
        memory = ctypes.create_string_buffer(program, len(program))
        receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(memory)))
        try:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        netlink.bind(groups=_GROUPS)
    return netlink


def _look() -> View:
    """What is there now. Without it (no descriptor left) more is reported than is news, and routes go without device names."""
    try:
        with Kernel() as kernel:
            return View.of(list_devices(kernel), list_addresses(kernel))
    except FlanpyError:
        return View()
