"""The BPF programs against the C core, packet by packet: the same verdict and the same bytes, or left to userspace untouched."""

import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import IP, TCP, UDP, IPOption, IPv6, Raw

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.ebpf_layout import peer_key
from flanpy.datapath.ebpf_prober import _slot
from tests.support.core import PEER_A, PEER_B, PEER_ECN, Core
from tests.support.packets import Packet, pattern
from tests.support.polling import eventually
from tests.support.programs import ADJUST_ROOM, DROP, ETHERNET, NEXT, OURS, REDIRECT, Programs, Ran, hop_that_takes_all

pytestmark = pytest.mark.root

FROM_PEER = Packet(source="10.5.2.9", destination="10.5.1.7", ttl=9, udp=True)
TO_PEER = Packet(source="10.5.1.7", destination="10.5.2.9", ttl=9, udp=True)
SENDERS = [PEER_A, PEER_B, PEER_ECN]


@pytest.fixture(scope="module", params=[True, False], ids=["source-check", "no-source-check"])
def check(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def programs(check: bool) -> Iterator[Programs]:
    made = Programs(source_check=check)
    yield made
    made.close()


def outer(inner: bytes, sender: str = str(PEER_A.address), tos: int = 0, **fields: int) -> bytes:
    """An encapsulated packet as these programs send it: no UDP checksum."""
    header = {"dport": 8285, "sport": 8285, "chksum": 0} | {
        key: value for key, value in fields.items() if key in ("dport", "chksum")
    }
    return bytes(IP(src=sender, dst=str(OURS), tos=tos, flags=fields.get("flags", 2)) / UDP(**header) / inner)


def core_says(inner: bytes, sender: object, tos: int, check: bool) -> tuple[str, bytes]:
    """The core's verdict over one datagram, and the packet that it would deliver."""
    core = Core(source_check=check, coalesce=False)
    core.train([inner], sender=sender, tos=tos)  # type: ignore[arg-type]
    writes = core.writes()
    if writes:
        return "decapsulated", writes[0].packet
    return next(iter(core.counts())), b""


def assert_agrees(programs: Programs, inner: bytes, sender: object, tos: int, check: bool) -> None:
    given_packet = outer(inner, str(sender.address), tos)  # type: ignore[attr-defined]
    ran = programs.run("fp_decap", given_packet)
    verdict, delivered = core_says(inner, sender, tos, check)
    if ran.result == NEXT:
        assert ran.verdict is None and ran.packet == given_packet
    elif ran.result == REDIRECT:
        assert (verdict, ran.verdict) == ("decapsulated", "decapsulated")
        assert ran.packet[: len(delivered)] == delivered
    else:
        assert (ran.result, ran.verdict) == (DROP, verdict)


@settings(max_examples=400, deadline=None)
@given(
    sender=st.sampled_from(SENDERS),
    tos=st.integers(0, 255),
    outer_tos=st.integers(0, 255),
    ttl=st.integers(0, 255),
    source=st.sampled_from(["10.5.2.9", "10.5.3.9", "10.5.1.9", "8.8.8.8", "127.0.0.1", "0.1.2.3", "224.0.0.1"]),
    destination=st.sampled_from(["10.5.1.7", "10.5.2.7", "10.5.9.9", "255.255.255.255", "239.1.1.1"]),
    payload=st.integers(0, 60),
)
def test_every_field_that_decides_decides_as_in_the_core(
    programs: Programs,
    check: bool,
    sender: object,
    tos: int,
    outer_tos: int,
    ttl: int,
    source: str,
    destination: str,
    payload: int,
) -> None:
    packet = Packet(source=source, destination=destination, tos=tos, ttl=ttl, udp=True, payload=pattern(payload))
    assert_agrees(programs, packet.raw(), sender, outer_tos, check)


@settings(max_examples=600, deadline=None)
@given(at=st.integers(0, 47), bits=st.integers(1, 255), cut=st.integers(0, 48), sender=st.sampled_from(SENDERS))
def test_damaged_packets_are_judged_as_in_the_core(
    programs: Programs, check: bool, at: int, bits: int, cut: int, sender: object
) -> None:
    data = bytearray(FROM_PEER.raw() + bytes(20))
    data[at] ^= bits
    assert_agrees(programs, bytes(data[: len(data) - cut]), sender, 0, check)


@pytest.mark.parametrize("words", range(1, 11))
def test_options_count_in_the_checksum_as_in_the_core(programs: Programs, check: bool, words: int) -> None:
    data = Packet(**{**_fields(FROM_PEER), "ip_options": bytes([1]) * 4 * words, "payload": pattern(30)}).raw()
    assert_agrees(programs, data, PEER_A, 0, check)
    assert programs.run("fp_decap", outer(data)).verdict == "decapsulated"
    wrong = bytearray(data)
    wrong[20] ^= 0x80
    assert_agrees(programs, bytes(wrong), PEER_A, 0, check)
    assert programs.run("fp_decap", outer(bytes(wrong))).verdict == "drop_bad_header"


def test_every_prefix_of_a_good_packet_is_judged_as_in_the_core(programs: Programs, check: bool) -> None:
    whole = FROM_PEER.raw() + b"12345678"
    for size in range(len(whole) + 1):
        assert_agrees(programs, whole[:size], PEER_A, 0, check)


def test_a_good_packet_is_taken_by_the_program(programs: Programs) -> None:
    """Shows that the agreement above is not that of leaving everything to userspace."""
    ran = programs.run("fp_decap", outer(FROM_PEER.raw()))
    assert (ran.result, ran.verdict) == (REDIRECT, "decapsulated")
    assert ran.packet == Packet(**{**_fields(FROM_PEER), "ttl": 8}).raw()


@pytest.mark.parametrize("more", [0, 1], ids=["last", "not-last"])
def test_a_tcp_fragment_of_zeros_is_no_probe(programs: Programs, more: int) -> None:
    fragment = bytes(IP(src="10.5.2.9", dst="10.5.1.7", ttl=9, proto=6, frag=5, flags=more) / Raw(bytes(40)))
    assert programs.run("fp_decap", outer(fragment)).verdict == "decapsulated"


def _fields(packet: Packet) -> dict[str, object]:
    return {name: getattr(packet, name) for name in Packet.__slots__}


@pytest.mark.parametrize(
    ("name", "packet"),
    [
        ("another port", outer(FROM_PEER.raw(), dport=8286)),
        ("a UDP checksum, so a socket has sent it", outer(FROM_PEER.raw(), chksum=0x1234)),
        ("a fragment", outer(FROM_PEER.raw(), flags=1)),
        ("not UDP", bytes(IP(src=str(PEER_A.address), dst=str(OURS), proto=6)) + FROM_PEER.raw() + bytes(40)),
        ("time to live used up", outer(Packet(**{**_fields(FROM_PEER), "ttl": 1}).raw())),
    ],
)
def test_what_is_not_for_the_programs_is_left_untouched(programs: Programs, name: str, packet: bytes) -> None:
    ran = programs.run("fp_decap", packet)
    assert (ran.result, ran.packet, ran.verdict) == (NEXT, packet, None), name


def test_a_packet_that_cannot_be_unwrapped_counts_as_dropped_and_as_its_senders() -> None:
    node = Programs()
    try:
        counted = node.count_peers(PEER_A.address, PEER_B.address)
        node.cripple("fp_decap", ADJUST_ROOM)
        ran = node.run("fp_decap", outer(FROM_PEER.raw()))
        assert (ran.result, ran.verdict) == (DROP, "drop_write")
        assert [count.dropped_in for count in counted.read((PEER_A.address, PEER_B.address)).values()] == [1, 0]
    finally:
        node.close()


def test_lengths_that_contradict_each_other_are_left_to_the_stack(programs: Programs) -> None:
    good = outer(FROM_PEER.raw())
    for at, value in ((2, len(good) + 1), (2, len(good) - 1), (24, len(good) - 19), (24, 7)):
        packet = bytearray(good)
        struct.pack_into("!H", packet, at, value)
        assert programs.run("fp_decap", bytes(packet)).result == NEXT


def assert_sent_as_by_the_core(packet: bytes, ran: Ran) -> None:
    """What the program lets out is what the core sends, its outer checksum right; what the core would not send is left to userspace."""
    core = Core()
    verdict = core.encap(packet)
    if ran.result == NEXT:
        assert verdict != "encapsulated" and ran.packet == packet and ran.verdict is None
        return
    (send,) = core.sends()
    assert (ran.result, ran.verdict, verdict) == (REDIRECT, "encapsulated", "encapsulated")
    sent = IP(ran.packet)
    assert (sent.src, sent.dst, sent.tos, sent.len) == (str(OURS), str(send.hop.address), send.tos, len(ran.packet))
    assert bytes(sent[UDP].payload) == send.packets[0]
    assert bytes(IP(bytes(IP(**{k: v for k, v in sent.fields.items() if k != "chksum"}) / sent.payload))) == ran.packet


@settings(max_examples=400, deadline=None)
@given(
    ttl=st.integers(0, 255),
    tos=st.integers(0, 255),
    source=st.sampled_from(["10.5.1.7", "127.0.0.1", "0.1.2.3", "224.0.0.1"]),
    destination=st.sampled_from(["10.5.2.9", "10.5.3.9", "10.5.4.9", "10.5.1.9", "10.5.9.9", "8.8.8.8"]),
    payload=st.sampled_from([0, 1, 100, 1444, 1445]),
)
def test_what_goes_out_is_what_the_core_sends(
    programs: Programs, ttl: int, tos: int, source: str, destination: str, payload: int
) -> None:
    packet = Packet(source=source, destination=destination, tos=tos, ttl=ttl, udp=True, payload=pattern(payload)).raw()
    assert_sent_as_by_the_core(packet, programs.run("fp_bypass", packet))


def test_a_frame_to_another_machine_is_left_to_the_stack_which_drops_it(programs: Programs) -> None:
    packet = outer(FROM_PEER.raw())
    link = b"\x02\0\0\0\0\x09" + bytes(6) + b"\x08\x00"
    assert programs.run("fp_decap", packet).result == REDIRECT
    ran = programs.run("fp_decap", packet, link)
    assert (ran.result, ran.verdict, ran.packet) == (NEXT, None, packet)


@pytest.mark.parametrize("at", [1, 8, 10])
def test_a_wrong_outer_checksum_is_left_to_the_stack_which_drops_it(programs: Programs, at: int) -> None:
    packet = bytearray(outer(FROM_PEER.raw()))
    packet[at] ^= 4
    ran = programs.run("fp_decap", bytes(packet))
    assert (ran.result, ran.verdict, ran.packet) == (NEXT, None, bytes(packet))


def test_the_bypass_takes_only_inner_headers_whose_checksum_is_right(programs: Programs) -> None:
    packet = bytearray(TO_PEER.raw())
    assert programs.run("fp_bypass", bytes(packet)).result == REDIRECT
    packet[10] ^= 4
    ran = programs.run("fp_bypass", bytes(packet))
    assert (ran.result, ran.verdict, ran.packet) == (NEXT, None, bytes(packet))


def test_the_bypass_does_not_even_look_at_packets_while_it_is_off() -> None:
    switched_off = Programs(self_test=False)
    try:
        assert switched_off.run("fp_bypass", TO_PEER.raw()).result == NEXT
        assert switched_off.noticed() == set()
    finally:
        switched_off.close()


@pytest.mark.parametrize("family", [4, 6])
def test_datagrams_follow_a_train_between_the_same_two_pods_and_hardly_any_others_do(family: int) -> None:
    """Of 120 other pairs two may share the slot of this one, of 2,048."""

    def datagram(source: int, destination: int, port: int, size: int) -> bytes:
        if family == 6:
            headers = IPv6(src=f"fd05:0:0:1::{source:x}", dst=f"fd05:0:0:2::{destination:x}")
        else:
            headers = IP(src=f"10.5.1.{source}", dst=f"10.5.2.{destination}")
        return bytes(headers / UDP(sport=port, dport=7) / Raw(pattern(size)))

    def follows(source: int, destination: int) -> bool:
        assert node.run("fp_bypass", datagram(7, 9, 5000, 2500), link, gso_bytes=1000).result == NEXT
        return node.run("fp_bypass", datagram(source, destination, 5001, 20), link).result == NEXT

    link = ETHERNET6 if family == 6 else ETHERNET
    node = Programs(entries=[("10.5.2.0/24", hop_that_takes_all()), ("fd05:0:0:2::/64", hop_that_takes_all())], carries=True)
    try:
        assert any(follows(7, 9) for _ in range(20)), "of another flow, too; all could come too late on a busy machine alone"
        others = [(number, 9) for number in range(100, 160)] + [(7, number) for number in range(100, 160)]
        assert sum(follows(*other) for other in others) <= 2
        assert "bpf_up_udp_train" in node.noticed()
    finally:
        node.close()


def test_datagrams_follow_a_train_until_userspace_has_sent_what_it_has() -> None:
    """One that took the other way 50 ms after the train would overtake those just before it; a stream that never pauses is let go later."""
    train = bytes(IP(src="10.5.1.7", dst="10.5.2.9") / UDP(sport=5000, dport=7) / Raw(pattern(2500)))
    single = bytes(IP(src="10.5.1.7", dst="10.5.2.9") / UDP(sport=5000, dport=7) / Raw(pattern(20)))
    node = Programs(entries=[("10.5.2.0/24", hop_that_takes_all())], carries=True)

    def followed_s() -> float:
        """For how long they did, without a pause but those that a busy machine makes."""
        assert node.run("fp_bypass", train, gso_bytes=1000).result == NEXT
        begun_s = time.monotonic()
        while node.run("fp_bypass", single).result == NEXT:
            assert time.monotonic() - begun_s < 30, "not for ever"
        return time.monotonic() - begun_s

    try:
        assert any(followed_s() > 0.3 for _ in range(10))
    finally:
        node.close()


def says_that_it_merges(node: Programs) -> None:
    """A packet of the peer's whose outer identification says so (FP_BPF_UNITS_TRAINS)."""
    inner = bytes(IP(src="10.5.2.9", dst="10.5.1.7") / UDP(sport=7, dport=5000))
    word = bytes(IP(src=str(PEER_A.address), dst=str(OURS), id=0xFF00, flags=2) / UDP(dport=8285, sport=8285, chksum=0) / inner)
    assert node.run("fp_decap", word).verdict == "decapsulated"


def test_only_flows_of_large_segments_go_in_trains_to_a_peer_that_merges_them() -> None:
    """A flow's small segments follow its large ones; questions, answers and acknowledgements of others stay here."""
    node = Programs(entries=[("10.5.2.0/24", hop_that_takes_all())], carries=False)

    def result(size: int, gso_bytes: int = 0, sport: int = 5000, **fields: object) -> int:
        says_that_it_merges(node)
        segment = bytes(IP(src="10.5.1.7", dst="10.5.2.9", **fields) / TCP(sport=sport, dport=80) / Raw(pattern(size)))
        return node.run("fp_bypass", segment, gso_bytes=gso_bytes).result

    def follows(size: int, gso_bytes: int) -> bool:
        assert result(size, gso_bytes) == NEXT
        return result(0) == NEXT and result(100) == NEXT

    try:
        assert result(0) == result(100) == REDIRECT, "a flow that has sent nothing large"
        assert any(follows(2500, 1000) for _ in range(20)), "a superpacket; all could come too late on a busy machine alone"
        assert any(follows(1000, 0) for _ in range(20)), "a large segment by itself"
        assert sum(result(100, sport=sport) == NEXT for sport in range(6000, 6100)) <= 2, "other flows of the same two pods"
        assert result(100, sport=7000, options=[IPOption(b"\x01\x01\x01\x01")]) == NEXT, "nobody reads ports behind options"
        assert "bpf_up_tcp_train" in node.noticed()
    finally:
        node.close()


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_what_another_cpu_has_noted_a_moment_ago_is_not_taken_for_old(kind: type[TCP | UDP]) -> None:
    """A train that leaves on another CPU while this one asks for the time is younger than that time; its followers must not overtake it."""
    node = Programs(entries=[("10.5.2.0/24", hop_that_takes_all())], carries=kind is UDP)
    try:
        node.note_trains(time.monotonic_ns() + 5_000_000_000)
        says_that_it_merges(node)
        single = bytes(IP(src="10.5.1.7", dst="10.5.2.9") / kind(sport=5000, dport=7) / Raw(pattern(20)))
        assert node.run("fp_bypass", single).result == NEXT
    finally:
        node.close()


def test_a_flow_in_trains_stays_there_for_a_moment_when_the_peers_word_is_gone() -> None:
    """Another peer may write over its note for a packet or two; but where the note has lapsed, no pause is waited for."""
    node = Programs(entries=[("10.5.2.0/24", hop_that_takes_all())], carries=False)
    segment = bytes(IP(src="10.5.1.7", dst="10.5.2.9") / TCP(sport=5000, dport=80) / Raw(pattern(1000)))

    def stays() -> bool:
        says_that_it_merges(node)
        assert node.run("fp_bypass", segment).result == NEXT
        key = peer_key(PEER_A.address)
        bpf.update(node._loaded.maps["fp_thanks"], _slot(key), bytes(8))
        return node.run("fp_bypass", segment).result == NEXT

    try:
        assert any(stays() for _ in range(20)), "all could come too late on a busy machine alone"
        eventually(lambda: node.run("fp_bypass", segment).result == REDIRECT, 10, "the flow comes back")
    finally:
        node.close()


def test_a_peer_that_claims_our_own_subnet_gets_none_of_it() -> None:
    claimed = Programs(entries=(("10.5.1.0/24", PEER_A), ("10.5.2.0/24", PEER_B)))
    try:
        inner = Packet(source="10.5.2.9", destination="10.5.1.7", ttl=9, udp=True).raw()
        assert claimed.run("fp_decap", outer(inner, str(PEER_B.address))).verdict == "decapsulated"
        spoofed = Packet(source="10.5.1.9", destination="10.5.1.7", ttl=9, udp=True).raw()
        assert claimed.run("fp_decap", outer(spoofed)).verdict != "decapsulated"
    finally:
        claimed.close()


# ---------------------------------------------------------------------------------------------------------------- IPv6

ETHERNET6 = bytes(12) + b"\x86\xdd"
SOURCES6 = ["fd05:0:0:2::9", "fd05:0:0:3::9", "fd05:0:0:1::9", "2001:db8::1", "fe80::1", "ff02::1", "::1", "::ffff:10.5.2.9"]


def six(
    source: str, destination: str, payload: bytes = b"", traffic_class: int = 0, hops: int = 9, next_header: int = 17
) -> bytes:
    """An inner packet; what is not UDP has just these bytes behind its header."""
    header = IPv6(src=source, dst=destination, tc=traffic_class, hlim=hops, fl=0x12345)
    if next_header == 17:
        return bytes(header / UDP(sport=1, dport=2) / Raw(payload))
    header.nh = next_header
    return bytes(header / Raw(payload))


FROM_PEER6 = six("fd05:0:0:2::9", "fd05:0:0:1::7", pattern(20))


@settings(max_examples=150, deadline=None)
@given(
    sender=st.sampled_from(SENDERS),
    traffic_class=st.integers(0, 255),
    outer_tos=st.integers(0, 255),
    hops=st.integers(0, 255),
    source=st.sampled_from(SOURCES6),
    destination=st.sampled_from(["fd05:0:0:1::7", "fd05:0:0:2::7", "fd05:0:9::9", "ff05::9", "fe80::7"]),
    next_header=st.sampled_from([17, 6, 0, 43, 44, 58, 59, 60]),
    payload=st.integers(0, 60),
)
def test_every_field_of_ipv6_that_decides_decides_as_in_the_core(
    programs: Programs,
    check: bool,
    sender: object,
    traffic_class: int,
    outer_tos: int,
    hops: int,
    source: str,
    destination: str,
    next_header: int,
    payload: int,
) -> None:
    packet = six(source, destination, pattern(payload), traffic_class, hops, next_header)
    assert_agrees(programs, packet, sender, outer_tos, check)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 67), bits=st.integers(1, 255), cut=st.integers(0, 68), sender=st.sampled_from(SENDERS))
