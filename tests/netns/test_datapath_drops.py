"""What the userspace datapath refuses, how it answers, and what stands on the wire: tests/support/netns.py draws the topology."""

import re
import socket
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Packet, Raw

from tests.support.netns import PORT, Overlay, capture, counters, overlay, udp_socket
from tests.support.polling import soon


def inner(made: Overlay, **fields: object) -> IP:
    """A good packet from pod a to pod b, as host a would send it, with some header fields changed."""
    return IP(**({"src": str(made.a.pod_address), "dst": str(made.b.pod_address), "ttl": 9} | fields))


def send_outer(made: Overlay, packet: Packet | bytes, source: IPv4Address | None = None) -> None:
    """Send this as the payload of an encapsulated packet to host b, from host a's address or another."""
    with udp_socket(made.a.host, source or made.a.underlay_address) as sender:
        sender.sendto(bytes(packet), (str(made.b.underlay_address), PORT))


def only(made: Overlay, verdict: str) -> bool:
    return soon(lambda: counters(made.b.datapath.stats()) == {verdict: 1}, within_s=2)


def test_a_good_packet_from_any_source_port_is_delivered() -> None:
    """Shows that the drops below are drops for their own reason: flannel's receivers look at no port either."""
    with overlay() as made, udp_socket(made.b.pod, made.b.pod_address, 7) as receiver:
        send_outer(made, inner(made) / UDP(sport=1, dport=7) / Raw(b"whole"))
        assert receiver.recv(100) == b"whole"
        assert only(made, "decapsulated")


def test_an_unknown_outer_sender_is_dropped() -> None:
    with overlay() as made:
        made.a.host.script("ip addr add 172.31.0.77/24 dev uplink")
        send_outer(made, inner(made) / UDP(dport=7), IPv4Address("172.31.0.77"))
        assert only(made, "drop_unknown_peer")


@pytest.mark.parametrize("source", ["10.5.2.9", "10.5.9.9", "8.8.8.8"])
def test_an_inner_source_that_is_not_the_peers_is_dropped(source: str) -> None:
    with overlay() as made:
        send_outer(made, inner(made, src=source) / UDP(dport=7))
        assert only(made, "drop_spoofed")


def test_without_the_source_check_a_peer_behind_nat_is_heard() -> None:
    with overlay(source_check=False) as made, udp_socket(made.b.pod, made.b.pod_address, 7) as receiver:
        made.a.host.script("ip addr add 172.31.0.77/24 dev uplink")
        send_outer(made, inner(made) / UDP(sport=1, dport=7) / Raw(b"NAT"), IPv4Address("172.31.0.77"))
        assert receiver.recv(100) == b"NAT"


def test_an_inner_destination_that_is_not_ours_is_dropped() -> None:
    with overlay() as made:
        send_outer(made, inner(made, dst="10.5.3.1") / UDP(dport=7))
        assert only(made, "drop_not_local")


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("empty", "drop_truncated"), ("short", "drop_truncated"), ("cut", "drop_truncated"), ("version", "drop_bad_header")],
)
def test_what_is_no_packet_is_dropped(name: str, verdict: str) -> None:
    with overlay() as made:
        whole = bytes(inner(made) / UDP(dport=7) / Raw(b"12345678"))
        payload = {"empty": b"", "short": whole[:19], "cut": whole[:-1], "version": b"\x35" + whole[1:]}[name]
        send_outer(made, payload)
        assert only(made, verdict)


def test_no_route_is_answered_with_net_unreachable_to_the_pod() -> None:
    with overlay() as made:
        said = made.a.pod.run("ping", "-c1", "-W1", "10.5.99.1", check=False)
        assert f"From {made.a.tunnel_address} icmp_seq=1 Destination Net Unreachable" in said
        assert soon(lambda: counters(made.a.datapath.stats()) == {"drop_no_route": 1, "icmp_sent": 1})


