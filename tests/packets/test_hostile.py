"""Every parser with nothing, one byte short, exact, one byte long, on every prefix of a good packet, and on random changes.

Here a wrong verdict or a crash would show; that no byte outside is touched is shown by tests/fuzz under AddressSanitizer.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import ICMP, IP, Raw, raw

from tests.support.core import PLAIN, Core, Vnet
from tests.support.packets import Packet, decremented, pattern, with_ip_check

OPTIONS = (("NOP", None), ("NOP", None), ("Timestamp", (1, 2)))
BACK = Packet(source="10.5.2.7", destination="10.5.1.5")
GOOD = {
    "tcp": Packet(payload=pattern(60), options=OPTIONS),
    "udp": Packet(udp=True, payload=pattern(60)),
    "tcp with ip options": Packet(payload=pattern(60), ip_options=b"\x94\x04\x00\x00"),
}


@pytest.mark.parametrize("packet", GOOD.values(), ids=GOOD)
def test_every_prefix_of_a_frame_is_truncated_and_one_byte_more_is_padding(packet: Packet) -> None:
    frame = bytes(PLAIN) + packet.raw()
    core = Core()
    assert {core.encap_raw(frame[:length]) for length in range(len(frame))} == {"drop_truncated"}
    assert core.counts()["drop_truncated"][0] == len(frame)
    assert core.encap_raw(frame) == core.encap_raw(frame + b"\0") == "encapsulated"
    assert [send.packets for send in core.sends()] == [(decremented(packet.raw()),) * 2]


@pytest.mark.parametrize("packet", GOOD.values(), ids=GOOD)
def test_every_prefix_with_a_length_that_agrees_leaves_as_it_is(packet: Packet) -> None:
    """The IP header is right, whatever is cut off from the transport: not ours to judge when nothing is asked of us."""
    data = packet.raw()
    for length in range((data[0] & 15) * 4, len(data)):
        shorter = with_ip_check(data[:2] + length.to_bytes(2, "big") + data[4:length])
        assert Core().out(shorter) == [decremented(shorter)]


@pytest.mark.parametrize("packet", GOOD.values(), ids=GOOD)
def test_every_prefix_of_a_superpacket_is_cut_or_refused(packet: Packet) -> None:
    data, vnet = packet.superpacket(17)
    start = (data[0] & 15) * 4
    headers = packet.headers_bytes
    for length in range(start, len(data) + 1):
        shorter = with_ip_check(data[:2] + length.to_bytes(2, "big") + data[4:length])
        core = Core()
        verdict = core.encap(shorter, vnet)
        assert verdict == ("drop_truncated" if length < headers else "encapsulated")
        left = [each for send in core.sends() for each in send.packets]
        assert len(left) == (0 if length < headers else max(1, -(-(length - headers) // 17)))


@pytest.mark.parametrize("packet", GOOD.values(), ids=GOOD)
def test_every_prefix_of_a_datagram_is_truncated(packet: Packet) -> None:
    data = replace(packet, source=BACK.source, destination=BACK.destination).raw()
    core = Core(uso=True)
    for length in range(len(data)):
        assert core.train_raw(data[:length], 0) == length
    assert core.counts()["drop_truncated"] == (len(data), sum(range(len(data))))
    assert core.train_raw(data + b"\0", 0) == len(data) + 1
    assert [write.packet for write in core.writes()] == [decremented(data)]


@pytest.mark.parametrize("segment", [1, 19, 20, 21, 39, 40, 139, 140, 141, 280, 65535])
def test_a_train_cut_at_a_wrong_size_is_taken_whole_and_counted(segment: int) -> None:
    data = b"".join(replace(BACK, payload=pattern(100), sequence=i * 100, ident=i).raw() for i in range(3))
    core = Core()
    assert core.train_raw(data, segment) == len(data)
    taken = sum(write.packets for write in core.writes()) + sum(packets for packets, _ in core.counts().values())
    assert taken == -(-len(data) // segment)


any_vnet = st.builds(
    Vnet,
    st.integers(0, 255),
    st.sampled_from([0, 0, 1, 3, 4, 5, 0x81, 0xFF]),
    st.integers(0, 0xFFFF),
    st.sampled_from([0, 1, 2, 100, 1400, 0xFFFF]),
    st.sampled_from([0, 19, 20, 24, 32, 60, 0x7FFF, 0xFFFF]),
    st.sampled_from([0, 2, 6, 16, 100, 0xFFFF]),
)
any_packet = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([packet.raw() for packet in GOOD.values()]),
    st.tuples(
        st.sampled_from([packet.raw() for packet in GOOD.values()]), st.integers(0, 70), st.integers(0, 255), st.booleans()
    ).map(lambda drawn: damaged(*drawn)),
)


def damaged(packet: bytes, at: int, value: int, repaired: bool) -> bytes:
    """One byte changed; half of the time the header checksum fits again, so that deeper checks are reached."""
    changed = packet[:at] + bytes([value]) + packet[at + 1 :]
    return with_ip_check(changed) if repaired else changed


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(any_packet, any_vnet), max_size=8))
def test_any_frame_gets_a_verdict_and_what_leaves_is_well_formed(frames: list[tuple[bytes, Vnet]]) -> None:
    core = Core()
    for packet, vnet in frames:
        assert core.encap(packet, vnet) != "full"
    for send in core.sends():
        for packet in send.packets:
            assert int.from_bytes(packet[2:4], "big") == len(packet)
            assert with_ip_check(packet)[10:12] == packet[10:12]


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300) | st.lists(any_packet, max_size=4).map(b"".join), st.integers(0, 200), st.integers(0, 255))
def test_any_train_is_taken_and_every_datagram_gets_a_verdict(train: bytes, segment: int, tos: int) -> None:
    core = Core(uso=True, source_check=False)
    assert core.train_raw(train, segment, tos=tos) == len(train)
    pieces = max(1, -(-len(train) // segment)) if segment else 1
    assert sum(write.packets for write in core.writes()) + sum(packets for packets, _ in core.counts().values()) == pieces


def test_protocols_without_ports_pass_both_ways() -> None:
    ping = raw(IP(src="10.5.1.5", dst="10.5.2.7") / ICMP() / Raw(pattern(56)))
    assert Core().out(ping) == [decremented(ping)]
    answer = raw(IP(src="10.5.2.7", dst="10.5.1.5") / ICMP(type=0) / Raw(pattern(56)))
    core = Core()
    core.train([answer])
    assert [write.packet for write in core.writes()] == [decremented(answer)]