def test_damaged_ipv6_packets_are_judged_as_in_the_core(
    programs: Programs, check: bool, at: int, bits: int, cut: int, sender: object
) -> None:
    data = bytearray(FROM_PEER6 + bytes(20))
    data[at] ^= bits
    assert_agrees(programs, bytes(data[: len(data) - cut]), sender, 0, check)


def test_every_prefix_of_a_good_ipv6_packet_is_judged_as_in_the_core(programs: Programs, check: bool) -> None:
    whole = FROM_PEER6 + b"12345678"
    for size in range(len(whole) + 1):
        assert_agrees(programs, whole[:size], PEER_A, 0, check)


def test_a_good_ipv6_packet_is_taken_by_the_program(programs: Programs) -> None:
    ran = programs.run("fp_decap", outer(FROM_PEER6))
    assert (ran.result, ran.verdict) == (REDIRECT, "decapsulated")
    assert ran.packet == six("fd05:0:0:2::9", "fd05:0:0:1::7", pattern(20), hops=8)


@settings(max_examples=150, deadline=None)
@given(
    hops=st.integers(0, 255),
    traffic_class=st.integers(0, 255),
    source=st.sampled_from(["fd05:0:0:1::7", "fe80::1", "::1", "ff02::1"]),
    destination=st.sampled_from([f"fd05:0:0:{n}::9" for n in (1, 2, 3, 4, 9)] + ["2001:db8::1", "ff02::1"]),
    next_header=st.sampled_from([17, 0, 44, 58, 59]),
    payload=st.sampled_from([0, 1, 100, 1424, 1425, 1432, 1433]),
)
def test_ipv6_goes_out_as_the_core_sends_it(
    programs: Programs, hops: int, traffic_class: int, source: str, destination: str, next_header: int, payload: int
) -> None:
    packet = six(source, destination, pattern(payload), traffic_class, hops, next_header)
    assert_sent_as_by_the_core(packet, programs.run("fp_bypass", packet, ETHERNET6))
