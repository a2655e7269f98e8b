"""Pods' packets of both families over an IPv6 underlay; the topology is drawn in tests/support/ebpf.py. Every pair: test_ebpf_pairs.py."""

import hashlib
import os
import socket
import struct
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Raw

from tests.netns.test_datapath_traffic import send_and_digest
from tests.netns.test_ebpf_ipv6 import assert_carried_by_ebpf, hops_of
from tests.netns.test_ebpf_pairs import UDP_SEGMENT, address_of
from tests.support.clusters import eventually
from tests.support.ebpf import PORT, EbpfOverlay, drained, ebpf_overlay, know_neighbours, tap
from tests.support.namespaces import inside
from tests.support.netns import udp_socket
from tests.support.packets import Packet
from tests.support.six import six

pytestmark = pytest.mark.root

CONTENT_BYTES = 6 << 20
ETHERTYPE6 = b"\x86\xdd"


def assert_content_arrives(made: EbpfOverlay, family: int, content: bytes) -> None:
    expected = hashlib.sha256(content).hexdigest()
    assert send_and_digest(made.a, made.b, content, address_of(made.b, family)) == expected
    assert send_and_digest(made.b, made.a, content, address_of(made.a, family)) == expected


def wait_for_words(made: EbpfOverlay) -> None:
    """Until both hosts know what the other says of their superpackets: only probes carry that here."""
    eventually(lambda: all(side.stats.counters["bpf_probes_in"] > 0 for side in (made.a, made.b)), 5, "a probe has come")


@pytest.mark.parametrize("how", [{}, {"bridge": True}, {"bridge": True, "bypass": True}], ids=["port", "bridge", "bypass"])
def test_superpackets_stay_in_the_programs(how: dict[str, bool]) -> None:
    """Shows that the contents above were not carried by userspace alone."""
    content = os.urandom(CONTENT_BYTES)
    with ebpf_overlay(ipv6=True, outer=6, **how) as made:
        know_neighbours(made)
        for family in (4, 6):
            assert_content_arrives(made, family, content)
        for side, peer in ((made.a, made.b), (made.b, made.a)):
            stats = side.stats.counters
            assert stats["bpf_superpackets_out"] > 100 < stats["bpf_superpackets_in"]
            assert stats["udp_sends"] == 0
            assert (stats["bpf_bypassed"] > 0) == ("bypass" in how)
            assert side.datapath is not None
            count = side.datapath.peer_counts([peer.underlay_address])[peer.underlay_address]
            assert min(count.sent.bytes, count.received.bytes) > 2 * CONTENT_BYTES and count.dropped_in == 0


def test_ipv6_behind_a_bridge_travels_whole_from_pod_to_pod() -> None:
    """The peer's word that superpackets arrive stands in its probes' flow label; then they go flat, and no bridge cuts them."""
    content = os.urandom(CONTENT_BYTES)
    with ebpf_overlay(ipv6=True, outer=6, bridge=True) as made:
        know_neighbours(made)
        assert_content_arrives(made, 6, content)
        wait_for_words(made)
        with tap(made.b.pod, "eth0") as wire:
            assert_content_arrives(made, 6, content[: 8 << 20])
            sizes = [len(packet) for packet in drained(wire, ETHERTYPE6)]
        assert max(sizes) > 20_000


