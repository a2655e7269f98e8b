"""Follows one ping through interfaces of a lab: what each of them carries, as IPv4 packets without link headers."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from flanpy.lab.sandbox import Sandbox

ETH_P_ALL = 3
ICMP, UDP, ECHO_REQUEST = 1, 17, 8
OUTER_BYTES = 28
DATAGRAM = socket.SOCK_DGRAM  # of a packet socket: without the link header, so a TUN device gives the same as a veth


@dataclass(frozen=True, slots=True)
class Seen:
    """A ping as an interface has carried it: its TTL, and the addresses of the packet around it, if there was one."""

    place: str
    ttl: int
    outer: tuple[str, str] | None


@contextmanager
def listening(sandbox: Sandbox, places: list[tuple[str, str]]) -> Iterator[dict[str, socket.socket]]:
    """A packet socket on each (namespace, interface), named by both."""
    with ExitStack() as stack:
        ears = {}
        for namespace, interface in places:
            with sandbox.enter(namespace):
                ear = stack.enter_context(socket.socket(socket.AF_PACKET, DATAGRAM, socket.htons(ETH_P_ALL)))
                ear.bind((interface, ETH_P_ALL))
            ear.setblocking(False)
            ears[f"{namespace} {interface}"] = ear
        yield ears


def seen(ears: dict[str, socket.socket], target: str, port: int = 8285) -> list[Seen]:
    """Where the echo request to ``target`` has come by, in the order of the sockets, once for each."""
    found = []
    for place, ear in ears.items():
        views = [view for packet in _packets(ear) if (view := _echo_request(packet, target, port)) is not None]
        found += [Seen(place, *views[0])] if views else []
    return found


def _packets(ear: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield ear.recv(65536)
        except BlockingIOError:
            return


def _echo_request(packet: bytes, target: str, port: int) -> tuple[int, tuple[str, str] | None] | None:
    if len(packet) < 28 or packet[0] != 0x45:
        return None
    if packet[9] == UDP and struct.unpack_from("!H", packet, 22)[0] == port:
        inner = _echo_request(packet[OUTER_BYTES:], target, 0)
        return None if inner is None else (inner[0], (str(IPv4Address(packet[12:16])), str(IPv4Address(packet[16:20]))))
    is_it = packet[9] == ICMP and packet[20] == ECHO_REQUEST and packet[16:20] == IPv4Address(target).packed
    return (packet[8], None) if is_it else None
