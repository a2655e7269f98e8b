"""Whether another machine of the link answers for an IPv4 address of ours, by ARP probes (RFC 5227, 2.1.1): they name no sender, so they
change nobody's neighbour table, and only who has the address itself answers, no proxy.

    0.0.0.0 asks all: who has 10.0.0.1?  ──▶  link  ──▶  10.0.0.1 is at 02:00:0a:00:00:09, which no interface of this host has
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from contextlib import suppress
from ipaddress import IPv4Address

WAIT_S = 0.5
"""For answers to one probe; on a link they take milliseconds."""
PROBES = 2
_ETH_P_ARP, _ARPHRD_ETHER, _ETH_P_IP = 0x0806, 1, 0x0800
_REQUEST = 1
_SIOCGIFHWADDR = 0x8927
_BROADCAST = b"\xff" * 6
_ARP = struct.Struct("!HHBBH6s4s6s4s")
"""RFC 826: kinds and lengths of both addresses, operation, sender's MAC and address, target's MAC and address."""


def other_holder(device: str, address: IPv4Address, wait_s: float = WAIT_S) -> str | None:
    """The MAC of a machine beside this host that answers for ``address`` at ``device``; None when nobody does, or none can be asked there
    (no Ethernet). Takes ``PROBES * wait_s`` at most. Raises OSError: PermissionError without CAP_NET_RAW.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0) as link:
        link.bind((device, _ETH_P_ARP))
        kind, own = link.getsockname()[3:5]
        if kind != _ARPHRD_ETHER:
            return None
        for _ in range(PROBES):
            link.sendto(probe(own, address), (device, _ETH_P_ARP, 0, kind, _BROADCAST))
            if (found := _await(link, address, time.monotonic() + wait_s)) is not None:
                return found
    return None


def probe(own: bytes, address: IPv4Address) -> bytes:
    """The request: who has ``address``?"""
    return _ARP.pack(_ARPHRD_ETHER, _ETH_P_IP, 6, 4, _REQUEST, own, bytes(4), bytes(6), address.packed)


def sender_of(packet: bytes, address: IPv4Address) -> bytes | None:
    """The MAC of whoever says in this ARP packet that it has ``address``; None when nobody does."""
    if len(packet) < _ARP.size:
        return None
    hardware, protocol, mac_bytes, address_bytes, _, mac, sender, _, _ = _ARP.unpack_from(packet)
    if (hardware, protocol, mac_bytes, address_bytes) != (_ARPHRD_ETHER, _ETH_P_IP, 6, 4):
        return None
    return bytes(mac) if sender == address.packed else None


def _await(link: socket.socket, address: IPv4Address, until_s: float) -> str | None:
    while (left_s := until_s - time.monotonic()) > 0:
        link.settimeout(left_s)
        try:
            mac = sender_of(link.recv(256), address)
        except TimeoutError:
            return None
        if mac is not None and mac not in _own_macs():
            return mac.hex(":")
    return None


def _own_macs() -> set[bytes]:
    """Of all interfaces: a second one of ours on the same link answers too (arp_ignore 0)."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(asking, _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
                found.add(answer[18:24])
    return found
