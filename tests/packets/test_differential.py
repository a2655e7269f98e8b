"""The same traffic through the fast path and the slow one: the same packets leave, and the same packets arrive, flow by flow.

fast   frames -> runs for UDP_SEGMENT -> trains of UDP_GRO -> merged frames      several frames a batch, flows mixed
naive  each frame by itself through tests/support/naive.py, one packet at a time
"""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.core import PEER_A, PEER_B, Core, Vnet, cut
from tests.support.naive import Frame, by_flow, packets_of, sent
from tests.support.packets import HERE6, THERE6, Packet, pattern, with_ip_check

TIMESTAMPS = (("NOP", None), ("NOP", None), ("Timestamp", (12345, 67890)))
SACK = (*TIMESTAMPS, ("SAck", (1, 2, 3, 4)), ("NOP", None), ("NOP", None))
HOPS = {"10.5.2.7": PEER_A, "10.5.3.9": PEER_B, THERE6: PEER_A, "fd05:0:0:3::9": PEER_B}
FLOWS = 5
WHOLE_BYTES = 1300
"""Payload of a packet that is no superpacket; with the longest headers it still fits the MTU, as segments of 1,372 do."""

packets = st.builds(
    Packet,
    destination=st.sampled_from(list(HOPS)),
    sport=st.integers(1, FLOWS),
    payload=st.sampled_from([0, 1, 499, 500, 1372, 2000, 2745, 4116]).map(pattern),
    flags=st.sampled_from(["A", "A", "A", "PA", "FA", "FPA", "SA", "RA", "UA", "AE", "PAC"]),
    sequence=st.sampled_from([1000, 0xFFFFFF00]),
    ident=st.integers(0xFFF0, 0xFFFF),
    options=st.sampled_from([(), TIMESTAMPS, SACK]),
    ip_options=st.sampled_from([b"", b"", b"", b"\x94\x04\x00\x00"]),
    tos=st.sampled_from([0, 0, 1, 2, 3, 0xB8]),
    ttl=st.integers(3, 255),
    df=st.booleans(),
    udp=st.sampled_from([False, False, False, True]),
    flow_label=st.sampled_from([0, 0, 0x12345]),
).map(lambda packet: replace(packet, source=HERE6) if ":" in packet.destination else packet)


def frame_of(packet: Packet, gso_size: int, way: str) -> Frame:
    """As the kernel would hand it over: whole with offloads, or one packet with its checksum unfinished or finished."""
    if way == "superpacket":
        data, vnet = packet.superpacket(gso_size)
    else:
        packet = replace(packet, payload=packet.payload[:WHOLE_BYTES])
        data, vnet = packet.unfinished() if way == "unfinished" else (packet.raw(), Vnet())
    return Frame(vnet, data)


def stream(frames: list[tuple[Packet, int, str]]) -> list[Frame]:
    """Sequence numbers go on within a flow, so that there is something to merge."""
    places: dict[tuple[str, int, bool], int] = {}
    made = []
    for packet, gso_size, way in frames:
        key = (packet.destination, packet.sport, packet.udp)
        start = places.setdefault(key, packet.sequence)
        made.append(frame_of(replace(packet, sequence=start), gso_size, way))
        places[key] = start + len(packet.payload if way == "superpacket" else packet.payload[:WHOLE_BYTES])
    return made


def through_runs(frames: list[Frame], max_segments: int) -> dict[str, list[tuple[int, bytes, int]]]:
    """Trains to each peer as they leave the fast path: datagram size, bytes, outer TOS."""
    core = Core(max_segments=max_segments, uso=True)
    sends = []
    for frame in frames:
        if core.encap(frame.packet, frame.vnet) == "full":
            sends += core.sends()
            assert core.encap(frame.packet, frame.vnet) == "encapsulated"
    assert core.counts() == {}
    trains: dict[str, list[tuple[int, bytes, int]]] = {}
    for send in [*sends, *core.sends()]:
        trains.setdefault(str(send.hop.address), []).append((send.segment_bytes, b"".join(send.packets), send.tos))
    return trains


def comparable(arrived: list[bytes]) -> dict[bytes, list[bytes]]:
    """By flow; where DF is set the id says nothing (RFC 6864 4.1) and a merge does not keep it."""
    return by_flow([with_ip_check(packet[:4] + b"\0\0" + packet[6:]) if may_lose_id(packet) else packet for packet in arrived])


def may_lose_id(packet: bytes) -> bool:
    return packet[0] >> 4 == 4 and bool(packet[6] & 0x40)


def swapped(packet: bytes) -> bytes:
    """Source and destination exchanged, so that what a node sends arrives at itself; no checksum changes by that."""
    if packet[0] >> 4 == 6:
        return packet[:8] + packet[24:40] + packet[8:24] + packet[40:]
    return packet[:12] + packet[16:20] + packet[12:16] + packet[20:]


streams = st.lists(
    st.tuples(
        packets, st.sampled_from([500, 1000, 1372, 1372]), st.sampled_from(["superpacket", "superpacket", "unfinished", "raw"])
    ),
    min_size=1,
    max_size=8,
).map(stream)


@settings(deadline=None, max_examples=30)
@given(streams, st.sampled_from([1, 7, 63, 127]), st.booleans())
def test_fast_and_naive_path_carry_the_same_packets(frames: list[Frame], max_segments: int, uso: bool) -> None:
    naive = [packet for frame in frames for packet in sent(frame)]
    trains = through_runs(frames, max_segments)
    datagrams = [packet for peer in trains.values() for size, data, _ in peer for packet in cut(data, size)]
    assert by_flow(datagrams) == by_flow(naive), "what leaves"

    fast, slow = Core(source_check=False, entries=[], uso=uso), Core(source_check=False, entries=[], coalesce=False)
    delivered, expected = [], []
    for peer in trains.values():
        for size, data, tos in peer:
            again = b"".join(map(swapped, cut(data, size)))
            assert fast.train_raw(again, size, tos=tos) == len(again)
            assert slow.train_raw(again, size, tos=tos) == len(again)
            if len(slow_writes := slow.writes()) > 0:
                expected += [write.packet for write in slow_writes]
        delivered += [packet for write in fast.writes() for packet in packets_of(Frame(write.vnet, write.packet))]
    assert fast.counts() == slow.counts() == {}
    assert comparable(delivered) == comparable(expected), "what arrives, merged or not"
    assert by_flow(expected) == by_flow([packet for each in naive for packet in sent(Frame(Vnet(), swapped(each)))]), "unharmed"
