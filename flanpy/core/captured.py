"""Captured packets: what they are in one line, whether they fit the operator's filter, and the file they are kept in. Pure.

A record begins with the IP header, whatever the link was. Outer packets of the udp backend carry the bare inner packet:

    IPv4/IPv6 | UDP, port of the backend | inner IP packet | (superpacket: more inner packets, of the first one's size)
    vxlan     | UDP                      | VXLAN 8 bytes, Ethernet 14 bytes | inner IP packet
    ipip      | inner IP packet

File: pcapng (draft-ietf-opsawg-pcapng): one section, an interface for each device, link type RAW (101): Wireshark and tcpdump read it.
Packets are hostile: every length is checked, what cannot be read is shown as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from flanpy.model import Address, Network

_PROTOCOLS = {1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_TCP_FLAGS = "FSRP.UEW"
_ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_ICMPV6 = {1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply"}
_ICMPV6 |= {
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
}
_VXLAN_BYTES = 8 + 14
_EXTENSIONS = {0, 43, 60}
"""IPv6 extension headers that are stepped over: hop by hop, routing, destination options."""
_STEPS_MAX = 8


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet, as far as it can be read. ``payload`` begins after the IP header and its extensions."""

    source: Address
    destination: Address
    protocol: int
    payload: bytes
    total_bytes: int
    hop_limit: int
    fragment: bool = False
    """Whether it is a later fragment, which has no header of its own protocol."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What tells outer packets from others: the backend and its UDP port (0: the kernel's default, or none)."""

    backend: str
    port: int


@dataclass(frozen=True, slots=True)
class Filter:
    """What the operator wants to see; None: anything. ``peer`` is an outer address, ``pod`` an inner one."""

    peer: Address | None = None
    pod: Address | None = None
    networks: tuple[Network, ...] = ()
    """Only packets from or to these; empty: any."""


