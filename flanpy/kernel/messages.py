"""Netlink framing: packs and takes apart messages and attributes; no sockets, no meaning.

    message    u32 length | u16 type | u16 flags | u32 sequence | u32 port | family header | attributes     aligned to 4
    attribute  u16 length | u16 type | payload                                                             aligned to 4
    error      message of type 2 | i32 -errno | header of the request | attributes (text) when flagged      errno 0: acknowledgement

Numbers are in host order. pyroute2 does the same for any message, at 0.2 to 0.5 ms each; what comes by the ten thousand goes through here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

NLMSG_ERROR, NLMSG_DONE = 2, 3

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
"""Flags of every request; of one that is answered also when it went well; of one that asks for a whole table."""
REPLACE, EXCLUSIVE, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
"""Flags of a request that writes."""
DUMP_INTERRUPTED = 0x10
_CAPPED, _HAS_ATTRIBUTES = 0x100, 0x200
_ERROR_TEXT = 1

HEADER_BYTES = 16
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ATTRIBUTE_TYPE_MASK = 0x3FFF


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A whole message, padded; ``body`` is the family header and the attributes."""
    padding = b"\0" * (-len(body) & 3)
    return _HEADER.pack(HEADER_BYTES + len(body), kind, flags | REQUEST, sequence, 0) + body + padding


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) & 3)


@dataclass(frozen=True, slots=True)
class Message:
    """A received message: ``body`` is what follows its header."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: memoryview


def split(data: memoryview) -> Iterator[Message]:
    """The messages of one datagram; ends at the first that does not fit, for the rest cannot be trusted then."""
    offset = 0
    while offset + HEADER_BYTES <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < HEADER_BYTES or offset + length > len(data):
            return
        yield Message(kind, flags, sequence, port, data[offset + HEADER_BYTES : offset + length])
        offset += (length + 3) & ~3


def attributes(body: memoryview, start: int) -> dict[int, bytes]:
    """The attributes of a message that begin at ``start``, by type; ends at the first that does not fit."""
    found: dict[int, bytes] = {}
    end = len(body)
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        if length < 4 or start + length > end:
            break
        found[kind & _ATTRIBUTE_TYPE_MASK] = bytes(body[start + 4 : start + length])
        start += (length + 3) & ~3
    return found


def error_of(received: Message) -> tuple[int, str]:
    """The errno (0: acknowledgement) of an error message, and the kernel's own text about it ("" if there is none)."""
    if len(received.body) < 4 + HEADER_BYTES:
        return -int.from_bytes(received.body[:4], "little", signed=True), ""
    (negative,) = struct.unpack_from("=i", received.body)
    if not received.flags & _HAS_ATTRIBUTES:
        return -negative, ""
    (request_bytes,) = struct.unpack_from("=I", received.body, 4)
    start = 4 + (HEADER_BYTES if received.flags & _CAPPED else (request_bytes + 3) & ~3)
    text = attributes(received.body, start).get(_ERROR_TEXT, b"")
    return -negative, text.rstrip(b"\0").decode("utf-8", "replace")
