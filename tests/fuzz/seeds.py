"""Writes the seed inputs of the fuzz targets to tests/fuzz/corpus/: ``python -m tests.fuzz.seeds``.

Small and few: one for each path that a fuzzer would need long to find. The formats stand at the top of csrc/fuzz/*.c. Inputs that
once broke something are added to the same folders by hand, under a name that says what.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.support.core import PLAIN, Vnet
from tests.support.packets import Packet, pattern

CORPUS = Path(__file__).parent / "corpus"
BACK = Packet(source="10.5.2.7", destination="10.5.1.5")
BACK6 = Packet(source="fd05:0:0:2::7", destination="fd05:0:0:1::5", flow_label=5)
OUT6 = replace(BACK6, source=BACK6.destination, destination=BACK6.source)
FRAGMENT6 = bytes.fromhex("6000000000182c40") + OUT6.raw()[8:40] + bytes.fromhex("11000001000000071111222200100000") + b"payload."
REPAIR, ADDRESSES = 1, 6
SOURCE_CHECK, USO = 1, 2


def frames(*offered: tuple[bytes, Vnet], max_segments: int = 64, mtu: int = 1472, flags: int = REPAIR | ADDRESSES) -> bytes:
    """Input of encap_frame."""
    parts = [bytes([max_segments]), struct.pack(">H", mtu), bytes([SOURCE_CHECK])]
    for packet, vnet in offered:
        frame = bytes(vnet) + packet
        parts.append(struct.pack(">BH", flags, len(frame)) + frame)
    return b"".join(parts)


def encap_frame() -> Iterator[tuple[str, bytes]]:
    """Frames that are cut, fragmented, packed, refused."""
    tcp, udp = Packet(payload=pattern(300), flags="FPA"), Packet(payload=pattern(300), udp=True)
    yield "tcp_superpacket", frames(tcp.superpacket(100))
    yield "udp_superpacket", frames(udp.superpacket(100))
    yield "two_superpackets_of_short_runs", frames(tcp.superpacket(64), tcp.superpacket(20))
    yield "without_gso", frames(tcp.superpacket(50), max_segments=1)
    yield "unfinished_checksum", frames(tcp.unfinished(), udp.unfinished())
    yield "small_packets", frames(*[(replace(udp, payload=b"x", sport=i).raw(), PLAIN) for i in range(4)])
    yield "fragments", frames(replace(udp, df=False, ip_options=b"\x94\x04\0\0\x07\x04\x04\0").unfinished(), mtu=100)
    yield "too_big", frames((tcp.raw(), PLAIN), mtu=100)
    yield "time_to_live_1", frames((replace(tcp, ttl=1).raw(), PLAIN))
    yield "no_route", frames((replace(tcp, destination="10.9.9.9").raw(), PLAIN), flags=REPAIR)
    yield "tiny_segments", frames(Packet(payload=pattern(400)).superpacket(1), max_segments=2)
    yield "as_they_come", frames((b"", PLAIN), (b"\x45", PLAIN), (tcp.raw()[:19], PLAIN), flags=0)
    tcp6, udp6 = replace(OUT6, payload=pattern(300), flags="FPA"), replace(OUT6, payload=pattern(300), udp=True)
    options6 = replace(tcp6, ip_options=bytes(4))
    yield "ipv6_superpackets", frames(tcp6.superpacket(100), udp6.superpacket(100), options6.superpacket(90))
    yield "ipv6_unfinished", frames(tcp6.unfinished(), udp6.unfinished(), options6.unfinished())
    yield "ipv6_too_big", frames((tcp6.raw(), PLAIN), mtu=100)
    yield "ipv6_fragment", frames((FRAGMENT6, PLAIN))
    yield "ipv6_no_route", frames((tcp6.raw(), PLAIN), (replace(tcp6, ttl=1).raw(), PLAIN), flags=REPAIR)
    yield "ipv6_as_they_come", frames((b"\x60", PLAIN), (tcp6.raw()[:39], PLAIN), (tcp6.raw()[:40], PLAIN), flags=0)


def trains(*offered: tuple[bytes, int], options: int = SOURCE_CHECK | USO, flags: int = 3, tos: int = 0) -> bytes:
    """Input of decap_train."""
    parts = [bytes([options])]
    for data, segment in offered:
        parts.append(struct.pack(">BBHH", flags, tos, segment, len(data)) + data)
    return b"".join(parts)


def stream(base: Packet, count: int, size: int) -> list[bytes]:
    """Consecutive packets of one flow."""
    return [
        replace(base, payload=pattern(size, i), sequence=base.sequence + i * size, ident=base.ident + i).raw()
        for i in range(count)
    ]


def decap_train() -> Iterator[tuple[str, bytes]]:
    """Trains that are merged, split, refused."""
    tcp, udp = stream(BACK, 5, 60), stream(replace(BACK, udp=True), 5, 60)
    short = [*stream(BACK, 2, 60), replace(BACK, payload=b"end", sequence=1120, ident=3, flags="PA").raw()]
    syn = [replace(BACK, flags=flags).raw() for flags in ("S", "SA", "RA", "FA", "UA", "A")]
    yield "tcp_train", trains((b"".join(tcp), 100))
    yield "udp_train", trains((b"".join(udp), 88))
    yield "udp_without_uso", trains((b"".join(udp), 88), options=SOURCE_CHECK)
    yield "short_last", trains((b"".join(short), 100))
    yield "two_trains", trains((b"".join(tcp[:2]), 100), (b"".join(tcp[2:]), 100))
    yield "flags_that_seal", trains((b"".join(syn), 40))
    yield "single", trains((tcp[0], 0))
    yield "congestion", trains((tcp[0], 0), tos=3)
    yield "spoofed", trains((replace(BACK, source="10.5.3.1").raw(), 0), flags=1)
    yield "wrong_size", trains((b"".join(tcp), 99))
    yield "many", trains((b"".join(replace(BACK, sport=i).raw() for i in range(260)), 40))
    tcp6, udp6 = stream(BACK6, 5, 60), stream(replace(BACK6, udp=True), 5, 60)
    yield "ipv6_trains", trains((b"".join(tcp6), 120), (b"".join(udp6), 108))
    yield "ipv6_beside_ipv4", trains((tcp6[0], 0), (tcp[0], 0), (tcp6[1], 0), (tcp[1], 0), tos=1)
    yield "ipv6_options_and_fragments", trains((replace(BACK6, ip_options=bytes(4)).raw(), 0), (FRAGMENT6, 0), (tcp6[0], 0))
    yield "ipv6_refused", trains((replace(BACK6, source="fd05:0:0:3::1").raw(), 0), (replace(BACK6, ttl=1).raw(), 0), flags=1)
    yield "broken", trains((b"", 0), (b"\x45", 1), (tcp[0][:39], 0), flags=0)


def routes(*drawn: tuple[int, int, int], hops: int = 8) -> bytes:
    """Input of table: odd, so built."""
    return bytes([1, hops]) + b"".join(struct.pack(">IBB", *route) for route in drawn)


def table() -> Iterator[tuple[str, bytes]]:
    """Route sets with nodes of both levels, invalid ones, and damaged blobs."""
    yield "default_route", routes((0, 0, 1))
    yield "nested", routes((0x0A000000, 8, 0), (0x0A050000, 16, 1), (0x0A050200, 24, 2), (0x0A050207, 32, 3))
    yield "local", routes((0x0A050100, 24, 255), (0x0A050000, 16, 0))
    yield "neighbours", routes(*[(0x0A050000 + (i << 8), 24, i % 8) for i in range(20)])
    yield "ends_of_the_address_space", routes((0, 32, 1), (0xFFFFFFFF, 32, 2), (0xFF000000, 8, 3))
    yield "twice", routes((0x0A050000, 24, 0), (0x0A050000, 24, 1))
    yield "hop_out_of_range", routes((0x0A050000, 24, 9))
    yield "host_bits", routes((0x0A050001, 24 | 0x80, 0))
    six = [struct.pack(">IIBB", i << 8, i * 7, 64 if i % 3 else 128, i % 8) for i in range(20)]
    yield "ipv6_neighbours", bytes([3, 8]) + b"".join(six)
    yield (
        "ipv6_nested",
        bytes([3, 4]) + b"".join(struct.pack(">IIBB", 0, 0, length, length % 4) for length in (0, 8, 64, 65, 127, 128)),
    )
    yield "ipv6_twice", bytes([3, 4]) + struct.pack(">IIBB", 1, 1, 48, 0) * 2
    yield "ipv6_length_129", bytes([3, 4]) + struct.pack(">IIBB", 1, 1, 129, 0)
    for name, place, word in (
        ("magic", 0, 0),
        ("root_to_node", 32, 0x80000000),
        ("node_rank", 65576, 0xFF),
        ("node_values", 65577, 0),
    ):
        yield f"damaged_{name}", b"\0" + struct.pack(">II", place, word)
    yield "undamaged", b"\0"


def round_trip() -> Iterator[tuple[str, bytes]]:
    """Superpackets of each kind."""
    for kind in range(32):
        tail = b"\x03" if not kind & 1 else b""
        yield f"kind_{kind}", struct.pack(">BHIHB", kind, 0xFFFE, 0xFFFFFF00, 100, kind) + tail + pattern(450 + kind)


def table_history() -> Iterator[tuple[str, bytes]]:
    """Routes that come, change and go, with tables in between."""
    put = b"".join(struct.pack(">BIBB", 0, 0x00050000 + (i << 8), 24, i % 5) for i in range(12))
    put6 = b"".join(struct.pack(">BIIBB", 2, i << 8, 0, 64, i % 5) for i in range(12))
    hops = b"".join(struct.pack(">BBBH", 6, i, 9 - i, 8285) for i in range(5))
    yield "nothing", b""
    yield (
        "nodes_join_and_leave",
        hops + put + put6 + b"\x07" + b"\x04\x03\x05\x02\x07" + b"\x04\0" * 11 + b"\x05\0" * 11 + b"\x07",
    )
    yield "a_subnet_moves", put + b"\x07" + struct.pack(">BIBB", 0, 0x00050300, 24, 4) + b"\x07"
    pods = struct.pack(">BIBB", 0, 0x00050307, 32, 1) + struct.pack(">BIIBB", 2, 0x300, 7, 128, 255)
    yield "pods_of_their_own", put + put6 + pods + b"\x07\x04\x0c\x05\x0c\x07"
    everything = struct.pack(">BIBB", 0, 0, 0, 1) + struct.pack(">BIIBB", 2, 0, 0, 0, 2)
    yield "everything_by_one_hop", everything + b"\x07" + put + put6 + b"\x07"
    yield "hops_of_one_address", put + b"".join(struct.pack(">BBBH", 6, i, 7, i) for i in range(5)) + b"\x07"


HELLO, START, TABLE, STOP, PING, HOLD = range(1, 7)
MAGIC = 0x70647066


def protocol() -> Iterator[tuple[str, bytes]]:
    """Good requests of each kind, and each thing that can be wrong with one."""

    def request(kind: int, fds: int, number: int = 0, more: int = 0, changes: bytes = b"") -> bytes:
        return struct.pack(">BBBIB", 1, kind, fds, number, 128 + more) + changes

    yield "hello", request(HELLO, 0)
    yield "start", request(START, 5, 0x201)
    yield "start_of_64_queues", request(START, 129, 0x4001)
    yield "start_with_31_lanes", request(START, 33, 0x11F)
    yield "no_lane", request(START, 2, 0x100)
    yield "too_many_lanes", request(START, 67, 0x141)
    yield "too_many_descriptors", request(START, 129, 0x41F)
    yield "table", request(TABLE, 1, 4096)
    yield "stop", request(STOP, 0)
    yield "ping", request(PING, 0)
    yield "hold", request(HOLD, 1, 4096)
    yield "hold_with_a_pidfd", request(HOLD, 2, 4096)
    yield "hold_with_three_descriptors", request(HOLD, 3, 4096)
    yield "table_with_two_descriptors", request(TABLE, 2, 4096)
    yield "hold_without_a_table", request(HOLD, 0, 4096)
    yield "another_version", request(START, 5, 0x201, changes=b"\x04\x02")
    yield "hello_of_another_version", request(HELLO, 0, changes=b"\x04\x02")
    yield "another_magic", request(HELLO, 0, changes=b"\0\0")
    yield "unknown_kind", request(7, 0)
    yield "no_queue", request(START, 1, 1)
    yield "too_many_queues", request(START, 131, 0x4101)
    yield "descriptor_missing", request(START, 4, 0x201)
    yield "descriptor_too_many", request(HELLO, 1)
    yield "empty_table", request(TABLE, 1, 0)
    yield "huge_table", request(TABLE, 1, 0x40000001)
    yield "one_byte_long", request(START, 5, 0x201, 1)
    yield "one_byte_short", request(TABLE, 1, 4096, -1)
    yield "shorter_than_a_head", request(STOP, 0, 0, -1)
    yield "as_it_comes", b"\0\0" + struct.pack("<IHHIi", MAGIC, 1, HELLO, 16, 0)
    yield "a_reply", b"\0\0" + struct.pack("<IHHIi", MAGIC, 1, 0x8000 | HELLO, 16, 0)


def main() -> None:
    """Write all of them."""
    for target in (encap_frame, decap_train, table, round_trip, table_history, protocol):
        folder = CORPUS / target.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in target():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
