"""The BPF programs over an IPv6 underlay against the C core, packet by packet; tests/packets/test_ebpf_programs.py has IPv4."""

import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import IP, UDP, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, Raw

from flanpy.model import Hop
from tests.packets.test_ebpf_programs import ETHERNET6, SOURCES6, six
from tests.support.core import Core
from tests.support.packets import Packet, pattern
from tests.support.programs import ETHERNET, NEXT, REDIRECT, Programs

pytestmark = pytest.mark.root

OURS = IPv6Address("fd31::1")
PEER_A, PEER_B = (Hop(IPv6Address(f"fd31::{n}"), 8285, superpacket=True) for n in (2, 3))
PEER_ECN = Hop(IPv6Address("2001:db8:0:7::2"), 8285, ecn=True, superpacket=True)
PLAIN = Hop(IPv6Address("fd31::5"), 8285)
ENTRIES = tuple(
    (subnet.format(number), hop)
    for number, hop in ((2, PEER_A), (3, PEER_B), (4, PEER_ECN), (5, PLAIN))
    for subnet in ("10.5.{}.0/24", "fd05:0:0:{}::/64")
)
STRANGER = Hop(IPv6Address("fd31::2:0:0:2"), 8285)


@pytest.fixture(scope="module", params=[True, False], ids=["source-check", "no-source-check"])
def check(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def programs(check: bool) -> Iterator[Programs]:
    made = Programs(source_check=check, entries=ENTRIES, own=OURS)
    yield made
    made.close()


def outer(inner: bytes, sender: str = str(PEER_A.address), traffic_class: int = 0, **fields: int) -> bytes:
    """An encapsulated packet as these programs send it: no UDP checksum."""
    header = {"dport": 8285, "sport": 8285, "chksum": 0} | {key: fields[key] for key in ("dport", "chksum") if key in fields}
    return bytes(IPv6(src=sender, dst=str(OURS), tc=traffic_class, hlim=64, fl=fields.get("fl", 0)) / UDP(**header) / inner)


def inner_packet(family: int, node: int = 2, ours: int = 1, tos: int = 0, ttl: int = 9, size: int = 20) -> bytes:
    if family == 6:
        return six(f"fd05:0:0:{node}::9", f"fd05:0:0:{ours}::7", pattern(size), tos, ttl)
    return Packet(source=f"10.5.{node}.9", destination=f"10.5.{ours}.7", tos=tos, ttl=ttl, udp=True, payload=pattern(size)).raw()


def assert_agrees(programs: Programs, inner: bytes, sender: Hop, tos: int, check: bool) -> None:
    """The same verdict and the same bytes as the core's, or left to userspace untouched."""
    given_packet = outer(inner, str(sender.address), tos)
    ran = programs.run("fp_decap", given_packet, ETHERNET6)
    core = Core(source_check=check, coalesce=False, entries=ENTRIES)
    core.train([inner], sender=sender, tos=tos)
    writes = core.writes()
    verdict = "decapsulated" if writes else next(iter(core.counts()))
    if ran.result == NEXT:
        assert ran.verdict is None and ran.packet == given_packet
        return
    assert ran.verdict == verdict
    assert (ran.result == REDIRECT) == bool(writes)
    if writes:
        assert ran.packet[: len(writes[0].packet)] == writes[0].packet


@settings(max_examples=250, deadline=None)
@given(
    family=st.sampled_from([4, 6]),
    sender=st.sampled_from([PEER_A, PEER_B, PEER_ECN, STRANGER]),
    tos=st.integers(0, 255),
    outer_tos=st.integers(0, 255),
    ttl=st.integers(0, 255),
    node=st.integers(1, 9),
    ours=st.integers(1, 3),
    size=st.integers(0, 60),
)
def test_every_field_that_decides_decides_as_in_the_core(
    programs: Programs, check: bool, family: int, sender: Hop, tos: int, outer_tos: int, ttl: int, node: int, ours: int, size: int
) -> None:
    assert_agrees(programs, inner_packet(family, node, ours, tos, ttl, size), sender, outer_tos, check)


@pytest.mark.parametrize("source", SOURCES6)
def test_sources_are_judged_as_in_the_core(programs: Programs, check: bool, source: str) -> None:
    for sender in (PEER_A, PEER_B, STRANGER):
        assert_agrees(programs, six(source, "fd05:0:0:1::7", pattern(20)), sender, 0, check)


@settings(max_examples=250, deadline=None)
@given(family=st.sampled_from([4, 6]), at=st.integers(0, 47), bits=st.integers(1, 255), cut=st.integers(0, 68))
def test_damaged_packets_are_judged_as_in_the_core(
    programs: Programs, check: bool, family: int, at: int, bits: int, cut: int
) -> None:
    data = bytearray(inner_packet(family) + bytes(20))
    data[at] ^= bits
    assert_agrees(programs, bytes(data[: max(len(data) - cut, 0)]), PEER_A, 0, check)


@pytest.mark.parametrize("family", [4, 6])
def test_every_prefix_of_a_good_packet_is_judged_as_in_the_core(programs: Programs, check: bool, family: int) -> None:
    whole = inner_packet(family) + b"12345678"
    for size in range(len(whole) + 1):
        assert_agrees(programs, whole[:size], PEER_A, 0, check)


@pytest.mark.parametrize("family", [4, 6])
def test_a_good_packet_is_taken_by_the_program(programs: Programs, family: int) -> None:
    """Shows that the agreement above is not that of leaving everything to userspace; also with a label and ECN outside."""
    for fields in ({}, {"fl": 0xF9200}, {"fl": 0x12345}):
        ran = programs.run("fp_decap", outer(inner_packet(family), **fields), ETHERNET6)
        assert (ran.result, ran.verdict, ran.packet) == (REDIRECT, "decapsulated", inner_packet(family, ttl=8))


@pytest.mark.parametrize("family", [4, 6])
def test_a_packet_of_a_peer_that_owns_another_subnet_is_spoofed_and_a_strangers_is_unknown(
    programs: Programs, check: bool, family: int
) -> None:
    for sender, verdict in ((PEER_B, "drop_spoofed"), (STRANGER, "drop_unknown_peer")):
        ran = programs.run("fp_decap", outer(inner_packet(family), str(sender.address)), ETHERNET6)
        assert ran.verdict == (verdict if check else "decapsulated")


def test_what_is_not_for_the_programs_is_left_untouched(programs: Programs) -> None:
    inner = inner_packet(4)
    ends = IPv6(src=str(PEER_A.address), dst=str(OURS))
    datagram = UDP(sport=8285, dport=8285, chksum=0) / Raw(inner)
    to_other = bytearray(outer(inner))
    to_other[39] ^= 2
    for name, packet in {
        "another port": outer(inner, dport=8286),
        "a UDP checksum, so a socket has sent it": outer(inner, chksum=0x1234),
        "destination options": bytes(ends / IPv6ExtHdrDestOpt() / datagram),
        "not UDP": bytes(ends / Raw(bytes(60))),
        "another address": bytes(to_other),
        "time to live used up": outer(inner_packet(4, ttl=1)),
        "hop limit used up": outer(inner_packet(6, ttl=1)),
        "version 5": b"\x50" + outer(inner)[1:],
    }.items():
        ran = programs.run("fp_decap", packet, ETHERNET6)
        assert (ran.result, ran.packet, ran.verdict) == (NEXT, packet, None), name


def test_fragments_are_left_untouched_and_the_first_of_a_packet_of_ours_is_counted() -> None:
    ends = IPv6(src=str(PEER_A.address), dst=str(OURS))
    datagram = UDP(sport=8285, dport=8285, chksum=0x1234) / Raw(inner_packet(4))
    first = bytes(ends / IPv6ExtHdrFragment(m=1, nh=17) / datagram)
    node = Programs(entries=ENTRIES, own=OURS)
    try:
        for name, packet, counted in (
            ("a later one", bytes(ends / IPv6ExtHdrFragment(m=1, offset=9, nh=17) / datagram), set()),
            ("another port's", bytes(ends / IPv6ExtHdrFragment(m=1, nh=17) / UDP(dport=8286) / Raw(bytes(60))), set()),
            ("not UDP's", bytes(ends / IPv6ExtHdrFragment(m=1, nh=6) / Raw(bytes(datagram))), set()),
            ("cut short", first[:59], set()),
            ("the first", first, {"bpf_up_fragment"}),
        ):
            ran = node.run("fp_decap", packet, ETHERNET6)
            assert (ran.result, ran.packet, ran.verdict, node.noticed()) == (NEXT, packet, None, counted), name
    finally:
        node.close()


def test_every_prefix_of_an_outer_packet_is_left_to_the_stack(programs: Programs) -> None:
    good = outer(inner_packet(6))
    for size in range(40, len(good)):  # the kernel's test run takes no shorter one
        assert programs.run("fp_decap", good[:size], ETHERNET6).result == NEXT, size


def test_lengths_that_contradict_each_other_are_left_to_the_stack(programs: Programs) -> None:
    good = outer(inner_packet(4))
    for at, value in ((4, len(good) - 39), (4, len(good) - 41), (44, len(good) - 39), (44, 7)):
        packet = bytearray(good)
        struct.pack_into("!H", packet, at, value)
        assert programs.run("fp_decap", bytes(packet), ETHERNET6).result == NEXT


def test_packets_of_the_other_family_of_the_underlay_are_none_of_ours(programs: Programs) -> None:
    from tests.packets.test_ebpf_programs import outer as outer4

    packet = outer4(inner_packet(4))
    assert programs.run("fp_decap", packet).result == NEXT
    over_ipv4 = Programs()
    try:
        assert over_ipv4.run("fp_decap", outer(inner_packet(4)), ETHERNET6).result == NEXT
    finally:
        over_ipv4.close()


@settings(max_examples=250, deadline=None)
@given(
    family=st.sampled_from([4, 6]),
    ttl=st.integers(0, 255),
    tos=st.integers(0, 255),
    node=st.integers(1, 9),
    size=st.sampled_from([0, 1, 100, 1403, 1404, 1405, 1423, 1424, 1425]),
)
def test_what_goes_out_is_what_the_core_sends(programs: Programs, family: int, ttl: int, tos: int, node: int, size: int) -> None:
    packet = inner_packet(family, 1, node, tos, ttl, size)
    ran = programs.run("fp_bypass", packet, ETHERNET6 if family == 6 else ETHERNET)
    core = Core(mtu=1452, entries=ENTRIES)
    verdict = core.encap(packet)
    if ran.result == NEXT:
        assert (verdict != "encapsulated" or node == 5) and ran.packet == packet and ran.verdict is None
        return
    (send,) = core.sends()
    assert (ran.result, ran.verdict, verdict) == (REDIRECT, "encapsulated", "encapsulated")
    label = IPv6(ran.packet).fl
    headers = IPv6(src=str(OURS), dst=str(send.hop.address), tc=send.tos, hlim=64, fl=label) / UDP(
        sport=8285, dport=8285, chksum=0
    )
    assert ran.packet == bytes(headers / Raw(send.packets[0]))
    assert label & 1, "never a word about superpackets"


@pytest.mark.parametrize("family", [4, 6])
def test_the_outer_flow_label_is_one_for_each_inner_flow(programs: Programs, family: int) -> None:
    """RFC 6437: routers spread flows over paths by it; 20 flows have 20 labels, but for a chance of 1 in 3,000."""

    def labels(port: int) -> set[int]:
        datagram = UDP(sport=port, dport=7)
        ends = ("fd05:0:0:1::7", "fd05:0:0:2::9") if family == 6 else ("10.5.1.7", "10.5.2.9")
        found = set()
        for size in (0, 1, 500, 1300):
            inner = (IPv6(src=ends[0], dst=ends[1]) if family == 6 else IP(src=ends[0], dst=ends[1], id=size)) / datagram
            ran = programs.run("fp_bypass", bytes(inner / Raw(pattern(size))), ETHERNET6 if family == 6 else ETHERNET)
            found.add(IPv6(ran.packet).fl)
        return found

    of_flows = [labels(port) for port in range(5000, 5020)]
    assert [len(each) for each in of_flows] == [1] * 20
    assert len(set().union(*of_flows)) >= 19


@pytest.mark.parametrize("family", [4, 6])
def test_a_peer_that_may_want_a_checksum_is_sent_to_by_userspace(programs: Programs, family: int) -> None:
    """Over IPv6 a socket drops what has none (RFC 8200, section 8.1), unless it is told otherwise."""
    link = ETHERNET6 if family == 6 else ETHERNET
    assert programs.run("fp_bypass", inner_packet(family, 1, 5), link).result == NEXT
    assert "bpf_up_plain_peer" in programs.noticed()


def test_what_a_peer_has_said_of_superpackets_is_said_back_to_it_alone() -> None:
    """A train's word (127) sends large TCP segments by userspace; a label that a router has made up says nothing."""
    tcp = IPv6(src="fd05:0:0:1::7", dst="fd05:0:0:2::9", hlim=9, nh=6) / Raw(bytes([0, 80, 0, 81]) + bytes(1000))
    for label, taken in ((0xFFF00, False), (0x7FF00, True), (0xFFF01, True), (0, True)):
        node = Programs(entries=((*ENTRIES[0:2], ("fd05:0:0:9::/64", replace(PEER_B, superpacket=True)))), own=OURS)
        try:
            assert node.run("fp_decap", outer(inner_packet(6), fl=label), ETHERNET6).verdict == "decapsulated"
            assert (node.run("fp_bypass", bytes(tcp), ETHERNET6).result == REDIRECT) == taken, hex(label)
            tcp9 = bytes(tcp.__class__(bytes(tcp)[:24] + IPv6Address("fd05:0:0:9::9").packed + bytes(tcp)[40:]))
            assert node.run("fp_bypass", tcp9, ETHERNET6).result == REDIRECT
        finally:
            node.close()
