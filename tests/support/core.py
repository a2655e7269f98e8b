"""The pure C core behind a few plain values: frames and trains in, what would be sent or written out.

Nothing here opens a device or a socket. One ``Core`` is one node: 10.5.1.0/24 and fd05:0:0:1::/64 are its own, the other subnets are its
peers'.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

from flanpy.datapath.core import VERDICTS, TableBlob, address_bytes, aligned, build_table, ffi, lib
from flanpy.model import ForwardTable, Hop, TableEntry

OWN = "10.5.1.0/24"
OWN6 = "fd05:0:0:1::/64"
PEER_A = Hop(IPv4Address("172.16.0.2"), 8285)
PEER_B = Hop(IPv4Address("172.16.0.3"), 8285)
PEER_ECN = Hop(IPv4Address("172.16.0.4"), 8285, ecn=True)
PEERS = {"10.5.2.0/24": PEER_A, "10.5.3.0/24": PEER_B, "10.5.4.0/24": PEER_ECN}
PEERS |= {"fd05:0:0:2::/64": PEER_A, "fd05:0:0:3::/64": PEER_B, "fd05:0:0:4::/64": PEER_ECN}
TUNNEL = IPv4Address("10.5.1.0")
TUNNEL6 = IPv6Address("fd05:0:0:1::")

NEEDS_CSUM = 1
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
_VNET = struct.Struct("=BBHHHH")


@dataclass(frozen=True, slots=True)
class Vnet:
    """``struct virtio_net_hdr`` as TUN speaks it."""

    flags: int = 0
    gso_type: int = 0
    header_bytes: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def __bytes__(self) -> bytes:
        return _VNET.pack(self.flags, self.gso_type, self.header_bytes, self.gso_size, self.csum_start, self.csum_offset)

    @classmethod
    def read(cls, data: bytes) -> Vnet:
        """The header in front of a frame."""
        return cls(*_VNET.unpack(data[: _VNET.size]))


PLAIN = Vnet()


@dataclass(frozen=True, slots=True)
class Send:
    """One send to the underlay, cut as the kernel would cut it."""

    hop: Hop
    tos: int
    segment_bytes: int
    packets: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """One write to the TUN device: its vnet header, its packet, and how many packets it stands for."""

    vnet: Vnet
    packet: bytes
    packets: int
    bytes: int


def cut(data: bytes, size: int) -> tuple[bytes, ...]:
    """As UDP_SEGMENT does: equal pieces, the last may be shorter."""
    return tuple(data[at : at + size] for at in range(0, len(data), size))


class Core:
    """One node's pure datapath with its own memory."""

    def __init__(
        self,
        *,
        mtu: int = 1472,
        max_segments: int = 64,
        source_check: bool = True,
        uso: bool = False,
        coalesce: bool = True,
        entries: Sequence[tuple[str, Hop]] = tuple(PEERS.items()),
    ) -> None:
        options = (lib.FP_OPT_SOURCE_CHECK if source_check else 0) | (lib.FP_OPT_USO if uso else 0)
        options |= 0 if coalesce else lib.FP_OPT_NO_COALESCE
        self.blob: TableBlob = build_table(table(entries))
        self._counters = ffi.new("struct fp_verdict_counters *")
        own6 = {"bytes": TUNNEL6.packed}
        self.context: Any = ffi.new("struct fp_context *", (self.blob.table, self._counters, mtu, options, int(TUNNEL), own6))
        self._encap_owner, memory = aligned(lib.fp_encap_bytes())
        self._encap = lib.fp_encap_init(memory, max_segments)
        self._decap_owner, memory = aligned(lib.fp_decap_bytes())
        self._decap = lib.fp_decap_init(memory)
        self._trains: list[Any] = []

    def counts(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes of every verdict that is not zero."""
        every = {name: self._counters.by[number] for number, name in enumerate(VERDICTS)}
        return {name: (count.packets, count.bytes) for name, count in every.items() if count.packets or count.bytes}

    def encap(self, packet: bytes, vnet: Vnet = PLAIN) -> str:
        """Offer one frame; the verdict's name, or ``full``."""
        return self.encap_raw(bytes(vnet) + packet)

    def encap_raw(self, frame: bytes) -> str:
        """Offer the bytes of a frame, in a buffer of exactly their size."""
        buffer = ffi.new("uint8_t[]", max(len(frame), 1))
        ffi.memmove(buffer, frame, len(frame))
        verdict = lib.fp_encap_frame(self._encap, self.context, buffer, len(frame))
        return "full" if verdict == lib.FP_FULL else VERDICTS[verdict]

    def sends(self) -> list[Send]:
        """What stands in the runs; they are empty afterwards."""
        pointer = ffi.new("struct fp_send **")
        count = lib.fp_encap_sends(self._encap, ffi.cast("const struct fp_send **", pointer))
        sends = [self._send(pointer[0][i]) for i in range(count)]
        lib.fp_encap_reset(self._encap)
        return sends

    def _send(self, send: Any) -> Send:
        packets = cut(bytes(ffi.buffer(send.data, send.bytes)), send.segment_bytes)
        assert len(packets) == send.segments
        return Send(self._hop(send.hop), send.tos, send.segment_bytes, packets)

    def _hop(self, number: int) -> Hop:
        hop = lib.fp_table_hop(self.blob.table, number)
        address = IPv6Address(bytes(ffi.buffer(hop.address.bytes)))
        return Hop(address.ipv4_mapped or address, hop.port, ecn=bool(hop.flags & lib.FP_HOP_ECN))

    def out(self, packet: bytes, vnet: Vnet = PLAIN) -> list[bytes]:
        """Encapsulate one frame alone and return its packets in the order in which they leave."""
        assert self.encap(packet, vnet) == "encapsulated"
        return [each for send in self.sends() for each in send.packets]

    def train(self, packets: Sequence[bytes], *, segment: int = 0, sender: Hop = PEER_A, tos: int = 0) -> int:
        """Offer datagrams as one received train (``segment`` 0: as many trains as packets); bytes taken."""
        if segment == 0:
            return sum(self.train_raw(packet, 0, sender, tos) for packet in packets)
        return self.train_raw(b"".join(packets), segment, sender, tos)

    def train_raw(self, data: bytes, segment: int, sender: Hop = PEER_A, tos: int = 0) -> int:
        """Offer the bytes of a train, in a buffer of exactly their size that lives until ``writes``."""
        buffer = ffi.new("uint8_t[]", max(len(data), 1))
        ffi.memmove(buffer, data, len(data))
        self._trains.append(buffer)
        address = ffi.new("struct fp_address *", {"bytes": address_bytes(sender.address)})
        return int(lib.fp_decap_train(self._decap, self.context, address, tos, buffer, len(data), segment))

    def writes(self) -> list[Write]:
        """What would be written to the TUN device; everything is reset afterwards."""
        pointer = ffi.new("struct fp_write **")
        count = lib.fp_decap_writes(self._decap, ffi.cast("const struct fp_write **", pointer))
        writes = [self._write(pointer[0][i]) for i in range(count)]
        lib.fp_decap_reset(self._decap)
        self._trains.clear()
        return writes

    def _write(self, write: Any) -> Write:
        parts = [bytes(ffi.buffer(write.iov[i].iov_base, write.iov[i].iov_len)) for i in range(write.iov_count)]
        data = b"".join(parts)
        return Write(Vnet.read(data), data[_VNET.size :], write.packets, write.bytes)

    def expired(self) -> list[bytes]:
        """Packets that want a Time Exceeded."""
        pointer = ffi.new("struct iovec **")
        count = lib.fp_decap_expired(self._decap, ffi.cast("const struct iovec **", pointer))
        return [bytes(ffi.buffer(pointer[0][i].iov_base, pointer[0][i].iov_len)) for i in range(count)]

    def icmp(self, verdict: str, packet: bytes, mtu: int = 1400, room: int = 1280) -> bytes:
        """The ICMP error that answers a packet; empty when none may be sent."""
        out = ffi.new("uint8_t[]", max(room, 1))
        number = VERDICTS.index(verdict)
        source = ffi.new("uint8_t[]", packet or b"\0")
        size = lib.fp_icmp_error(self.context, number, source, len(packet), mtu, out, room)
        return bytes(ffi.buffer(out, size))


def table(entries: Sequence[tuple[str, Hop]], own: Sequence[str] = (OWN, OWN6)) -> ForwardTable:
    """A ForwardTable of prefixes in text."""
    return ForwardTable(1, tuple(TableEntry(ip_network(prefix), hop) for prefix, hop in entries), tuple(map(ip_network, own)))
