"""ICMP echo requests of a chosen size that must not be fragmented, to one address of either family.

Needs CAP_NET_RAW or root. One request is out at a time; a packet that is no answer to it is passed over, whoever sent it.

    IPv4 (RFC 792)    header 20, ICMP 8, data      a raw socket delivers the IP header too
    IPv6 (RFC 4443)   header 40, ICMPv6 8, data    it does not, and the kernel computes the checksum
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from types import TracebackType

from flanpy.model import Address

HEADERS_BYTES = {4: 28, 6: 48}
"""IP header without options or extension headers, and ICMP header, by IP version."""
_REQUEST_REPLY = {4: (8, 0), 6: (128, 129)}
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_DONTFRAG, _PMTUDISC_PROBE = 10, 23, 62, 3
"""ip(7), ipv6(7), linux/in.h: set the don't-fragment bit whatever the kernel believes of the path."""
_RECEIVE_BYTES = 65536


class Echo:
    """A socket for echo requests to one address; a context manager. Raises OSError when there is no way there, or no permission."""

    def __init__(self, address: Address) -> None:
        self._version = address.version
        self._sequence = 0
        family, protocol = (
            (socket.AF_INET, socket.IPPROTO_ICMP) if address.version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        )
        self._socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._ident = (os.getpid() ^ self._socket.fileno() << 8) & 0xFFFF
        try:
            if address.version == 4:
                self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
                self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
            self._socket.connect((str(address), 0))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    @property
    def source(self) -> str:
        """The address that the kernel sends from."""
        return str(self._socket.getsockname()[0])

    def ask(self, packet_bytes: int, wait_s: float) -> float | None:
        """One request of this size, IP header included: seconds until its answer, None when none came or it is too big to leave."""
        self._sequence = (self._sequence + 1) & 0xFFFF
        started_s = time.monotonic()
        try:
            self._socket.send(self._request(packet_bytes - HEADERS_BYTES[self._version]))
            return self._answered(started_s, wait_s)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return None
            raise

    def _request(self, data_bytes: int) -> bytes:
        kind = _REQUEST_REPLY[self._version][0]
        message = struct.pack("!BBHHH", kind, 0, 0, self._ident, self._sequence) + bytes(max(0, data_bytes))
        return message if self._version == 6 else message[:2] + struct.pack("!H", checksum(message)) + message[4:]

    def _answered(self, started_s: float, wait_s: float) -> float | None:
        deadline_s = started_s + wait_s
        while (left_s := deadline_s - time.monotonic()) > 0 and select.select([self._socket], [], [], left_s)[0]:
            if self._is_answer(self._socket.recv(_RECEIVE_BYTES)):
                return time.monotonic() - started_s
        return None

    def _is_answer(self, packet: bytes) -> bool:
        at = (packet[0] & 15) * 4 if self._version == 4 and packet else 0
        expected = struct.pack("!HH", self._ident, self._sequence)
        return len(packet) >= at + 8 and packet[at] == _REQUEST_REPLY[self._version][1] and packet[at + 4 : at + 8] == expected


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071), host order."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
