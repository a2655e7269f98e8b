"""Cutting superpackets, byte for byte against scapy; one packet with an unfinished checksum; fragments."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import IP, defragment

from tests.support.core import GSO_ECN, GSO_TCPV4, GSO_UDP_L4, Core, Vnet
from tests.support.packets import Packet, decremented, ones_sum, pattern, pseudo_sum

TIMESTAMPS = (("NOP", None), ("NOP", None), ("Timestamp", (12345, 67890)))
ROUTER_ALERT = b"\x94\x04\x00\x00"
RECORD_ROUTE = b"\x07\x07\x04\x00\x00\x00\x00\x00"


def cut_by_core(packet: Packet, gso_size: int, *, mtu: int = 1472, more: int = 0) -> list[bytes]:
    data, vnet = packet.superpacket(gso_size)
    return Core(mtu=mtu, max_segments=127).out(data, replace(vnet, gso_type=vnet.gso_type | more))


@pytest.mark.parametrize(
    "packet",
    [
        Packet(payload=pattern(4260)),
        Packet(payload=pattern(4000)),
        Packet(payload=pattern(1421)),
        Packet(payload=pattern(1420)),
        Packet(payload=pattern(1)),
        Packet(payload=pattern(4001), options=TIMESTAMPS),
        Packet(payload=pattern(4001), options=(*TIMESTAMPS, ("SAck", (1, 2, 3, 4)), ("NOP", None), ("NOP", None))),
        Packet(payload=pattern(3999), ip_options=ROUTER_ALERT),
        Packet(payload=pattern(3999), ip_options=RECORD_ROUTE * 5, options=TIMESTAMPS),
        Packet(payload=pattern(4000), flags="FPA"),
        Packet(payload=pattern(4000), flags="PAC"),
        Packet(payload=pattern(4000), flags="FPAEC"),
        Packet(payload=pattern(4000), ident=0xFFFE),
        Packet(payload=pattern(4000), sequence=0xFFFFFFFF - 2000),
        Packet(payload=pattern(4000), df=False, ident=7),
        Packet(payload=pattern(4000), tos=0x03),
        Packet(payload=pattern(4000), tos=0xB9, ttl=2),
        Packet(payload=b"\0" * 4000, ack=0, window=0, sequence=0, ident=0),
        Packet(payload=b"\xff" * 4000),
    ],
    ids=[
        "equal", "odd tail", "tail of one", "exactly one", "one byte", "timestamps", "longest tcp options", "ip option", "both options",
        "fin psh", "cwr", "all flags", "id wraps", "sequence wraps", "df clear", "ce", "dscp, ttl 2", "zeros", "ones",
    ],
)  # fmt: skip
def test_tcp_superpacket_is_cut_as_the_oracle_cuts_it(packet: Packet) -> None:
    gso_size = 1472 - packet.headers_bytes
    assert cut_by_core(packet, gso_size) == packet.segments(gso_size)


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 5000])
@pytest.mark.parametrize("fill", [None, 0, 255])
def test_udp_superpacket_is_cut_as_the_oracle_cuts_it(size: int, fill: int | None) -> None:
    packet = Packet(udp=True, payload=pattern(size) if fill is None else bytes([fill]) * size)
    assert cut_by_core(packet, 1000) == packet.segments(1000)


def test_the_largest_superpacket_is_cut_whole() -> None:
    packet = Packet(payload=pattern(65535 - 40))
    assert cut_by_core(packet, 1432) == packet.segments(1432)


def test_a_superpacket_of_tiny_segments_is_cut_whole() -> None:
    packet = Packet(payload=pattern(1999))
    assert cut_by_core(packet, 1) == packet.segments(1)


def test_an_ecn_superpacket_carries_cwr_on_its_first_segment_only() -> None:
    packet = Packet(payload=pattern(3000), flags="PAC")
    assert cut_by_core(packet, 1400, more=GSO_ECN) == packet.segments(1400)


def test_a_superpacket_whose_checksum_field_is_garbage_leaves_with_right_ones() -> None:
    packet = Packet(payload=pattern(3000))
    data, vnet = packet.superpacket(1400)
    garbage = data[:36] + b"\xde\xad" + data[38:]
    assert Core().out(garbage, replace(vnet, flags=0, csum_start=0, csum_offset=0, header_bytes=0)) == packet.segments(1400)


@settings(deadline=None)
@given(
    payload=st.binary(min_size=1, max_size=6000),
    gso_size=st.integers(1, 1400),
    flags=st.sampled_from(["A", "PA", "FA", "FPA", "PAC", "AE", "FPAEC"]),
    ident=st.integers(0, 0xFFFF),
    sequence=st.integers(0, 0xFFFFFFFF),
    tos=st.integers(0, 255),
    udp=st.booleans(),
    options=st.sampled_from([(), TIMESTAMPS]),
)
def test_any_superpacket_is_cut_as_the_oracle_cuts_it(
    payload: bytes,
    gso_size: int,
    flags: str,
    ident: int,
    sequence: int,
    tos: int,
    udp: bool,
    options: tuple[tuple[str, object], ...],
) -> None:
    gso_size = max(gso_size, -(-len(payload) // 60))
    packet = Packet(payload=payload, flags=flags, ident=ident, sequence=sequence, tos=tos, udp=udp, options=options)
    assert cut_by_core(packet, gso_size) == packet.segments(gso_size)


# --------------------------------------------------------------------------------------------- one packet, its checksum


@pytest.mark.parametrize(
    "packet", [Packet(payload=pattern(100)), Packet(payload=pattern(99), udp=True), Packet(payload=b"", udp=True)]
)
def test_an_unfinished_checksum_is_finished(packet: Packet) -> None:
    data, vnet = packet.unfinished()
    assert Core().out(data, vnet) == [replace(packet, ttl=63).raw()]


def udp_whose_sum_is_zero() -> tuple[Packet, int]:
    """A payload word is chosen so that the checksum comes out as zero."""
    packet = Packet(udp=True, payload=b"\0\0" + pattern(40))
    data = packet.raw()
    partial = ones_sum(data[20:26] + data[28:] + pseudo_sum(data).to_bytes(2, "big"))
    word = 0xFFFF - partial
    return replace(packet, payload=word.to_bytes(2, "big") + pattern(40)), word


def test_a_udp_checksum_of_zero_leaves_as_all_ones() -> None:
    packet, _ = udp_whose_sum_is_zero()
    data, vnet = packet.unfinished()
    assert Core().out(data, vnet)[0][26:28] == b"\xff\xff"
    assert packet.segments(1000)[0][26:28] == b"\xff\xff", "the oracle agrees"
    data, vnet = packet.superpacket(1000)
    assert Core().out(data, vnet) == packet.segments(1000)


def test_a_finished_packet_leaves_as_it_is_but_for_its_ttl() -> None:
    wrong_checksum = bytearray(Packet(payload=pattern(77)).raw())
    wrong_checksum[36] ^= 0x55
    for data in (bytes(wrong_checksum), Packet(payload=pattern(5), ip_options=ROUTER_ALERT).raw(), Packet(udp=True).raw()):
        assert Core().out(data) == [decremented(data)]


def test_bytes_behind_the_total_length_fall_away() -> None:
    data = Packet(payload=pattern(50)).raw()
    assert Core().out(data + b"ethernet padding") == [decremented(data)]


def test_a_checksum_deep_in_a_packet_is_finished_where_the_header_says() -> None:
    inner = Packet(udp=True, payload=pattern(30))
    unfinished, vnet = inner.unfinished()
    outer = bytes(IP(src="10.5.1.5", dst="10.5.2.7", proto=4, id=3) / unfinished)
    done = Core().out(outer, replace(vnet, csum_start=vnet.csum_start + 20))[0]
    assert done[20:] == inner.raw()


# -------------------------------------------------------------------------------------------------------------- fragments


@pytest.mark.parametrize("size", [1473, 2904, 2905, 4000, 65515])
@pytest.mark.parametrize("unfinished", [False, True])
def test_a_packet_that_is_too_big_is_fragmented_and_comes_together_again(size: int, unfinished: bool) -> None:
    packet = Packet(udp=True, payload=pattern(size - 28), df=False, ident=4711)
    data, vnet = packet.unfinished() if unfinished else (packet.raw(), Vnet())
    pieces = [IP(piece) for piece in Core().out(data, vnet)]
    assert all(len(piece) <= 1472 and piece.ttl == 63 and piece.id == 4711 for piece in pieces)
    assert [len(piece) for piece in pieces[:-1]] == [1468] * (len(pieces) - 1), "as full as a multiple of 8 allows"
    assert all(bytes(piece) == decremented(bytes(replace_ttl(piece))) for piece in pieces), "header checksums are right"
    assert bytes(defragment(pieces)[0]) == replace(packet, ttl=63).raw()


def replace_ttl(piece: IP) -> IP:
    again = piece.copy()
    again.ttl += 1
    return again


def test_only_copied_options_stand_in_later_fragments() -> None:
    data = Packet(udp=True, payload=pattern(3000), df=False, ip_options=ROUTER_ALERT + RECORD_ROUTE).raw()
    first, *later = Core().out(data)
    assert first[20:32] == data[20:32]
    assert all(piece[0] == 0x46 and piece[20:24] == ROUTER_ALERT for piece in later)
    assert first[(first[0] & 15) * 4 :] + b"".join(piece[24:] for piece in later) == data[32:]


def test_a_fragment_is_fragmented_on_from_its_offset() -> None:
    whole = IP(src="10.5.1.5", dst="10.5.2.7", id=9, proto=17, flags="MF", frag=100) / pattern(2000)
    pieces = [IP(piece) for piece in Core().out(bytes(whole))]
    assert [(piece.frag, piece.flags.MF, len(piece)) for piece in pieces] == [(100, True, 1468), (281, True, 572)]


def test_a_last_fragment_keeps_its_end() -> None:
    whole = IP(src="10.5.1.5", dst="10.5.2.7", id=9, proto=17, frag=100) / pattern(2000)
    assert [bool(IP(piece).flags.MF) for piece in Core().out(bytes(whole))] == [True, False]


def test_gso_types_are_tcp_and_udp_of_the_kernel() -> None:
    assert (GSO_TCPV4, GSO_UDP_L4, GSO_ECN) == (1, 5, 128)