@pytest.mark.parametrize("family", [4, 6])
def test_an_inner_flow_keeps_its_outer_label_whole_cut_and_whatever_is_known_of_the_path(family: int) -> None:
    """RFC 6437. TCP itself takes another hash, and so label, when it seems to get stuck (net.core.txrehash): not here."""
    with ebpf_overlay(ipv6=True, outer=6) as made:
        know_neighbours(made)
        for side in (made.a, made.b):
            side.pod.script("sysctl -qw net.core.txrehash=0 2>/dev/null || true")
        seen: list[bytes] = []
        with tap(made.b.host, "uplink") as wire:
            for _ in range(3):
                assert_content_arrives(made, family, os.urandom(CONTENT_BYTES // 3))
                assert send_and_digest(made.a, made.b, bytes(1000), address_of(made.b, family))
            wait_for_words(made)
            seen += drained(wire, ETHERTYPE6)
        labels: dict[bytes, set[int]] = {}
        for packet in (each for each in seen if each[6] == 17):  # UDP, so ours
            at = 48 + (20 if packet[48] >> 4 == 4 else 40)
            labels.setdefault(packet[8:40] + packet[at : at + 4], set()).add(int.from_bytes(packet[1:4], "big") & 0xFFFFF)
        words = set().union(*(labels.pop(flow) for flow in [*labels] if flow.endswith(bytes(4))))
        assert any(word & 0xF80FF == 0xF8000 for word in words), "probes tell"
        assert len(labels) == 18 and {len(each) for each in labels.values()} == {1}, labels
        assert len(set().union(*labels.values())) > 10 and all(label & 1 for each in labels.values() for label in each)


def test_udp_superpackets_travel_whole_once_the_peer_has_said_that_they_arrive() -> None:
    with ebpf_overlay(ipv6=True, outer=6) as made:
        know_neighbours(made)
        assert_content_arrives(made, 6, os.urandom(CONTENT_BYTES))
        wait_for_words(made)
        with udp_socket(made.b.pod, made.b.pod_address6) as receiver, udp_socket(made.a.pod, made.a.pod_address6) as sender:
            before = made.b.stats.counters["bpf_superpackets_in"]
            datagrams = [os.urandom(1000) for _ in range(30)]
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            sender.sendto(b"".join(datagrams), receiver.getsockname())
            assert [receiver.recv(65536) for _ in datagrams] == datagrams
            assert made.b.stats.counters["bpf_superpackets_in"] == before + 1


def test_a_wire_sees_only_correct_packets_of_real_size() -> None:
    """An interface that finishes and cuts, like a network card; every inner checksum as scapy computes it."""
    content = os.urandom(300_000)
    with ebpf_overlay(ipv6=True, outer=6, wire=True) as made:
        know_neighbours(made)
        for side in (made.a, made.b):
            side.host.script("ethtool -K uplink tx off >/dev/null")
        for family in (4, 6):
            with tap(made.b.host, "uplink") as wire:
                target = address_of(made.b, family)
                assert send_and_digest(made.a, made.b, content, target) == hashlib.sha256(content).hexdigest()
                packets = [
                    packet
                    for packet in drained(wire, ETHERTYPE6)
                    if packet[6] == 17 and packet[8:24] == made.a.underlay_address.packed
                ]
            assert len(packets) > len(content) // 1452
            for packet in packets:
                assert_correct(packet)
        assert made.a.stats.counters["bpf_superpackets_out"] > 0


def assert_correct(packet: bytes) -> None:
    """A whole outer packet of real size without a UDP checksum, and a TCP packet inside whose checksums are right."""
    outer = IPv6(packet)
    assert len(packet) <= 1500 and outer.plen == outer[UDP].len == len(packet) - 40
    assert outer[UDP].chksum == 0
    inside_it = (IP if packet[48] >> 4 == 4 else IPv6)(packet[48:])
    again = inside_it.copy()
    del again[TCP].chksum
    if packet[48] >> 4 == 4:
        del again.chksum
    assert bytes(again) == packet[48:]


def test_a_traceroute_shows_both_ends_of_the_tunnel() -> None:
    """The third hop is answered by the socket of the other end, which is sent a packet without a UDP checksum for it."""
    with ebpf_overlay(ipv6=True, outer=6) as made:
        know_neighbours(made)
        assert hops_of(made) == ["fd00:5:1::1", "fd00:5:1::", "fd00:5:2::", "fd00:5:2::", "fd00:5:2::2"]
        assert made.a.packets("drop_ttl") == made.b.packets("drop_ttl") == 1
        assert made.b.stats.counters["bpf_up_answer"] > 0


def test_what_is_too_big_is_told_to_both_families_and_a_path_that_shrinks_loses_nothing() -> None:
    content = os.urandom(4 << 20)
    with ebpf_overlay(ipv6=True, outer=6) as made:
        know_neighbours(made)
        for side in (made.a, made.b):
            side.host.script("ip link set uplink mtu 1400")
        for family in (4, 6):
            told = made.a.packets("icmp_sent")
            assert send_and_digest(made.a, made.b, content, address_of(made.b, family)) == hashlib.sha256(content).hexdigest()
            assert made.a.packets("icmp_sent") > told
        assert made.a.packets("drop_send") == 0
        said = made.a.pod.run("ip", "-6", "route", "get", str(made.b.pod_address6))
        assert "mtu 1352" in said, said


def test_the_mtu_of_a_route_is_heeded() -> None:
    content = os.urandom(1 << 20)
    with ebpf_overlay(ipv6=True, outer=6, wire=True) as made:
        know_neighbours(made)
        made.a.host.script("ip -6 route add fd31::2/128 dev uplink mtu 1300")
        made.a.check()
        with tap(made.b.host, "uplink") as wire:
            assert send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
            sizes = [len(packet) for packet in drained(wire, ETHERTYPE6) if packet[8:24] == made.a.underlay_address.packed]
        assert 1200 < max(sizes) <= 1300


@pytest.mark.parametrize("traffic_class", [0xB8, 0xBB])
def test_every_byte_on_the_wire_is_what_it_should_be(traffic_class: int) -> None:
    """No DSCP outside, ECN copied to a peer that combines it, no UDP checksum, a label; inside only a hop less."""
    with (
        ebpf_overlay(ipv6=True, outer=6) as made,
        tap(made.b.host, "uplink") as wire,
        udp_socket(made.a.pod, made.a.pod_address6, 5000) as sender,
    ):
        know_neighbours(made)
        made.a.host.script("ethtool -K uplink tx off >/dev/null")
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)
        sender.sendto(b"flannel", (str(made.b.pod_address6), 7))
        packets: list[bytes] = []

        def has_come() -> bool:
            packets.extend(each for each in drained(wire, ETHERTYPE6) if each.endswith(b"flannel"))
            return bool(packets)

        eventually(has_come, 5, "the packet is on the wire")
        inner = IPv6(packets[0][48:])
        sent = IPv6(src="fd00:5:1::2", dst="fd00:5:2::2", tc=traffic_class, fl=inner.fl, hlim=62) / UDP(sport=5000, dport=7)
        label = IPv6(packets[0]).fl
        assert label & 1
        ends = IPv6(src="fd31::1", dst="fd31::2", tc=traffic_class & 3, hlim=64, fl=label)
        outer = ends / UDP(sport=PORT, dport=PORT, chksum=0)
        assert packets[0] == bytes(outer / Raw(bytes(sent / b"flannel")))


def test_outer_extension_headers_are_taken_by_the_socket() -> None:
    with ebpf_overlay(ipv6=True, outer=6) as made, udp_socket(made.b.pod, made.b.pod_address) as receiver:
        know_neighbours(made)
        port = receiver.getsockname()[1]
        inner = Packet(source="10.5.1.2", destination="10.5.2.2", ttl=9, udp=True, payload=b"by a detour")
        ports = bytearray(inner.raw())
        struct.pack_into("!H", ports, 22, port)
        ports[26:28] = bytes(2)
        datagram = UDP(sport=PORT, dport=PORT, chksum=0) / Raw(bytes(ports))
        packet = IPv6(src="fd31::1", dst="fd31::2", hlim=64) / IPv6ExtHdrDestOpt() / datagram
        with inside(made.a.host), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(bytes(packet), ("fd31::2", 0))
        assert receiver.recv(100) == b"by a detour"
        assert made.b.stats.counters["udp_receives"] == 1


@pytest.mark.parametrize("inner", ["46", "6"])
def test_agents_over_an_ipv6_underlay_take_ebpf_by_themselves(inner: str, tmp_path: Path) -> None:
    with six(tmp_path, "udp", inner, "6", datapath="auto") as two:
        assert_carried_by_ebpf(two)
        eventually(lambda: two.status("host2")["datapath"]["counters"]["bpf_probes_in"] > 0, 5, "a probe of the path has come")


def test_a_peer_behind_another_interface_is_reached_by_userspace() -> None:
    """Over IPv6 the kernel tells programs also of a route by another interface than they ask for; its next hop is not at the uplink."""
    with ebpf_overlay(ipv6=True, outer=6) as made:
        made.a.host.script(f"ip link add other type veth peer name other netns {made.b.host.path}")
        for side, address in ((made.a, "fd32::1"), (made.b, "fd32::2")):
            side.host.ip(f"addr add {address}/64 dev other nodad\nlink set other up")
        know_neighbours(made)
        made.a.host.ip(f"route add {made.b.underlay_address} via fd32::2 dev other src {made.a.underlay_address}")
        with udp_socket(made.b.pod, made.b.pod_address6) as receiver, udp_socket(made.a.pod, made.a.pod_address6) as sender:
            for number in range(5):
                sender.sendto(bytes([number]), receiver.getsockname())
                assert receiver.recv(100) == bytes([number])
        assert made.a.stats.counters["bpf_up_neighbour"] >= 5
