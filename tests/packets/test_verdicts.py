"""Every verdict of the pure core is reached by a named packet, and counted; nothing that it refuses goes through."""

from dataclasses import dataclass, replace

import pytest
from scapy.all import ICMP, IP, Raw, raw

from flanpy.datapath.core import VERDICT_MEANINGS, VERDICTS, WORK_COUNTERS, WORK_MEANINGS
from flanpy.model import Hop
from tests.support.core import GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM, PEER_A, PEER_B, PLAIN, Core, Vnet
from tests.support.packets import Packet, decremented, pattern, with_ip_check

GOOD = Packet(payload=pattern(100))
DATA = GOOD.raw()
SUPER, SUPER_VNET = Packet(payload=pattern(3000)).superpacket(1400)
STRANGER = Hop(PEER_A.address + 77, 8285)
BACK = Packet(source="10.5.2.7", destination="10.5.1.5", payload=pattern(100)).raw()


@dataclass(frozen=True, slots=True)
class Case:
    """A packet and what must become of it; ``counted`` is packets and bytes."""

    name: str
    verdict: str
    packet: bytes
    counted: tuple[int, int]
    vnet: Vnet = PLAIN


def counted_one(name: str, verdict: str, packet: bytes, vnet: Vnet = PLAIN) -> Case:
    return Case(name, verdict, packet, (1, len(packet)), vnet)


def to(destination: str, **changes: object) -> bytes:
    return replace(GOOD, destination=destination, **changes).raw()  # type: ignore[arg-type]


def bare(protocol: int, payload: bytes) -> bytes:
    """An IP packet with whatever behind its header."""
    return raw(IP(src="10.5.1.5", dst="10.5.2.7", proto=protocol) / Raw(payload))


UDP_VNET = replace(SUPER_VNET, gso_type=GSO_UDP_L4)
FRAGMENT = with_ip_check(DATA[:6] + b"\x20\x00" + DATA[8:])
EMPTY = replace(GOOD, payload=b"").raw()
TINY, TINY_VNET = Packet(payload=pattern(2001)).superpacket(1)


def superpacket(**changes: object) -> bytes:
    return replace(Packet(payload=pattern(3000)), **changes).superpacket(1400)[0]  # type: ignore[arg-type]


