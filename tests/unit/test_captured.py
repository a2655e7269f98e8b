"""What captured packets are, which of them are wanted, the kernel filter and the file: whole packets built by scapy, whole lines out."""

import io
import socket
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Built
from scapy.packet import Raw
from scapy.utils import rdpcap

from flanpy.agent.capture import _attach, outer_filter
from flanpy.core.captured import INBOUND, OUTBOUND, Filter, Tunnel, describe, file_head, file_packet, inner, parse, wanted

UDP_TUNNEL = Tunnel("udp", 8285)
PING = IP(src="10.244.7.2", dst="10.244.9.3", ttl=63) / ICMP(seq=5) / Raw(b"x" * 56)
PING6 = IPv6(src="fd00:7::2", dst="fd00:9::3", hlim=63) / ICMPv6EchoRequest(seq=5)
OUTER = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=8285, dport=8285)


@pytest.mark.parametrize(
    ("packet", "tunnel", "text"),
    [
        (PING, None, "10.244.7.2 > 10.244.9.3 icmp 84 echo request seq 5 ttl 63"),
        (PING6, None, "fd00:7::2 > fd00:9::3 icmpv6 48 echo request seq 5 ttl 63"),
        (
            OUTER / PING,
            UDP_TUNNEL,
            "10.0.0.1.8285 > 10.0.0.2.8285 udp 112 [10.244.7.2 > 10.244.9.3 icmp 84 echo request seq 5 ttl 63]",
        ),
        (
            OUTER / Raw(bytes(PING) * 3),
            UDP_TUNNEL,
            "10.0.0.1.8285 > 10.0.0.2.8285 udp 280 [10.244.7.2 > 10.244.9.3 icmp 84 echo request seq 5 ttl 63, first of 3]",
        ),
        (
            IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=8285, dport=8285) / PING,
            UDP_TUNNEL,
            "2001:db8::1.8285 > 2001:db8::2.8285 udp 132 [10.244.7.2 > 10.244.9.3 icmp 84 echo request seq 5 ttl 63]",
        ),
        (
            IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5, dport=8472) / VXLAN(vni=1) / Ether() / PING,
            Tunnel("vxlan", 8472),
            "10.0.0.1.5 > 10.0.0.2.8472 udp 134 [10.244.7.2 > 10.244.9.3 icmp 84 echo request seq 5 ttl 63]",
        ),
        (
            IP(src="10.0.0.1", dst="10.0.0.2") / PING,
            Tunnel("ipip", 0),
            "10.0.0.1 > 10.0.0.2 ipip 104 [10.244.7.2 > 10.244.9.3 icmp 84 echo request seq 5 ttl 63]",
        ),
        (
            IP(src="10.244.7.2", dst="10.244.9.3") / TCP(sport=80, dport=4000, flags="SA", seq=7, ack=9),
            None,
            "10.244.7.2.80 > 10.244.9.3.4000 tcp 40 [S.] seq 7 ack 9 ttl 64",
        ),
        (
            IP(src="1.1.1.1", dst="1.1.1.2", frag=3, proto=17) / Raw(b"12345678"),
            None,
            "1.1.1.1 > 1.1.1.2 udp 28 later fragment ttl 64",
        ),
        (
            IPv6(src="::1", dst="::2") / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(offset=9, nh=17) / Raw(b"12345678"),
            None,
            "::1 > ::2 udp 64 later fragment ttl 64",
        ),
        (IP(src="1.1.1.1", dst="1.1.1.2") / ICMP(type=3, code=4), None, "1.1.1.1 > 1.1.1.2 icmp 28 unreachable code 4 ttl 64"),
        (OUTER / Raw(b"not a packet"), UDP_TUNNEL, "10.0.0.1.8285 > 10.0.0.2.8285 udp 40 ttl 64"),
    ],
)
def test_a_packet_is_one_line_with_what_it_carries(packet: Built, tunnel: Tunnel | None, text: str) -> None:
    found = parse(bytes(packet))
    assert found is not None
    assert describe(found, tunnel) == text


@pytest.mark.parametrize("packet", [OUTER / PING, PING6, IP() / TCP(), IPv6() / IPv6ExtHdrHopByHop() / UDP()])
def test_no_beginning_of_a_packet_is_too_short_to_be_shown(packet: Built) -> None:
    data = bytes(packet)
    for length in range(len(data) + 1):
        found = parse(data[:length])
        assert found is None or describe(found, UDP_TUNNEL)


