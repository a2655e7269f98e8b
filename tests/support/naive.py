"""The slow way through a node: one packet at a time, cut and summed by scapy. For any bytes, also those of a real kernel.

Knows nothing of runs, trains or merging; whatever the core packs together must be what stands here, packet by packet.
"""

from __future__ import annotations

from dataclasses import dataclass

from scapy.all import IP, TCP, UDP, IPv6, raw

from tests.support.core import GSO_ECN, GSO_UDP_L4, NEEDS_CSUM, Vnet
from tests.support.packets import addresses, decremented, ones_sum, protocol, segment_flags, transport_start


@dataclass(frozen=True, slots=True)
class Frame:
    """What a TUN device gives or takes."""

    vnet: Vnet
    packet: bytes


def packets_of(frame: Frame) -> list[bytes]:
    """The packets that a frame stands for, checksums finished, TTL as it is."""
    kind = frame.vnet.gso_type & ~GSO_ECN
    if kind:
        return _cut(frame.packet, frame.vnet.gso_size, udp=kind == GSO_UDP_L4)
    return [_finished(frame.packet, frame.vnet)]


def sent(frame: Frame) -> list[bytes]:
    """The packets as they leave a node: TTL one less."""
    return [decremented(packet) for packet in packets_of(frame)]


def flow_of(packet: bytes) -> bytes:
    """Addresses, protocol and, where there are any, ports: packets of one flow must keep their order."""
    start, number = transport_start(packet), protocol(packet)
    fragment = packet[0] >> 4 == 4 and (packet[6] & 0x3F or packet[7])
    return addresses(packet) + bytes([number]) + (b"" if fragment or number not in (6, 17) else packet[start : start + 4])


def by_flow(packets: list[bytes]) -> dict[bytes, list[bytes]]:
    """The packets of each flow in their order."""
    flows: dict[bytes, list[bytes]] = {}
    for packet in packets:
        flows.setdefault(flow_of(packet), []).append(packet)
    return flows


def _cut(packet: bytes, size: int, *, udp: bool) -> list[bytes]:
    start = transport_start(packet)
    headers = start + (8 if udp else (packet[start + 12] >> 4) * 4)
    payload = packet[headers:]
    offsets = range(0, len(payload), size) or [0]
    return [
        _piece(packet[:headers], payload[at : at + size], i, at, last=at + size >= len(payload)) for i, at in enumerate(offsets)
    ]


def _piece(headers: bytes, payload: bytes, index: int, offset: int, *, last: bool) -> bytes:
    piece = IPv6(headers + payload) if headers[0] >> 4 == 6 else IP(headers + payload)
    if IP in piece:
        piece.id = (piece.id + index) & 0xFFFF
        del piece.chksum, piece.len
    else:
        del piece.plen
    if TCP in piece:
        piece[TCP].seq = (piece[TCP].seq + offset) & 0xFFFFFFFF
        piece[TCP].flags = segment_flags(str(piece[TCP].flags), first=index == 0, last=last)
        del piece[TCP].chksum
    else:
        del piece[UDP].chksum, piece[UDP].len
    return bytes(raw(piece))


def _finished(packet: bytes, vnet: Vnet) -> bytes:
    if not vnet.flags & NEEDS_CSUM:
        return packet
    at = vnet.csum_start + vnet.csum_offset
    check = 0xFFFF ^ ones_sum(packet[vnet.csum_start :])
    if not check and protocol(packet) == 17:
        check = 0xFFFF
    return packet[:at] + check.to_bytes(2, "big") + packet[at + 2 :]