ENCAP = [
    counted_one("empty", "drop_truncated", b""),
    counted_one("one byte short of a header", "drop_truncated", DATA[:19]),
    counted_one("one byte short of its total length", "drop_truncated", DATA[:-1]),
    counted_one("version 5", "drop_bad_header", b"\x55" + DATA[1:]),
    counted_one("header length 16", "drop_bad_header", with_ip_check(b"\x44" + DATA[1:])),
    counted_one("total length below the header's", "drop_bad_header", with_ip_check(DATA[:2] + b"\0\x13" + DATA[4:])),
    counted_one("wrong header checksum", "drop_bad_header", DATA[:10] + b"\0\0" + DATA[12:]),
    counted_one("destination in nobody's subnet", "drop_no_route", to("10.5.77.1")),
    counted_one("destination in our own subnet", "drop_no_route", to("10.5.1.9")),
    counted_one("time to live 1", "drop_ttl", to("10.5.2.7", ttl=1)),
    counted_one("time to live 0", "drop_ttl", to("10.5.2.7", ttl=0)),
    counted_one("one byte too big, DF", "drop_too_big", to("10.5.2.7", payload=pattern(1433))),
    counted_one("to a multicast group", "drop_martian", to("224.0.0.251")),
    counted_one("to limited broadcast", "drop_martian", to("255.255.255.255")),
    counted_one("to loopback", "drop_martian", to("127.0.0.1")),
    counted_one("to network 0", "drop_martian", to("0.0.0.1")),
    counted_one("from loopback", "drop_martian", to("10.5.2.7", source="127.1.2.3")),
    counted_one("from a multicast group", "drop_martian", to("10.5.2.7", source="239.1.1.1")),
    counted_one("from 0.0.0.0", "drop_martian", to("10.5.2.7", source="0.0.0.0")),
    counted_one("segment size 0", "drop_bad_offload", SUPER, replace(SUPER_VNET, gso_size=0)),
    counted_one("UDP type on TCP", "drop_bad_offload", SUPER, replace(SUPER_VNET, gso_type=GSO_UDP_L4)),
    counted_one("TCPv6 type on IPv4", "drop_bad_offload", SUPER, replace(SUPER_VNET, gso_type=4)),
    counted_one("UFO", "drop_bad_offload", SUPER, replace(SUPER_VNET, gso_type=3)),
    counted_one("unknown type", "drop_bad_offload", SUPER, replace(SUPER_VNET, gso_type=0x40)),
    counted_one(
        "superpacket that is a fragment", "drop_bad_offload", with_ip_check(SUPER[:6] + b"\x20\x00" + SUPER[8:]), SUPER_VNET
    ),
    counted_one("superpacket of ICMP", "drop_bad_offload", raw(IP(dst="10.5.2.7", src="10.5.1.5") / ICMP()), SUPER_VNET),
    counted_one("superpacket without a TCP header", "drop_truncated", bare(6, b"x" * 19), SUPER_VNET),
    counted_one("superpacket with a TCP header of 16", "drop_bad_header", SUPER[:32] + b"\x40" + SUPER[33:], SUPER_VNET),
    counted_one("superpacket with TCP options past its end", "drop_truncated", EMPTY[:32] + b"\xf0" + EMPTY[33:], SUPER_VNET),
    counted_one("superpacket without a UDP header", "drop_truncated", bare(17, b"x" * 7), UDP_VNET),
    counted_one("checksum before the payload", "drop_bad_offload", DATA, Vnet(NEEDS_CSUM, 0, 0, 0, 19, 16)),
    counted_one("checksum past the end", "drop_bad_offload", DATA, Vnet(NEEDS_CSUM, 0, 0, 0, 20, len(DATA) - 21)),
    counted_one("checksum far past the end", "drop_bad_offload", DATA, Vnet(NEEDS_CSUM, 0, 0, 0, 0xFFFF, 0xFFFF)),
    counted_one("checksum of a fragment", "drop_bad_offload", FRAGMENT, Vnet(NEEDS_CSUM, 0, 0, 0, 20, 16)),
    Case("more than 2000 segments", "drop_bad_offload", TINY, (2001, 2001 * 41), TINY_VNET),
    Case("superpacket without a route", "drop_no_route", superpacket(destination="10.9.9.9"), (3, 3120), SUPER_VNET),
    Case("superpacket with time to live 1", "drop_ttl", superpacket(ttl=1), (3, 3120), SUPER_VNET),
    Case("superpacket of segments that are too big", "drop_too_big", SUPER, (3, 3120), replace(SUPER_VNET, gso_size=1433)),
]  # fmt: skip


@pytest.mark.parametrize("case", ENCAP, ids=lambda case: case.name)
def test_encap_refuses(case: Case) -> None:
    core = Core()
    assert core.encap(case.packet, case.vnet) == case.verdict
    assert core.counts() == {case.verdict: case.counted}
    assert core.sends() == []


def test_encap_takes_a_good_packet_and_leaves_counting_to_the_sender() -> None:
    core = Core()
    assert core.encap(DATA) == "encapsulated"
    assert core.counts() == {}
    assert [send.packets for send in core.sends()] == [(decremented(DATA),)]