@given(st.binary(max_size=120), st.sampled_from(["udp", "vxlan", "ipip", "wireguard", "host-gw"]))
def test_no_bytes_break_the_reader(data: bytes, backend: str) -> None:
    for start in (b"", b"\x45\0\0\x54\0\0\0\0\x40\x11", b"\x45\0\0\x54\0\0\0\0\x40\x04", b"\x60\0\0\0\0\x20\x2c\x40"):
        found = parse(start + data)
        if found is not None:
            tunnel = Tunnel(backend, 8285)
            describe(found, tunnel)
            inner(found, tunnel)
            wanted(found, tunnel, Filter(ip_address("10.0.0.1"), ip_address("10.244.7.2")), outer=True)


PEER, POD = ip_address("10.0.0.2"), ip_address("10.244.9.3")


@pytest.mark.parametrize(
    ("choice", "outer", "inside"),
    [
        (Filter(), True, True),
        (Filter(peer=PEER), True, False),
        (Filter(peer=ip_address("10.0.0.9")), False, False),
        (Filter(pod=POD), True, True),
        (Filter(pod=ip_address("10.244.9.4")), False, False),
        (Filter(pod=PEER), False, False),
        (Filter(PEER, POD), True, False),
        (Filter(networks=(ip_network("10.244.0.0/16"),)), False, True),
        (Filter(networks=(ip_network("fd00::/16"),)), False, False),
    ],
)
def test_the_filter_judges_peers_outside_and_pods_inside(choice: Filter, outer: bool, inside: bool) -> None:
    whole, bare = parse(bytes(OUTER / PING)), parse(bytes(PING))
    assert whole is not None and bare is not None
    assert wanted(whole, UDP_TUNNEL, choice, outer=True) is outer
    assert wanted(bare, UDP_TUNNEL, choice, outer=False) is inside


# ------------------------------------------------------------------------------------------------ the filter in the kernel


def passes(tunnel: Tunnel, data: bytes) -> bool:
    """Whether the kernel's filter, on a socket of our own, lets this through."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        _attach(ours, outer_filter(tunnel))
        ours.setblocking(False)
        theirs.send(data)
        try:
            return ours.recv(65536) == data
        except BlockingIOError:
            return False


V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")


@pytest.mark.parametrize(
    ("tunnel", "packet", "kept"),
    [
        (UDP_TUNNEL, OUTER / PING, True),
        (UDP_TUNNEL, IP(options=b"\x01" * 4) / UDP(sport=9, dport=8285) / PING, True),
        (UDP_TUNNEL, IP() / UDP(sport=8285, dport=9), True),
        (UDP_TUNNEL, IP() / UDP(sport=9, dport=10), False),
        (UDP_TUNNEL, IP() / TCP(sport=8285, dport=8285), False),
        (UDP_TUNNEL, IP(frag=5, proto=17) / Raw(b"x" * 20), True),
        (UDP_TUNNEL, V6 / UDP(sport=8285, dport=9), True),
        (UDP_TUNNEL, V6 / UDP(sport=9, dport=8285), True),
        (UDP_TUNNEL, V6 / UDP(sport=9, dport=10), False),
        (UDP_TUNNEL, V6 / TCP(sport=8285, dport=8285), False),
        (UDP_TUNNEL, Raw(b"\x15" * 60), False),
        (UDP_TUNNEL, Raw(b"\x45"), False),
        (Tunnel("ipip", 0), IP() / PING, True),
        (Tunnel("ipip", 0), IP() / UDP(), False),
        (Tunnel("ipip", 0), V6 / UDP(), False),
        (Tunnel("vxlan", 8472), IP() / UDP(sport=3, dport=8472), True),
        (Tunnel("wireguard", 51820), IP() / UDP(sport=3, dport=8472), False),
    ],
)
def test_the_kernel_keeps_the_backends_packets_and_no_others(tunnel: Tunnel, packet: Built, kept: bool) -> None:
    assert passes(tunnel, bytes(packet)) is kept


# ------------------------------------------------------------------------------------------------ the file


def test_the_file_is_read_by_others() -> None:
    packets = [bytes(PING), bytes(OUTER / PING), bytes(PING6)[:45]]
    text = file_head([("flannel0", 0), ("eth0", 0)], 65536)
    for number, data in enumerate(packets):
        text += file_packet(number % 2, 1_700_000_000_123_456_789 + number, data, len(bytes(data)) + number, INBOUND + number % 2)
    found = rdpcap(io.BytesIO(text))
    assert [bytes(each) for each in found] == packets
    assert float(found[0].time) == pytest.approx(1_700_000_000.123456789, abs=1e-6)
    assert [each.wirelen for each in found] == [len(data) + number for number, data in enumerate(packets)]
    assert (INBOUND, OUTBOUND) == (1, 2)
    assert len(text) % 4 == 0
