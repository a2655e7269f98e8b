"""ICMP errors, whole bytes against scapy, and all cases in which none may be sent (RFC 1122 3.2.2, RFC 1812 4.3.2)."""

from dataclasses import replace

import pytest
from scapy.all import ICMP, IP, UDP, Raw, raw

from flanpy.datapath.core import VERDICTS
from tests.support.core import TUNNEL, Core
from tests.support.packets import HERE, THERE, Packet, pattern, with_ip_check

DATA = Packet(payload=pattern(2000), df=True).raw()
ANSWERED = {"drop_no_route": (3, 0), "drop_ttl": (11, 0), "drop_too_big": (3, 4)}


def oracle(verdict: str, packet: bytes, mtu: int) -> bytes:
    """The answer by scapy: internet control precedence, DF, id 0, at most 576 bytes."""
    kind, code = ANSWERED[verdict]
    header = IP(src=str(TUNNEL), dst=IP(packet).src, tos=0xC0, flags="DF", id=0, ttl=64, proto=1)
    message = ICMP(type=kind, code=code)
    if verdict == "drop_too_big":
        message.nexthopmtu = mtu
    return bytes(header / message / Raw(packet[:548]))


@pytest.mark.parametrize("verdict", ANSWERED)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 507, 508, 509, 1432])
def test_the_answer_is_byte_for_byte_the_oracles(verdict: str, size: int) -> None:
    packet = Packet(payload=pattern(size)).raw()
    assert Core().icmp(verdict, packet, mtu=1400) == oracle(verdict, packet, 1400)


def test_padding_behind_the_packet_is_not_quoted() -> None:
    packet = Packet(payload=b"").raw()
    assert Core().icmp("drop_ttl", packet + b"padding") == oracle("drop_ttl", packet, 0)


def test_a_next_hop_mtu_that_does_not_fit_16_bits_is_the_largest() -> None:
    assert Core().icmp("drop_too_big", DATA, mtu=70000) == oracle("drop_too_big", DATA, 0xFFFF)


@pytest.mark.parametrize("verdict", sorted(set(VERDICTS) - set(ANSWERED)))
def test_other_verdicts_are_not_answered(verdict: str) -> None:
    assert Core().icmp(verdict, DATA) == b""


def icmp(kind: int) -> bytes:
    return raw(IP(src=HERE, dst=THERE) / ICMP(type=kind, code=0) / Raw(pattern(40)))


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12, 1, 2, 6, 7, 19, 31, 255])
def test_icmp_errors_and_unknown_icmp_are_never_answered(kind: int) -> None:
    assert Core().icmp("drop_ttl", icmp(kind)) == b""


@pytest.mark.parametrize("kind", [0, 8, 9, 10, 13, 14, 15, 16, 17, 18])
def test_icmp_queries_are_answered(kind: int) -> None:
    assert Core().icmp("drop_ttl", icmp(kind)) == oracle("drop_ttl", icmp(kind), 0)


def test_icmp_without_a_type_is_not_answered() -> None:
    assert Core().icmp("drop_ttl", raw(IP(src=HERE, dst=THERE, proto=1))) == b""


def test_later_fragments_are_not_answered_but_first_ones_are() -> None:
    first = raw(IP(src=HERE, dst=THERE, flags="MF") / UDP() / Raw(pattern(100)))
    later = raw(IP(src=HERE, dst=THERE, frag=1, proto=17) / Raw(pattern(100)))
    assert Core().icmp("drop_ttl", later) == b""
    assert Core().icmp("drop_ttl", first) == oracle("drop_ttl", first, 0)


@pytest.mark.parametrize(
    "address", ["224.0.0.1", "239.255.255.255", "255.255.255.255", "127.0.0.1", "0.0.0.0", "0.1.2.3", "240.0.0.1"]
)
def test_nothing_is_sent_about_or_to_an_address_that_is_not_one_host(address: str) -> None:
    assert Core().icmp("drop_ttl", Packet(destination=address).raw()) == b""
    assert Core().icmp("drop_ttl", Packet(source=address).raw()) == b""


@pytest.mark.parametrize("length", [0, 1, 19])
def test_a_packet_that_is_not_whole_is_not_answered(length: int) -> None:
    assert Core().icmp("drop_no_route", DATA[:length]) == b""


def test_a_wrong_header_checksum_is_not_answered() -> None:
    assert Core().icmp("drop_no_route", DATA[:10] + b"\0\0" + DATA[12:]) == b""


def test_nothing_is_written_where_there_is_no_room() -> None:
    packet = replace(Packet(), payload=b"").raw()
    assert Core().icmp("drop_ttl", packet, room=67) == b""
    assert Core().icmp("drop_ttl", packet, room=0) == b""
    assert len(Core().icmp("drop_ttl", packet, room=68)) == 68


def test_ip_options_are_quoted() -> None:
    packet = Packet(ip_options=b"\x94\x04\x00\x00", payload=pattern(10)).raw()
    assert Core().icmp("drop_ttl", packet) == oracle("drop_ttl", packet, 0)


def test_the_answer_to_a_router_alert_multicast_is_silence() -> None:
    assert Core().icmp("drop_ttl", with_ip_check(DATA[:16] + b"\xe0\0\0\x16" + DATA[20:])) == b""
