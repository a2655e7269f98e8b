"""Merging: cutting a merged packet again gives the packets that came, and what must not be merged is not."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import IP

from tests.support.core import GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM, PLAIN, Core, Vnet, Write
from tests.support.packets import Packet, decremented, ones_sum, pattern, pseudo_sum

BACK = Packet(source="10.5.2.7", destination="10.5.1.5", sport=80, dport=40000)
TIMESTAMPS = (("NOP", None), ("NOP", None), ("Timestamp", (12345, 67890)))


def flow(count: int, size: int = 100, base: Packet = BACK, tail: int | None = None) -> list[Packet]:
    """Consecutive packets of one flow; the last one may have another size."""
    sizes = [size] * (count - 1) + [size if tail is None else tail]
    starts = [sum(sizes[:i]) for i in range(count)]
    return [
        replace(base, payload=pattern(length, i), sequence=base.sequence + start, ident=base.ident + i)
        for i, (length, start) in enumerate(zip(sizes, starts, strict=True))
    ]


def written(packets: list[bytes], *, uso: bool = False, coalesce: bool = True) -> list[Write]:
    core = Core(uso=uso, coalesce=coalesce)
    assert core.train(packets) == sum(map(len, packets))
    assert core.counts() == {}
    return core.writes()


def groups(packets: list[Packet], *, uso: bool = False) -> list[int]:
    """How many packets stand in each write; every write is checked to stand for exactly its packets."""
    raws = [packet.raw() for packet in packets]
    writes = written(raws, uso=uso)
    check_writes(writes, raws)
    return [write.packets for write in writes]


def check_writes(writes: list[Write], raws: list[bytes]) -> None:
    """Without loss, in order within a flow: cut as the kernel would, the writes are the packets."""
    left = [packet for write in writes for packet in cut_again(write)]
    expected = [decremented(packet) for packet in raws]
    assert sorted(left) == sorted(expected)
    for key in {packet[12:24] for packet in expected}:
        assert [packet for packet in left if packet[12:24] == key] == [packet for packet in expected if packet[12:24] == key]
    assert sum(write.bytes for write in writes) == sum(map(len, raws))


def cut_again(write: Write) -> list[bytes]:
    """By scapy as the oracle, not by the core: every packet that the write stands for."""
    if write.packets == 1:
        assert write.vnet == PLAIN
        return [write.packet]
    packet, vnet = write.packet, write.vnet
    udp = packet[9] == 17
    headers = 28 if udp else 20 + (packet[32] >> 4) * 4
    assert vnet == Vnet(NEEDS_CSUM, GSO_UDP_L4 if udp else GSO_TCPV4, headers, vnet.gso_size, 20, 6 if udp else 16)
    assert ones_sum(packet[:20]) == 0xFFFF, "header checksum"
    assert int.from_bytes(packet[2:4], "big") == len(packet)
    field = packet[20 + vnet.csum_offset : 22 + vnet.csum_offset]
    assert field == pseudo_sum(packet).to_bytes(2, "big"), "unfinished checksum over the total length"
    payload = packet[headers:]
    assert write.packets == -(-len(payload) // vnet.gso_size)
    return [scapy_segment(packet, headers, payload, vnet.gso_size, i) for i in range(write.packets)]


def scapy_segment(packet: bytes, headers: int, payload: bytes, gso_size: int, index: int) -> bytes:
    again = IP(packet[:headers] + payload[index * gso_size : (index + 1) * gso_size])
    last = (index + 1) * gso_size >= len(payload)
    again.id = (again.id + index) & 0xFFFF
    if again.proto == 6:
        again["TCP"].seq = (again["TCP"].seq + index * gso_size) & 0xFFFFFFFF
        if not last:
            again["TCP"].flags = str(again["TCP"].flags).replace("P", "")
        del again["TCP"].chksum
    else:
        del again["UDP"].chksum, again["UDP"].len
    del again.chksum, again.len
    return bytes(again)


# ---------------------------------------------------------------------------------------------------------- what is merged


def test_a_train_of_one_flow_becomes_one_write() -> None:
    packets = flow(44, 1420)
    merged = written([packet.raw() for packet in packets])
    assert [(write.packets, write.bytes) for write in merged] == [(44, 44 * 1460)]
    check_writes(merged, [packet.raw() for packet in packets])


@pytest.mark.parametrize(
    "packets",
    [
        flow(5, 1001),
        flow(5, 1000, tail=1),
        flow(5, 999, replace(BACK, options=TIMESTAMPS)),
        flow(3, 100, replace(BACK, sequence=0xFFFFFFFF - 150)),
        flow(3, 100, replace(BACK, ident=0xFFFE)),
        flow(3, 100, replace(BACK, ident=0xFFFE, df=False)),
        flow(3, 100, replace(BACK, flags="AE", tos=0x02)),
        flow(2, 100, replace(BACK, tos=0x03)),
        [*flow(2, 100), replace(flow(3, 100)[2], flags="PA")],
    ],
    ids=["odd sizes", "tail of one", "timestamps", "sequence wraps", "id wraps", "id wraps, df clear", "ece", "ce", "psh last"],
)
def test_ordinary_packets_of_one_flow_are_merged(packets: list[Packet]) -> None:
    assert groups(packets) == [len(packets)]


def test_with_df_the_id_does_not_matter() -> None:
    packets = [replace(packet, ident=0) for packet in flow(3)]
    writes = written([packet.raw() for packet in packets])
    assert [write.packets for write in writes] == [3]


def test_two_flows_in_turn_are_merged_each_by_itself() -> None:
    one, two = flow(4), flow(4, base=replace(BACK, dport=40001))
    assert groups([packet for pair in zip(one, two, strict=True) for packet in pair]) == [4, 4]


def test_trains_of_one_batch_are_merged_across_their_borders() -> None:
    raws = [packet.raw() for packet in flow(6, 1000)]
    core = Core()
    core.train(raws[:3], segment=1040)
    core.train(raws[3:], segment=1040)
    assert [write.packets for write in core.writes()] == [6]


# -------------------------------------------------------------------------------------------------------- what ends a write


def changed(index: int, count: int = 4, **changes: object) -> list[Packet]:
    """A flow in which one packet differs."""
    packets = flow(count)
    packets[index] = replace(packets[index], **changes)  # type: ignore[arg-type]
    return packets


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        (changed(2, ack=78), [2, 1, 1]),
        (changed(2, window=501), [2, 1, 1]),
        (changed(2, tos=1), [2, 1, 1]),
        (changed(2, ttl=63), [2, 1, 1]),
        (changed(2, df=False), [2, 1, 1]),
        (changed(2, options=TIMESTAMPS), [2, 1, 1]),
        (changed(2, flags="AE"), [2, 1, 1]),
        (changed(1, flags="PA"), [2, 2]),
        (changed(0, flags="PA"), [1, 3]),
        (changed(2, flags="FA"), [2, 1, 1]),
        (changed(2, flags="SA"), [2, 1, 1]),
        (changed(2, flags="RA"), [2, 1, 1]),
        (changed(2, flags="UA"), [2, 1, 1]),
        (changed(2, flags="CA"), [2, 1, 1]),
        (changed(2, flags="P"), [2, 1, 1]),
        (changed(2, ip_options=b"\x94\x04\x00\x00"), [2, 1, 1]),
        (changed(2, sequence=5000), [2, 1, 1]),
        (changed(2, payload=b""), [2, 1, 1]),
        (changed(2, payload=pattern(101, 2)), [2, 1, 1]),
        (changed(2, payload=pattern(99, 2)), [3, 1]),
    ],
    ids=[
        "ack", "window", "tos", "ttl", "df", "options", "ece", "psh", "psh first", "fin", "syn", "rst", "urg", "cwr", "no ack",
        "ip options", "hole", "pure ack", "longer", "shorter",
    ],
)  # fmt: skip
def test_a_packet_that_differs_ends_the_write(packets: list[Packet], expected: list[int]) -> None:
    assert groups(packets) == expected


def test_ids_that_do_not_count_up_are_kept_apart_when_df_is_clear() -> None:
    packets = [replace(packet, df=False, ident=ident) for packet, ident in zip(flow(4), [5, 6, 8, 9], strict=True)]
    assert groups(packets) == [2, 2]


def test_a_write_takes_64_packets() -> None:
    assert groups(flow(130, 100)) == [64, 64, 2]


def test_a_write_takes_65535_bytes() -> None:
    full = (65535 - 40) // 1455
    assert groups(flow(full + 1, 1455)) == [full, 1]
    assert groups(flow(5, 13099)) == [5], "exactly 65,535"
    assert groups(flow(6, 13100)) == [4, 2], "one more byte each"


@pytest.mark.parametrize("bad", [0, 1, 2, 3])
def test_a_wrong_checksum_goes_as_it_is(bad: int) -> None:
    raws = [packet.raw() for packet in flow(4)]
    raws[bad] = raws[bad][:-1] + bytes([raws[bad][-1] ^ 1])
    writes = written(raws)
    assert [write.packet for write in writes if write.packets == 1 and write.vnet == PLAIN].count(decremented(raws[bad])) == 1
    assert [write.packets for write in writes] == {0: [1, 3], 1: [1, 1, 2], 2: [2, 1, 1], 3: [3, 1]}[bad]


def test_a_fragment_ends_every_flow_of_its_addresses() -> None:
    one, two = flow(4), flow(4, base=replace(BACK, dport=40001))
    other = flow(4, base=replace(BACK, source="10.5.2.8"))
    fragment = bytes(IP(src="10.5.2.7", dst="10.5.1.5", proto=6, frag=100, id=3) / pattern(200))
    first = [packet.raw() for trio in zip(one[:2], two[:2], other[:2], strict=True) for packet in trio]
    second = [packet.raw() for trio in zip(one[2:], two[2:], other[2:], strict=True) for packet in trio]
    assert [write.packets for write in written([*first, fragment, *second])] == [2, 2, 4, 1, 2, 2]


def test_without_coalescing_every_packet_is_a_write() -> None:
    raws = [packet.raw() for packet in flow(5)]
    assert written(raws, coalesce=False) == [Write(PLAIN, decremented(raw), 1, len(raw)) for raw in raws]


def test_a_tcp_packet_too_short_for_its_header_goes_as_it_is() -> None:
    raws = [bytes(IP(src="10.5.2.7", dst="10.5.1.5", proto=6) / pattern(size)) for size in (0, 1, 3, 4, 19)]
    assert [write.packet for write in written(raws)] == [decremented(raw) for raw in raws]


def test_full_takes_a_part_and_the_rest_after_a_reset() -> None:
    raws = [replace(BACK, sport=i, payload=pattern(100)).raw() for i in range(300)]
    core = Core()
    taken = core.train(raws, segment=140)
    assert taken == 256 * 140
    first = core.writes()
    assert core.train_raw(b"".join(raws)[taken:], 140) == 44 * 140
    check_writes(first + core.writes(), raws)
    assert core.counts() == {}


# --------------------------------------------------------------------------------------------------------------------- UDP

DATAGRAM = replace(BACK, udp=True)


def test_datagrams_are_merged_only_for_a_kernel_that_takes_them() -> None:
    assert groups(flow(5, 1000, DATAGRAM), uso=False) == [1] * 5
    assert groups(flow(5, 1000, DATAGRAM), uso=True) == [5]


@pytest.mark.parametrize(
    ("index", "changes", "expected"),
    [
        (2, {"payload": pattern(99, 2)}, [3, 1]),
        (2, {"payload": pattern(101, 2)}, [2, 2]),
        (2, {"payload": b""}, [2, 1, 1]),
        (2, {"ttl": 9}, [2, 1, 1]),
        (2, {"tos": 2}, [2, 1, 1]),
    ],
    ids=["shorter", "longer", "empty", "ttl", "tos"],
)
def test_a_datagram_that_differs_ends_the_write(index: int, changes: dict[str, object], expected: list[int]) -> None:
    packets = flow(4, 100, DATAGRAM)
    packets[index] = replace(packets[index], **changes)  # type: ignore[arg-type]
    assert groups(packets, uso=True) == expected


def test_datagrams_without_a_checksum_stay_without() -> None:
    raws = [packet.raw() for packet in flow(3, 100, DATAGRAM)]
    raws = [raw[:26] + b"\0\0" + raw[28:] for raw in raws]
    assert [write.packet for write in written(raws, uso=True)] == [decremented(raw) for raw in raws]


def test_a_datagram_with_a_length_of_its_own_goes_as_it_is() -> None:
    raws = [packet.raw() for packet in flow(3, 100, DATAGRAM)]
    raws[1] = raws[1][:24] + b"\0\x20" + raws[1][26:]
    assert [write.packets for write in written(raws, uso=True)] == [1, 1, 1]


# --------------------------------------------------------------------------------------------------------------- round trip


@settings(deadline=None)
@given(
    payload=st.binary(min_size=2, max_size=60000),
    gso_size=st.integers(1, 1400),
    flags=st.sampled_from(["A", "PA", "AE", "PAE"]),
    sequence=st.integers(0, 0xFFFFFFFF),
    ident=st.integers(0, 0xFFFF),
    df=st.booleans(),
    udp=st.booleans(),
    tos=st.integers(0, 255),
    options=st.sampled_from([(), TIMESTAMPS]),
)
def test_coalesce_undoes_segment(
    payload: bytes,
    gso_size: int,
    flags: str,
    sequence: int,
    ident: int,
    df: bool,
    udp: bool,
    tos: int,
    options: tuple[tuple[str, object], ...],
) -> None:
    payload = payload[: gso_size * 64]
    packet = Packet(
        payload=payload, flags=flags, sequence=sequence, ident=ident, df=df, udp=udp, tos=tos, options=options, ttl=64
    )
    data, vnet = packet.superpacket(gso_size)
    receiver = Core(uso=True, source_check=False, entries=[])
    receiver.train([swap(each) for each in Core().out(data, vnet)])
    writes = receiver.writes()
    twice = decremented(decremented(swap(data)))
    if len(payload) <= gso_size:
        assert [write.packets for write in writes] == [1]
    else:
        assert writes == [Write(vnet, twice, -(-len(payload) // gso_size), writes[0].bytes)]


def swap(packet: bytes) -> bytes:
    """Source and destination exchanged, so that what a node sends arrives at itself; no checksum changes by that."""
    return packet[:12] + packet[16:20] + packet[12:16] + packet[20:]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([0, 1, 50, 100, 100, 100, 100, 101]),
            st.sampled_from(["A", "A", "A", "A", "A", "A", "PA", "FA", "SA", "AE", "CA"]),
            st.sampled_from([0, 0, 0, 0, 0, 0, 1]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.booleans(),
)
def test_mixed_flows_keep_their_packets_and_their_order(drawn: list[tuple[int, int, str, int]], df: bool) -> None:
    raws = []
    places = [(100, 1)] * 3
    for number, size, flags, hole in drawn:
        sequence, ident = places[number]
        payload = pattern(size, ident)
        packet = replace(BACK, sport=number, sequence=sequence + hole, ident=ident, payload=payload, flags=flags, df=df)
        raws.append(packet.raw())
        places[number] = (sequence + size + hole, ident + 1)
    writes = written(raws)
    left = [packet for write in writes for packet in cut_again(write)]
    for number in range(3):
        sport = number.to_bytes(2, "big")
        mine = [decremented(raw) for raw in raws if raw[20:22] == sport]
        left_of_flow = [packet for packet in left if packet[20:22] == sport]
        assert [packet[24:28] + packet[40:] for packet in left_of_flow] == [packet[24:28] + packet[40:] for packet in mine]
        assert left_of_flow == mine
