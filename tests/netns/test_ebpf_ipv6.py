"""IPv6 packets of pods over an IPv4 underlay; the topology is drawn in tests/support/ebpf.py. Every pair: test_ebpf_pairs.py."""

import hashlib
import os
import re
import socket
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from tests.netns.test_datapath_traffic import send_and_digest
from tests.support.clusters import eventually
from tests.support.ebpf import EbpfOverlay, drained, ebpf_overlay, know_neighbours, tap
from tests.support.netns import udp_socket
from tests.support.six import Six, six
from tests.support.transfers import transfer

pytestmark = pytest.mark.root

CONTENT_BYTES = 12 << 20


def test_superpackets_stay_in_the_programs() -> None:
    """Shows that the contents above were not carried by userspace alone; behind a bridge and by the bypass too."""
    content = os.urandom(CONTENT_BYTES)
    for how in ({}, {"bridge": True}, {"bridge": True, "bypass": True}):
        with ebpf_overlay(ipv6=True, **how) as made:
            assert send_and_digest(made.a, made.b, content, made.b.pod_address6) == hashlib.sha256(content).hexdigest()
            stats = made.a.stats.counters, made.b.stats.counters
            assert stats[0]["bpf_superpackets_out"] == stats[1]["bpf_superpackets_in"] > 100, how
            assert stats[0]["udp_sends"] == 0, how
            assert (stats[1]["bpf_bypassed"] > 0) == ("bypass" in how)


def hops_of(made: EbpfOverlay) -> list[str]:
    """Who answers packets of hop limit 1, 2, 3, ... until the destination does."""
    hops: list[str] = []
    target = str(made.b.pod_address6)
    for limit in range(1, 9):
        said = made.a.pod.run("ping", "-6", "-c1", "-W2", "-n", "-t", str(limit), target, check=False)
        found = re.search(r"From (\S+) icmp_seq|from (\S+): icmp_seq", said)
        hops.append(found[1] or found[2] if found else "*")
        if hops[-1] == target:
            break
    return hops


def test_a_traceroute_shows_both_ends_of_the_tunnel() -> None:
    with ebpf_overlay(ipv6=True) as made:
        know_neighbours(made)
        assert hops_of(made) == ["fd00:5:1::1", "fd00:5:1::", "fd00:5:2::", "fd00:5:2::", "fd00:5:2::2"]
        assert made.a.packets("drop_ttl") == made.b.packets("drop_ttl") == 1


def test_a_subnet_that_nobody_has_is_unreachable_and_a_large_packet_too_big() -> None:
    with ebpf_overlay(ipv6=True) as made:
        know_neighbours(made)
        ping = ("ping", "-6", "-n", "-c1", "-W2")
        assert "From fd00:5:1:: icmp_seq=1 Destination unreachable: No route" in made.a.pod.run(
            *ping, "fd00:5:99::1", check=False
        )
        fits, over = (str(made.a.mtu_bytes - 48 + more) for more in (0, 8))
        assert " 1 received" in made.a.pod.run(*ping, "-M", "do", "-s", fits, str(made.b.pod_address6))
        made.a.host.script("ip link set flannel0 mtu 1500; ip link set pod0 mtu 1500")
        made.a.pod.script("ip link set eth0 mtu 1500")
        said = made.a.pod.run(*ping, "-M", "do", "-s", over, str(made.b.pod_address6), check=False)
        assert "Packet too big: mtu=1472" in said or "mtu=1472" in said, said


@pytest.mark.parametrize("traffic_class", [0xB8, 0xB9, 0xBA, 0xBB])
def test_the_wire_carries_the_packet_as_it_is_but_for_a_hop(traffic_class: int) -> None:
    with (
        ebpf_overlay(ipv6=True) as made,
        tap(made.b.host, "uplink") as wire,
        udp_socket(made.a.pod, made.a.pod_address6, 5000) as sender,
    ):
        made.a.host.script("ethtool -K uplink tx off >/dev/null")
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)
        sender.sendto(b"flannel", (str(made.b.pod_address6), 7))
        packets: list[IP] = []

        def has_come() -> bool:
            packets.extend(IP(each) for each in drained(wire))
            return any(bytes(each).endswith(b"flannel") for each in packets)

        eventually(has_come, 5, "the packet is on the wire")
        outer = next(each for each in packets if bytes(each).endswith(b"flannel"))
        inner = IPv6(bytes(outer[UDP].payload))
        expected = (
            IPv6(src="fd00:5:1::2", dst="fd00:5:2::2", tc=traffic_class, fl=inner.fl, hlim=62)
            / UDP(sport=5000, dport=7)
            / b"flannel"
        )
        assert bytes(inner) == bytes(expected)
        assert (outer.tos, outer[UDP].chksum, outer.len) == (traffic_class & 3, 0, 28 + len(inner))


def assert_carried_by_ebpf(two: Six) -> None:
    """What pods of host1 send to one of host2, by each address that it has."""
    for target in two.pods("host2-pod1"):
        eventually(lambda target=target: two.answers("host1-pod1", target), 10, f"{target} answers")
        sent, arrived = transfer(two, "host1-pod1", "host2-pod1", target)
        assert sent == arrived
    status = two.status("host1")
    assert status["datapath"]["kind"] == "ebpf", status
    assert status["datapath"]["counters"]["bpf_superpackets_out"] > 0


@pytest.mark.parametrize("inner", ["46", "6"])
def test_agents_of_a_cluster_with_ipv6_carry_it_by_ebpf(inner: str, tmp_path: Path) -> None:
    with six(tmp_path, "udp", inner, "4", datapath="ebpf") as two:
        assert_carried_by_ebpf(two)