def parse(data: bytes) -> Packet | None:
    """The packet that begins here; None when it is no whole header of IPv4 or IPv6."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        return _parse4(data)
    if len(data) >= 40 and data[0] >> 4 == 6:
        return _parse6(data)
    return None


def _parse4(data: bytes) -> Packet | None:
    header_bytes = (data[0] & 15) * 4
    if header_bytes < 20 or len(data) < header_bytes:
        return None
    total, offset = int.from_bytes(data[2:4], "big"), int.from_bytes(data[6:8], "big") & 0x1FFF
    source, destination = IPv4Address(data[12:16]), IPv4Address(data[16:20])
    return Packet(source, destination, data[9], data[header_bytes:], total or len(data), data[8], bool(offset))


def _parse6(data: bytes) -> Packet:
    protocol, at, fragment = data[6], 40, False
    for _ in range(_STEPS_MAX):
        if len(data) < at + 8 or (protocol not in _EXTENSIONS and protocol != 44):
            break
        if protocol == 44:  # fragment header
            fragment = bool(int.from_bytes(data[at + 2 : at + 4], "big") & 0xFFF8)
            protocol, at = data[at], at + 8
        else:
            protocol, at = data[at], at + 8 * (data[at + 1] + 1)
    total = 40 + int.from_bytes(data[4:6], "big")
    return Packet(IPv6Address(data[8:24]), IPv6Address(data[24:40]), protocol, data[at:], total, data[7], fragment)


def inner(packet: Packet, tunnel: Tunnel) -> tuple[Packet, int] | None:
    """The first inner packet and how many bytes of inner packets there are; None when this is no packet of the tunnel."""
    if packet.fragment:
        return None
    if tunnel.backend == "ipip" and packet.protocol == 4:
        found = parse(packet.payload)
        return None if found is None else (found, packet.total_bytes - 20)
    if packet.protocol != 17 or len(packet.payload) < 8 or tunnel.backend not in ("udp", "vxlan"):
        return None
    if tunnel.port not in struct.unpack("!HH", packet.payload[:4]):
        return None
    skipped = 8 + (_VXLAN_BYTES if tunnel.backend == "vxlan" else 0)
    found = parse(packet.payload[skipped:])
    headers = 20 if packet.source.version == 4 else 40
    return None if found is None else (found, packet.total_bytes - headers - skipped)


def wanted(packet: Packet, tunnel: Tunnel, choice: Filter, *, outer: bool) -> bool:
    """Whether the operator asked for this packet; of a superpacket the first inner packet decides."""
    if choice.networks and not any(_inside(packet, network) for network in choice.networks):
        return False
    nested = inner(packet, tunnel) if outer else None
    if choice.peer is not None and not (outer and choice.peer in (packet.source, packet.destination)):
        return False
    if choice.pod is None:
        return True
    shown = nested[0] if nested is not None else packet if not outer else None
    return shown is not None and choice.pod in (shown.source, shown.destination)


def _inside(packet: Packet, network: Network) -> bool:
    return packet.source.version == network.version and (packet.source in network or packet.destination in network)


# ------------------------------------------------------------------------------------------------ text


def describe(packet: Packet, tunnel: Tunnel | None = None) -> str:
    """``10.0.0.1.8285 > 10.0.0.2.8285 udp 92 [10.244.7.2 > 10.244.9.3 icmp 84 echo request ttl 63]``."""
    text = f"{_ends(packet)} {_PROTOCOLS.get(packet.protocol, packet.protocol)} {packet.total_bytes}"
    detail = "later fragment" if packet.fragment else _detail(packet)
    nested = None if tunnel is None else inner(packet, tunnel)
    if nested is None:
        return f"{text}{' ' + detail if detail else ''} ttl {packet.hop_limit}"
    first, bytes_inside = nested
    several = f", first of {-(-bytes_inside // first.total_bytes)}" if 0 < first.total_bytes < bytes_inside else ""
    return f"{text} [{describe(first)}{several}]"


def _ends(packet: Packet) -> str:
    if packet.protocol in (6, 17) and len(packet.payload) >= 4 and not packet.fragment:
        source, destination = struct.unpack("!HH", packet.payload[:4])
        return f"{packet.source}.{source} > {packet.destination}.{destination}"
    return f"{packet.source} > {packet.destination}"


def _detail(packet: Packet) -> str:
    payload = packet.payload
    match packet.protocol:
        case 6 if len(payload) >= 20:
            flags = "".join(letter for bit, letter in enumerate(_TCP_FLAGS) if payload[13] >> bit & 1)
            return f"[{flags}] seq {int.from_bytes(payload[4:8], 'big')} ack {int.from_bytes(payload[8:12], 'big')}"
        case 1 if len(payload) >= 8:
            return _icmp(payload, _ICMP, (0, 8))
        case 58 if len(payload) >= 8:
            return _icmp(payload, _ICMPV6, (128, 129))
    return ""


def _icmp(payload: bytes, names: dict[int, str], echoes: tuple[int, int]) -> str:
    name = names.get(payload[0], f"type {payload[0]}")
    return f"{name} seq {int.from_bytes(payload[6:8], 'big')}" if payload[0] in echoes else f"{name} code {payload[1]}"


# ------------------------------------------------------------------------------------------------ pcapng

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_LINKTYPE_RAW = 101
_NAME, _TIME_RESOLUTION, _FLAGS = 2, 9, 2
INBOUND, OUTBOUND = 1, 2


def file_head(interfaces: Sequence[tuple[str, int]], snap_bytes: int) -> bytes:
    """The section and its interfaces; each is a name, and times are in nanoseconds."""
    section = _block(_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    return section + b"".join(
        _block(
            _INTERFACE,
            struct.pack("<HHI", _LINKTYPE_RAW, 0, snap_bytes)
            + _option(_NAME, name.encode()[:64])
            + _option(_TIME_RESOLUTION, b"\x09")
            + _option(0, b""),
        )
        for name, _ in interfaces
    )


def file_packet(interface: int, time_ns: int, data: bytes, original_bytes: int, direction: int) -> bytes:
    """One packet on the interface of this number, ``INBOUND`` or ``OUTBOUND``."""
    head = struct.pack("<IIIII", interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), original_bytes)
    return _block(_PACKET, head + _padded(data) + _option(_FLAGS, struct.pack("<I", direction)) + _option(0, b""))


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
