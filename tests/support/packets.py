"""Packets by scapy, and the slow way of doing what the core does: scapy computes every length and checksum anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scapy.all import IP, TCP, UDP, IPv6, IPv6ExtHdrDestOpt, PadN, Raw, raw

from tests.support.core import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, Vnet

HERE = "10.5.1.5"
THERE = "10.5.2.7"
HERE6 = "fd05:0:0:1::5"
THERE6 = "fd05:0:0:2::7"


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every place is recognizable."""
    return bytes((i * 7 + i // 251 + seed) & 0xFF for i in range(size))


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP or UDP packet in the words of this test suite; ``raw()`` makes the bytes, all checksums right.

    IPv6 by its addresses: ``ident`` and ``df`` mean nothing then, ``ip_options`` become a destination options header.
    """

    source: str = HERE
    destination: str = THERE
    sport: int = 40000
    dport: int = 80
    payload: bytes = b""
    sequence: int = 1000
    ack: int = 77
    window: int = 500
    flags: str = "A"
    options: tuple[tuple[str, object], ...] = ()
    ip_options: bytes = b""
    tos: int = 0
    ttl: int = 64
    ident: int = 1
    df: bool = True
    udp: bool = False
    flow_label: int = 0

    def _header(self) -> IP:
        if ":" in self.destination:
            header6 = IPv6(src=self.source, dst=self.destination, tc=self.tos, hlim=self.ttl, fl=self.flow_label)
            return header6 / IPv6ExtHdrDestOpt(options=[PadN(optdata=self.ip_options)]) if self.ip_options else header6
        header = IP(src=self.source, dst=self.destination, tos=self.tos, ttl=self.ttl, id=self.ident & 0xFFFF)
        header.flags = "DF" if self.df else 0
        if self.ip_options:
            header.options = self.ip_options
        return header

    def ip(self) -> IP:
        """The scapy packet."""
        header = self._header()
        if self.udp:
            return header / UDP(sport=self.sport, dport=self.dport) / Raw(self.payload)
        tcp = TCP(sport=self.sport, dport=self.dport, seq=self.sequence & 0xFFFFFFFF, ack=self.ack, window=self.window)
        tcp.flags = self.flags
        tcp.options = list(self.options)
        return header / tcp / Raw(self.payload)

    def raw(self) -> bytes:
        """The bytes on the wire."""
        return bytes(raw(self.ip()))

    @property
    def headers_bytes(self) -> int:
        """Length of both headers."""
        return len(self.raw()) - len(self.payload)

    def superpacket(self, gso_size: int) -> tuple[bytes, Vnet]:
        """As the kernel hands it to TUN: checksum unfinished, offload fields set."""
        whole = bytearray(self.raw())
        start = transport_start(whole)
        offset = 6 if self.udp else 16
        whole[start + offset : start + offset + 2] = pseudo_sum(bytes(whole)).to_bytes(2, "big")
        kind = GSO_UDP_L4 if self.udp else GSO_TCPV4 if whole[0] >> 4 == 4 else GSO_TCPV6
        return bytes(whole), Vnet(NEEDS_CSUM, kind, self.headers_bytes, gso_size, start, offset)

    def unfinished(self) -> tuple[bytes, Vnet]:
        """One packet with an unfinished checksum, no superpacket."""
        packet, vnet = self.superpacket(1)
        return packet, replace(vnet, gso_type=0, gso_size=0)

    def segments(self, gso_size: int) -> list[bytes]:
        """The oracle: what a TSO or USO card would put on the wire, packet by packet, TTL one less."""
        pieces = [self.payload[at : at + gso_size] for at in range(0, len(self.payload), gso_size)] or [b""]
        last = len(pieces) - 1
        return [
            replace(
                self,
                payload=piece,
                sequence=self.sequence + i * gso_size,
                ident=self.ident + i,
                ttl=self.ttl - 1,
                flags=segment_flags(self.flags, first=i == 0, last=i == last),
            ).raw()
            for i, piece in enumerate(pieces)
        ]


def transport_start(packet: bytes | bytearray) -> int:
    """Where TCP or UDP begins: behind IPv4 options, or behind one IPv6 options header if there is one."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4
    return 40 + (packet[41] + 1) * 8 if packet[6] == 60 else 40


def protocol(packet: bytes | bytearray) -> int:
    """The transport's number."""
    if packet[0] >> 4 == 4:
        return packet[9]
    return packet[40] if packet[6] == 60 else packet[6]


def addresses(packet: bytes) -> bytes:
    """Source and destination as they stand in the packet."""
    return packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]


def segment_flags(flags: str, *, first: bool, last: bool) -> str:
    """FIN and PSH on the last only, CWR on the first only."""
    kept = flags if last else flags.replace("F", "").replace("P", "")
    return kept if first else kept.replace("C", "")


def ones_sum(data: bytes) -> int:
    """Ones' complement sum of big-endian 16-bit words, folded; the slow oracle of RFC 1071."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def pseudo_sum(packet: bytes) -> int:
    """Folded, uncomplemented sum of the pseudo-header over the packet's own length."""
    start = transport_start(packet)
    return ones_sum(addresses(packet) + bytes([0, protocol(packet)]) + (len(packet) - start).to_bytes(2, "big"))


def with_ip_check(packet: bytes) -> bytes:
    """The packet with its IPv4 header checksum made right, whatever else is wrong in it; IPv6 has none."""
    if packet[:1] and packet[0] >> 4 == 6:
        return packet
    start = (packet[0] & 15) * 4
    blank = packet[:10] + b"\0\0" + packet[12:]
    return blank[:10] + (0xFFFF ^ ones_sum(blank[:start])).to_bytes(2, "big") + blank[12:]


def decremented(packet: bytes) -> bytes:
    """The packet with a TTL one less and its header checksum made anew."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes([packet[7] - 1]) + packet[8:]
    return with_ip_check(packet[:8] + bytes([packet[8] - 1]) + packet[9:])
