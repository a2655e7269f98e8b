"""Measures how large a packet gets to a peer whole: ICMP echo requests that must not be fragmented, of sizes that close in.

Needs CAP_NET_RAW or root. Takes a bounded time: a peer that answers costs one round trip, one that does not about half a second.
Nothing is sent to the overlay's own port, so no counter of a peer moves.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address

HEADERS_BYTES = 28
"""IPv4 header without options (20) and ICMP header (8)."""
SMALL_BYTES = 576
"""What every path must carry in one piece or another (RFC 791); small enough to tell a dead path from a narrow one."""
ANSWER_S = 0.5
AT_ONCE = 32
_ECHO, _ECHO_REPLY = 8, 0
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
"""ip(7), linux/in.h: set the don't-fragment bit whatever the kernel believes of the path."""


@dataclass(frozen=True, slots=True)
class PathMtu:
    """What was found: the largest packet that was answered, None when none was; ``reason`` says why not the whole."""

    mtu_bytes: int | None
    reason: str = ""


def measure_all(addresses: Collection[IPv4Address], mtu_bytes: int) -> dict[IPv4Address, PathMtu]:
    """Measure the paths to all of these, side by side, up to ``mtu_bytes``."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(addresses, pool.map(lambda address: measure(address, mtu_bytes), addresses), strict=True))


def measure(address: IPv4Address, mtu_bytes: int) -> PathMtu:
    """The path to one address: all at once, else halving the rest between what goes and what does not."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP) as client:
            client.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
            client.connect((str(address), 0))
            return _close_in(client, mtu_bytes)
    except OSError as error:
        return PathMtu(None, error.strerror or str(error))


def _close_in(client: socket.socket, mtu_bytes: int) -> PathMtu:
    sequence = iter(range(1, 1000))
    if _goes(client, mtu_bytes, next(sequence)):
        return PathMtu(mtu_bytes)
    if not _goes(client, SMALL_BYTES, next(sequence)):
        return PathMtu(None, "no answer to ping (down, or a filter on the way)")
    goes, fails = SMALL_BYTES, mtu_bytes
    while fails - goes > 1:
        middle = (goes + fails) // 2
        goes, fails = (middle, fails) if _goes(client, middle, next(sequence)) else (goes, middle)
    return PathMtu(goes, f"packets of more than {goes} bytes do not get there")


def _goes(client: socket.socket, packet_bytes: int, sequence: int) -> bool:
    """Whether an echo request of this size, IP header included, is answered."""
    ident = (os.getpid() ^ client.fileno() << 8) & 0xFFFF
    try:
        client.send(_echo(ident, sequence, packet_bytes - HEADERS_BYTES))
        return _answered(client, ident, sequence, time.monotonic() + ANSWER_S)
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            return False
        raise


def _echo(ident: int, sequence: int, payload_bytes: int) -> bytes:
    head = struct.pack("!BBHHH", _ECHO, 0, 0, ident, sequence)
    message = head + bytes(payload_bytes)
    return head[:2] + struct.pack("!H", _checksum(message)) + message[4:]


def _checksum(data: bytes) -> int:
    """RFC 1071, over an even number of bytes."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _answered(client: socket.socket, ident: int, sequence: int, deadline_s: float) -> bool:
    while (left_s := deadline_s - time.monotonic()) > 0 and select.select([client], [], [], left_s)[0]:
        packet = client.recv(65536)
        header_bytes = (packet[0] & 15) * 4
        if (
            packet[header_bytes : header_bytes + 8][4:] == struct.pack("!HH", ident, sequence)
            and packet[header_bytes] == _ECHO_REPLY
        ):
            return True
    return False
