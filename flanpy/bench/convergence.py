"""Sees when the first packet for a destination gets through: probes are sent from a host until one is seen at the other end.

Two ends to look at: the underlay outside of all hosts, where a socket takes what is encapsulated for peers that do not exist, and the
TUN device of another host, where packets come out of the overlay.
"""

from __future__ import annotations

import os
import select
import socket
import time
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from flanpy.errors import LabError
from flanpy.lab.cluster import Lab

PROBE_PORT = 9010
EVERY_S = 0.0005
QUIET_S = 0.02
"""Packets have ceased when none of so many probes gets through any more."""
ETH_P_IP = 0x0800
TUNNEL = "flannel0"


class FirstPacket:
    """A sender in one host and a place to look at; every wait uses a mark of its own, so stragglers are not mistaken."""

    def __init__(self, sender: socket.socket, watcher: socket.socket, device: str | None) -> None:
        self._sender = sender
        self._watcher = watcher
        self._device = device

    @classmethod
    def to_underlay(cls, lab: Lab, host: str, port: int = 8285) -> Self:
        """Looks at what the host sends to peers at the services address."""
        with lab.sandbox.enter(None):
            watcher = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        watcher.bind((str(lab.plan.services_address), port))
        return cls(_sender(lab, host), watcher, None)

    @classmethod
    def to_tunnel(cls, lab: Lab, host: str, receiver: str) -> Self:
        """Looks at what comes out of the TUN device of another host, which need not exist yet."""
        with lab.sandbox.enter(receiver):
            watcher = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        return cls(_sender(lab, host), watcher, TUNNEL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sender.close()
        self._watcher.close()

    def await_first(self, destination: IPv4Address, within_s: float = 10.0) -> None:
        """Send a probe every half millisecond until one gets through; LabError when none does in time."""
        deadline = time.monotonic() + within_s
        mark = os.urandom(16)
        while time.monotonic() < deadline:
            self._sender.sendto(mark, (str(destination), PROBE_PORT))
            if self._seen(mark, EVERY_S):
                return
        raise LabError(f"no packet for {destination} got through within {within_s:g} s")

    def await_none(self, destination: IPv4Address, within_s: float = 10.0) -> None:
        """Send probes until they no longer get through; LabError when they still do at the time limit."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            mark = os.urandom(16)
            self._sender.sendto(mark, (str(destination), PROBE_PORT))
            if not self._seen(mark, QUIET_S):
                return
        raise LabError(f"packets for {destination} still get through after {within_s:g} s")

    def _seen(self, mark: bytes, within_s: float) -> bool:
        """Whether a packet with this mark comes within the time."""
        deadline = time.monotonic() + within_s
        while select.select([self._watcher], [], [], max(0.0, deadline - time.monotonic()))[0]:
            packet, sender = self._watcher.recvfrom(65536)
            if mark in packet and self._device in (None, sender[0]):
                return True
        return False


def _sender(lab: Lab, host: str) -> socket.socket:
    """A socket in the host itself: its packets enter the tunnel with the tunnel's own address."""
    with lab.sandbox.enter(host):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