def test_a_refused_packet_is_left_as_it_arrived_for_the_icmp_error() -> None:
    core = Core()
    assert core.encap(to("10.5.2.7", ttl=1)) == "drop_ttl"
    assert core.icmp("drop_ttl", to("10.5.2.7", ttl=1))[28:] == to("10.5.2.7", ttl=1)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A datagram from a sender and what must become of it."""

    name: str
    verdict: str
    packet: bytes
    sender: Hop = PEER_A
    tos: int = 0


def back(**changes: object) -> bytes:
    base = Packet(source="10.5.2.7", destination="10.5.1.5", payload=pattern(100))
    return replace(base, **changes).raw()  # type: ignore[arg-type]


DECAP = [
    Arrival("empty", "drop_truncated", b""),
    Arrival("one byte short", "drop_truncated", BACK[:-1]),
    Arrival("nineteen bytes", "drop_truncated", BACK[:19]),
    Arrival("version 5", "drop_bad_header", b"\x55" + DATA[1:]),
    Arrival("wrong header checksum", "drop_bad_header", BACK[:10] + b"\0\0" + BACK[12:]),
    Arrival("from multicast", "drop_martian", back(source="224.0.0.1")),
    Arrival("to broadcast", "drop_martian", back(destination="255.255.255.255")),
    Arrival("sender that is no peer", "drop_unknown_peer", BACK, STRANGER),
    Arrival("source of another peer", "drop_spoofed", BACK, PEER_B),
    Arrival("source of nobody", "drop_spoofed", back(source="10.77.0.1")),
    Arrival("our own source", "drop_spoofed", back(source="10.5.1.9")),
    Arrival("destination of another peer", "drop_not_local", back(destination="10.5.3.1")),
    Arrival("destination of nobody", "drop_not_local", back(destination="8.8.8.8")),
    Arrival("time to live 1", "drop_ttl", back(ttl=1)),
    Arrival("time to live 0", "drop_ttl", back(ttl=0)),
    Arrival("congestion mark on a packet that cannot carry it", "drop_ecn", BACK, PEER_A, 3),
]


@pytest.mark.parametrize("case", DECAP, ids=lambda case: case.name)
def test_decap_refuses(case: Arrival) -> None:
    core = Core()
    assert core.train([case.packet], sender=case.sender, tos=case.tos) == len(case.packet)
    assert core.counts() == {case.verdict: (1, len(case.packet))}
    assert core.expired() == ([case.packet] if case.verdict == "drop_ttl" else [])
    assert core.writes() == []


def test_decap_takes_a_good_packet_and_leaves_counting_to_the_writer() -> None:
    core = Core()
    core.train([BACK])
    assert core.counts() == {}
    assert [(write.vnet, write.packet, write.packets, write.bytes) for write in core.writes()] == [
        (PLAIN, decremented(BACK), 1, len(BACK))
    ]


def test_without_the_source_check_any_sender_will_do() -> None:
    core = Core(source_check=False)
    core.train([back(source="10.77.0.1")], sender=STRANGER)
    assert [write.packet for write in core.writes()] == [decremented(back(source="10.77.0.1"))]


def test_without_the_source_check_our_own_addresses_are_refused_all_the_same() -> None:
    core = Core(source_check=False)
    forged = back(source="10.5.1.9")
    core.train([forged], sender=STRANGER)
    assert core.counts() == {"drop_spoofed": (1, len(forged))}


def test_a_good_packet_does_not_vouch_for_the_next_one_of_its_train() -> None:
    core = Core()
    spoofed = back(source="10.5.3.7", payload=pattern(100))
    foreign = back(destination="10.5.3.5", payload=pattern(100))
    core.train([BACK, spoofed, foreign, BACK], segment=len(BACK))
    assert core.counts() == {"drop_spoofed": (1, len(BACK)), "drop_not_local": (1, len(BACK))}
    assert sum(write.packets for write in core.writes()) == 2


def test_the_list_of_expired_packets_is_bounded() -> None:
    core = Core()
    core.train([back(ttl=1, ident=i) for i in range(40)])
    assert core.counts() == {"drop_ttl": (40, 40 * len(BACK))}
    assert core.expired() == [back(ttl=1, ident=i) for i in range(16)]
    core.writes()
    assert core.expired() == []


NOT_ECT, ECT1, ECT0, CE = range(4)


@pytest.mark.parametrize("inner", [NOT_ECT, ECT1, ECT0, CE])
@pytest.mark.parametrize("outer", [NOT_ECT, ECT1, ECT0, CE])
def test_ecn_is_combined_as_figure_4_of_rfc_6040_says(inner: int, outer: int) -> None:
    figure = {
        NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
        ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
        ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
        CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
    }
    core = Core()
    core.train([back(tos=0xB8 | inner)], tos=0x40 | outer)
    combined = figure[inner][outer]
    expected = [] if combined is None else [back(tos=0xB8 | combined, ttl=63)]
    assert [write.packet for write in core.writes()] == expected


WORKER_ALONE = {"drop_send", "drop_write", "icmp_sent", "icmp_limited"}


def test_every_verdict_is_reached_by_a_packet_of_this_file() -> None:
    reached = {case.verdict for case in ENCAP} | {case.verdict for case in DECAP} | {"encapsulated", "decapsulated"}
    assert reached | WORKER_ALONE == set(VERDICTS)


def test_every_name_is_unique_and_has_a_meaning() -> None:
    assert len(set(VERDICTS)) == len(VERDICTS) == len(VERDICT_MEANINGS)
    assert len(set(WORK_COUNTERS)) == len(WORK_COUNTERS) == len(WORK_MEANINGS)
    assert all(VERDICT_MEANINGS.values())
    assert all(WORK_MEANINGS.values())


def test_the_gso_types_of_the_cases_are_the_kernels() -> None:
    assert (GSO_TCPV4, GSO_UDP_L4) == (1, 5)