def hops_of(made: Overlay) -> list[str]:
    """Who answers packets of time to live 1, 2, 3, ... until the destination does."""
    hops = []
    for ttl in range(1, 9):
        said = made.a.pod.run("ping", "-c1", "-W1", "-n", "-t", str(ttl), str(made.b.pod_address), check=False)
        found = re.search(r"(?:From|from) (\S+?):? icmp_seq", said)
        hops.append(found[1] if found else "*")
        if hops[-1] == str(made.b.pod_address):
            break
    return hops


def test_a_traceroute_shows_both_ends_of_the_tunnel() -> None:
    with overlay() as made:
        assert hops_of(made) == ["10.5.1.1", "10.5.1.0", "10.5.2.0", "10.5.2.0", "10.5.2.2"]
        assert soon(lambda: made.a.packets("drop_ttl") == made.b.packets("drop_ttl") == 1)


def test_icmp_errors_are_limited_in_rate() -> None:
    with overlay() as made, udp_socket(made.a.pod) as sender:
        for _ in range(1000):
            sender.sendto(b"x", ("10.5.99.1", 7))
        assert soon(lambda: made.a.packets("drop_no_route") == 1000)
        assert soon(lambda: made.a.packets("icmp_sent") + made.a.packets("icmp_limited") == 1000)
        assert 100 <= made.a.packets("icmp_sent") <= 300


def test_frag_needed_does_not_wait_for_other_errors() -> None:
    """Path MTU discovery goes on while somebody scans addresses that nobody has."""
    with overlay() as made, udp_socket(made.a.pod) as sender:
        for _ in range(1000):
            sender.sendto(b"x", ("10.5.99.1", 7))
        assert soon(lambda: made.a.packets("icmp_limited") > 0)
        made.a.host.script("ip link set flannel0 mtu 1500; ip link set pod0 mtu 1500")
        made.a.pod.script("ip link set eth0 mtu 1500")
        with capture(made.a.pod, "eth0") as wire:
            sender.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE: don't fragment
            sender.sendto(bytes(1460), (str(made.b.pod_address), 7))
            replies = iter(lambda: IP(wire.recv(65536)[14:]), None)
            told = next(reply for reply in replies if ICMP in reply and (reply[ICMP].type, reply[ICMP].code) == (3, 4))
        assert told[ICMP].nexthopmtu == 1472


def outer_of(made: Overlay, packet_socket: socket.socket) -> IP:
    """The next encapsulated packet from host a to host b on the underlay."""
    while True:
        packet = IP(packet_socket.recv(65536)[14:])
        if packet.src == str(made.a.underlay_address) and packet.dst == str(made.b.underlay_address):
            return packet


def test_the_wire_carries_what_flannel_sends() -> None:
    """UDP from port 8285 to port 8285, payload the bare inner packet whose time to live is one less than the router left it."""
    with overlay() as made, capture(made.b.host, "uplink") as wire, udp_socket(made.a.pod, made.a.pod_address, 5000) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
        sender.sendto(b"flannel", (str(made.b.pod_address), 7))
        outer = outer_of(made, wire)
        sent = IP(bytes(outer[UDP].payload))
        assert (outer.ihl, outer.tos, outer.flags.DF, outer.proto) == (5, 0, True, socket.IPPROTO_UDP)
        assert (outer[UDP].sport, outer[UDP].dport, outer[UDP].len) == (PORT, PORT, 8 + 28 + 7)
        expected = (
            IP(src="10.5.1.2", dst="10.5.2.2", tos=0xB8, flags="DF", id=sent.id, ttl=62)
            / UDP(sport=5000, dport=7)
            / Raw(b"flannel")
        )
        assert bytes(sent) == bytes(expected)


def test_an_answer_to_a_peers_traceroute_quotes_its_packet() -> None:
    with overlay() as made, capture(made.a.pod, "eth0") as wire:
        probe = inner(made, ttl=1, id=77) / UDP(sport=33434, dport=33434) / Raw(b"probe")
        send_outer(made, probe)
        reply = IP(wire.recv(65536)[14:])
        assert (reply.src, reply.dst, reply[ICMP].type, reply[ICMP].code) == ("10.5.2.0", "10.5.1.2", 11, 0)
        assert bytes(reply[ICMP].payload) == bytes(probe)
