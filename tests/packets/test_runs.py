"""Packing into runs: what one send holds, and that no flow is ever reordered."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.core import PEER_A, PEER_B, PEER_ECN, Core, Send, Vnet
from tests.support.packets import Packet, decremented, pattern

TO_A = "10.5.2.7"
TO_B = "10.5.3.7"
TO_ECN = "10.5.4.7"


def shape(sends: list[Send]) -> list[tuple[object, int, list[int]]]:
    return [(send.hop, send.segment_bytes, [len(packet) for packet in send.packets]) for send in sends]


def udp(size: int, *, to: str = TO_A, sport: int = 1, mark: int = 0, tos: int = 0) -> bytes:
    return Packet(udp=True, destination=to, sport=sport, ident=mark, payload=pattern(size - 28, mark), tos=tos).raw()


def test_equal_sizes_of_different_flows_to_one_peer_are_one_send() -> None:
    core = Core(max_segments=127)
    packets = [udp(92, sport=i, mark=i) for i in range(127)]
    assert {core.encap(packet) for packet in packets} == {"encapsulated"}
    assert core.sends() == [Send(PEER_A, 0, 92, tuple(decremented(packet) for packet in packets))]


def test_peers_and_marks_are_never_mixed_in_one_send() -> None:
    core = Core()
    for to in (TO_A, TO_B, TO_ECN):
        for tos in (0, 2, 0xB8):
            for _ in range(2):
                assert core.encap(udp(100, to=to, tos=tos, sport=tos)) == "encapsulated"
    assert [(send.hop, send.tos, len(send.packets)) for send in core.sends()] == [
        (PEER_A, 0, 6),
        (PEER_B, 0, 6),
        (PEER_ECN, 0, 4),
        (PEER_ECN, 2, 2),
    ]


def test_ecn_is_copied_out_only_to_peers_that_combine_it() -> None:
    for mark in range(4):
        core = Core()
        core.encap(udp(100, to=TO_A, tos=0xB8 | mark))
        core.encap(udp(100, to=TO_ECN, tos=0xB8 | mark))
        assert [send.tos for send in core.sends()] == [0, mark]


def test_a_run_ends_at_max_segments() -> None:
    core = Core(max_segments=3)
    for mark in range(7):
        core.encap(udp(92, mark=mark))
    assert [len(send.packets) for send in core.sends()] == [3, 3, 1]


def test_a_run_ends_at_65507_bytes() -> None:
    core = Core(max_segments=127)
    for mark in range(46):
        core.encap(udp(1472, mark=mark))
    assert [len(send.packets) for send in core.sends()] == [44, 2]


def test_without_gso_every_packet_is_a_send() -> None:
    core = Core(max_segments=1)
    for mark in range(3):
        core.encap(udp(92, mark=mark))
    data, vnet = Packet(payload=pattern(3000)).superpacket(1432)
    core.encap(data, vnet)
    assert [len(send.packets) for send in core.sends()] == [1] * 6


def test_the_rest_of_a_superpacket_is_packed_with_the_next_one() -> None:
    core = Core(max_segments=64)
    packet = Packet(payload=pattern(46 * 1420))
    for i in range(2):
        data, vnet = replace(packet, sequence=1000 + i * len(packet.payload)).superpacket(1420)
        assert core.encap(data, vnet) == "encapsulated"
    assert [len(send.packets) for send in core.sends()] == [44, 44, 4]


def test_the_short_tail_of_a_superpacket_ends_its_run() -> None:
    core = Core()
    data, vnet = Packet(payload=pattern(3000)).superpacket(1432)
    core.encap(data, vnet)
    assert shape(core.sends()) == [(PEER_A, 1472, [1472, 1472, 176])]


def test_a_short_packet_of_another_flow_does_not_end_a_run_early() -> None:
    core = Core()
    for mark in range(3):
        core.encap(udp(1472, mark=mark))
        core.encap(udp(92, sport=9, mark=mark))
    assert [send.segment_bytes for send in core.sends()] == [1472, 92]


def test_a_lone_short_packet_joins_the_end_of_a_longer_run() -> None:
    core = Core()
    core.encap(udp(1472, mark=0))
    core.encap(udp(92, sport=9, mark=1))
    core.encap(udp(1472, mark=2))
    assert shape(core.sends()) == [(PEER_A, 1472, [1472, 1472, 92])]


def test_a_longer_packet_opens_a_run_behind_its_own_flow() -> None:
    core = Core()
    core.encap(udp(1472, sport=1, mark=0))
    core.encap(udp(92, sport=2, mark=1))
    core.encap(udp(92, sport=2, mark=2))
    core.encap(udp(1472, sport=2, mark=3))
    core.encap(udp(1472, sport=1, mark=4))
    assert shape(core.sends()) == [(PEER_A, 1472, [1472]), (PEER_A, 92, [92, 92]), (PEER_A, 1472, [1472, 1472])]


def test_finished_runs_take_nothing_until_they_are_reset() -> None:
    core = Core()
    core.encap(udp(92))
    assert len(core.sends()) == 1
    assert core.sends() == []
    assert core.encap(udp(92)) == "encapsulated"


# ------------------------------------------------------------------------------------------------------------------ order


@dataclass(frozen=True)
class Offer:
    """A frame offered: its flow, and the packets that must leave for it in this order."""

    data: bytes
    vnet: Vnet
    leaves: tuple[bytes, ...]


def offer(flow: int, kind: int, size: int, number: int) -> Offer:
    base = Packet(
        source=f"10.5.1.{1 + flow % 3}", destination=(TO_A, TO_B)[flow % 2], sport=flow, ident=number * 100, udp=flow % 4 == 3
    )
    if kind == 0:
        packet = replace(base, payload=pattern(size * 4, number))
        return Offer(*packet.superpacket(size), tuple(packet.segments(size)))
    packet = replace(base, payload=pattern(size, number))
    if kind == 1:
        return Offer(packet.raw(), Vnet(), (decremented(packet.raw()),))
    fragment = packet.ip()
    fragment.frag, fragment.flags = (0, "MF") if kind == 2 else (185, 0)
    return Offer(bytes(fragment), Vnet(), (decremented(bytes(fragment)),))


offers = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 1, 1, 2, 3]), st.sampled_from([20, 64, 64, 500, 1000, 1400, 1400, 1420])),
    min_size=1,
    max_size=40,
)


def flow_key(packet: bytes) -> tuple[bytes, bytes]:
    """Addresses and protocol: coarser than a flow, so that fragments are held to order as well."""
    fragment = packet[6] & 0x3F or packet[7]
    return packet[12:20] + packet[9:10], b"" if fragment else packet[20:24]


def check_order(left: list[bytes], expected: list[bytes]) -> None:
    assert sorted(left) == sorted(expected), "every packet leaves, once, unchanged"
    keys = {flow_key(packet) for packet in expected}
    for key in keys:
        fragments = (key[0], b"")
        of_flow = [packet for packet in expected if flow_key(packet) in (key, fragments)]
        assert [packet for packet in left if flow_key(packet) in (key, fragments)] == of_flow


@settings(deadline=None, max_examples=150)
@given(offers, st.sampled_from([1, 2, 5, 64, 127]))
def test_every_flow_leaves_in_the_order_in_which_it_came(drawn: list[tuple[int, int, int]], max_segments: int) -> None:
    core = Core(max_segments=max_segments)
    made = [offer(flow, kind, size, number) for number, (flow, kind, size) in enumerate(drawn)]
    sends = []
    for each in made:
        # Sizes that alternate within a flow open a run each, and sixteen of them fill the arena.
        if core.encap(each.data, each.vnet) == "full":
            sends += core.sends()
            assert core.encap(each.data, each.vnet) == "encapsulated"
    sends += core.sends()
    check_order([packet for send in sends for packet in send.packets], [packet for each in made for packet in each.leaves])
    for send in sends:
        assert len(send.packets) <= max_segments
        assert sum(map(len, send.packets)) <= 65507
        assert {len(packet) for packet in send.packets[:-1]} <= {send.segment_bytes}
        assert len(send.packets[-1]) <= send.segment_bytes


# ------------------------------------------------------------------------------------------------------------------- full


@pytest.mark.parametrize("max_segments", [1, 64])
@pytest.mark.parametrize("kind", ["superpacket", "packet", "fragments"])
def test_full_leaves_everything_as_it_was(kind: str, max_segments: int) -> None:
    core = Core(max_segments=max_segments)
    packet = Packet(payload=pattern(60000), udp=True, df=False)
    data, vnet = {
        "superpacket": packet.superpacket(1400),
        "packet": (replace(packet, payload=pattern(1444)).raw(), Vnet()),
        "fragments": packet.unfinished(),
    }[kind]
    taken = 0
    while core.encap(data, vnet) == "encapsulated":
        taken += 1
    assert taken >= 2
    assert core.encap(data, vnet) == "full"
    once = Core(max_segments=max_segments).out(data, vnet)
    assert [packet for send in core.sends() for packet in send.packets] == once * taken
    assert core.counts() == {}, "nothing was counted for what was not taken"
    assert core.encap(data, vnet) == "encapsulated"


@pytest.mark.parametrize("max_segments", [1, 2, 63, 127])
@pytest.mark.parametrize("gso_size", [33, 48, 100, 536, 1432])
def test_any_frame_fits_into_empty_runs(max_segments: int, gso_size: int) -> None:
    packet = Packet(payload=pattern(65495))
    left = Core(max_segments=max_segments).out(*packet.superpacket(gso_size))
    assert len(left) == -(-65495 // gso_size)
