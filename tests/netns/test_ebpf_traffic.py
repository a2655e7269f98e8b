"""How ebpf carries packets between two pods: whole, cut, by which half. That all arrives, for every pair: test_ebpf_pairs.py.

The topology is drawn in tests/support/ebpf.py.
"""

import hashlib
import json
import os
import socket
from socket import AF_INET, AF_INET6

import pytest
from scapy.layers.inet import IP, TCP, UDP

from flanpy.kernel.bpf_host import merging_names
from flanpy.model import Address
from tests.netns.test_datapath_traffic import send_and_digest
from tests.netns.test_ebpf_pairs import UDP_SEGMENT
from tests.support.ebpf import EbpfOverlay, drained, ebpf_overlay, know_neighbours, tap
from tests.support.namespaces import inside
from tests.support.netns import counters, udp_socket
from tests.support.polling import soon

pytestmark = pytest.mark.root

CONTENT_BYTES = 24 << 20


def assert_echoes(made: EbpfOverlay, content: bytes, address: Address, times: int) -> None:
    """Each piece waits for the echo of the one before it, so that it goes as a single packet where it fits."""
    with inside(made.b.pod):
        server = socket.create_server((str(address), 0), family=AF_INET6 if address.version == 6 else AF_INET)
    with inside(made.a.pod):
        client = socket.create_connection(server.getsockname()[:2], timeout=20)
    with server, client, server.accept()[0] as peer:
        peer.settimeout(20)
        for one, other in ((client, peer), (peer, client)) * times:
            one.sendall(content)
            assert other.recv(len(content), socket.MSG_WAITALL) == content


@pytest.mark.parametrize("family", [4, 6])
def test_single_packets_of_a_jumbo_underlay_pass_the_merging_device(family: int) -> None:
    """With no superpacket before them they take the detour; also where an earlier version has left the device at 1500."""
    with ebpf_overlay(mtu=9000, ipv6=True) as made:
        for side in (made.a, made.b):
            for name in merging_names("flannel0"):
                side.host.script(f"ip link set {name} mtu 1500")
            side.check()
        assert_echoes(made, os.urandom(8000), made.b.pod_address if family == 4 else made.b.pod_address6, 3)
        (device,) = json.loads(made.b.host.run("ip", "-s", "-j", "link", "show", merging_names("flannel0")[0]))
        sent = device["stats64"]["tx"]
        assert sent["dropped"] == 0 and sent["bytes"] > 8000
        assert made.b.stats.counters["bpf_inner_gro"] > 0


def test_tcp_behind_a_bridge_travels_whole_from_pod_to_pod() -> None:
    """A bridge has no tunnel offloads: a superpacket that still passed for a tunnel's would be cut on it."""
    content = os.urandom(CONTENT_BYTES)
    with ebpf_overlay(bridge=True) as made:
        for _ in range(2):
            assert send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
        with tap(made.b.pod, "eth0") as wire:
            assert send_and_digest(made.a, made.b, content[: 8 << 20]) == hashlib.sha256(content[: 8 << 20]).hexdigest()
            sizes = [len(packet) for packet in drained(wire)]
        assert max(sizes) > 20_000


def test_superpackets_are_sent_whole_where_the_peer_and_the_underlay_take_them() -> None:
    content = os.urandom(CONTENT_BYTES)
    with ebpf_overlay() as made:
        assert send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
        assert made.a.stats.counters["bpf_superpackets_out"] == made.b.stats.counters["bpf_superpackets_in"] > 100
        assert made.a.stats.verdicts["encapsulated"].packets > 10 * made.a.stats.counters["bpf_superpackets_out"]


def test_frames_with_a_tag_that_nobody_took_off_are_not_ours() -> None:
    """The host has no interface in that VLAN, so it would not have them either."""
    with ebpf_overlay() as made, tap(made.b.host, "uplink") as wire, udp_socket(made.a.pod) as sender:
        sender.sendto(b"x", (str(made.b.pod_address), 7))
        seen = iter(lambda: wire.recv(1 << 17), None)
        frame = next(frame for frame in seen if frame[12:14] == b"\x08\x00" and frame.endswith(b"x"))
        before = made.b.packets("decapsulated")
        with tap(made.a.host, "uplink") as out:
            for _ in range(5):
                out.send(frame[:12] + b"\x81\x00\x00\x07" + frame[12:])
            out.send(frame)
        assert soon(lambda: made.b.packets("decapsulated") == before + 1)


def test_udp_superpackets_travel_whole_once_the_peer_has_said_that_they_arrive() -> None:
    content = os.urandom(4 << 20)
    with ebpf_overlay() as made, udp_socket(made.b.pod, made.b.pod_address) as receiver, udp_socket(made.a.pod) as sender:
        assert send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
        before = made.b.stats.counters["bpf_superpackets_in"]
        datagrams = [os.urandom(1000) for _ in range(30)]
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.sendto(b"".join(datagrams), receiver.getsockname())
        assert [receiver.recv(65536) for _ in datagrams] == datagrams
        assert made.b.stats.counters["bpf_superpackets_in"] == before + 1


def outers(made: EbpfOverlay, content: bytes) -> list[IP]:
    """All encapsulated packets from host a that reach host b's interface while pod a sends this content."""
    with tap(made.b.host, "uplink") as wire:
        assert send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
        packets = [IP(packet) for packet in drained(wire)]
    return [packet for packet in packets if packet.src == str(made.a.underlay_address)]


def assert_correct(packet: IP) -> None:
    """Real size, and every checksum as scapy computes it, but for the outer one of UDP, which may be zero."""
    assert len(packet) <= 1500 and packet.len == len(packet)
    inner = IP(bytes(packet[UDP].payload))
    assert inner.len == len(inner) == packet[UDP].len - 8
    again = inner.copy()
    del again.chksum, again[TCP].chksum
    assert bytes(again) == bytes(inner)
    outer = packet.copy()
    del outer.chksum
    assert IP(bytes(outer)).chksum == packet.chksum


def test_a_wire_sees_only_correct_packets_of_real_size() -> None:
    """An interface that finishes and cuts, like a network card, in front of a peer with ebpf."""
    with ebpf_overlay(wire=True) as made:
        for side in (made.a, made.b):
            side.host.script("ethtool -K uplink tx off >/dev/null")
        packets = outers(made, os.urandom(400_000))
        assert len(packets) > 400_000 // 1472
        for packet in packets:
            assert_correct(packet)
            assert packet[UDP].chksum == 0 and packet.flags.DF
        assert made.a.stats.counters["bpf_superpackets_out"] > 0


def test_a_plain_peer_on_a_superpacket_underlay_gets_finished_packets() -> None:
    """The userspace peer's socket sees trains of whole datagrams, cut by UDP_SEGMENT; none is a superpacket of the inner flow."""
    with ebpf_overlay(("ebpf", "userspace")) as made:
        assert send_and_digest(made.a, made.b, os.urandom(CONTENT_BYTES))
        stats = made.a.stats.counters
        assert stats["bpf_superpackets_out"] == 0 and stats["bpf_up_plain_peer"] > 0
        assert made.b.stats.counters["udp_truncated"] == 0
        assert set(counters(made.b.stats)) == {"encapsulated", "decapsulated"}


@pytest.mark.parametrize("bridge", [False, True], ids=["port", "bridge"])
def test_the_bypass_carries_the_same_and_leaves_the_hosts_own_traffic_alone(bridge: bool) -> None:
    content = os.urandom(CONTENT_BYTES)
    with ebpf_overlay(bypass=True, bridge=bridge) as made:
        assert send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
        assert send_and_digest(made.b, made.a, content) == hashlib.sha256(content).hexdigest()
        assert made.a.stats.counters["bpf_bypassed"] > 0
        for address in ("10.5.2.1", "10.5.2.0", "10.5.2.2"):
            assert " 2 received" in made.a.pod.run("ping", "-c2", "-i0.1", "-W1", address)
        assert " 2 received" in made.a.host.run("ping", "-c2", "-i0.1", "-W1", "10.5.2.2")


def test_tcp_goes_in_trains_to_a_peer_whose_interface_merges_them() -> None:
    content = os.urandom(CONTENT_BYTES)
    expected = hashlib.sha256(content).hexdigest()
    with ebpf_overlay(wire=True, gro=True) as made:
        assert made.a.stats.counters["bpf_probes_out"] == 0
        assert send_and_digest(made.a, made.b, content) == expected
        assert soon(lambda: made.a.stats.counters["bpf_probes_in"] > 0 < made.b.stats.counters["bpf_probes_in"])
        for sender, receiver in ((made.a, made.b), (made.b, made.a)):
            answered = receiver.stats.counters["bpf_up_tcp_train"]
            assert send_and_digest(sender, receiver, content) == expected
            assert sender.stats.counters["bpf_up_tcp_train"] > 0
            assert receiver.stats.counters["bpf_up_tcp_train"] == answered, "what only acknowledges needs no train"
            assert receiver.stats.counters["udp_received_segments"] > 10 * receiver.stats.counters["udp_receives"]
        assert made.a.stats.counters["bpf_inner_gro"] == made.b.stats.counters["bpf_inner_gro"] == 0, "nothing to merge is left"


def test_superpackets_of_very_many_segments_say_nothing_that_cutting_them_would_change() -> None:
    """The kernel numbers segments in the identification's low byte: more than 256 reach into what we say of the peer's superpackets."""
    content = os.urandom(6 << 20)
    expected = hashlib.sha256(content).hexdigest()
    with ebpf_overlay(ipv6=True) as made:
        know_neighbours(made)
        made.b.pod.ip("route change default via 10.5.2.1 advmss 150")
        made.a.host.script("ethtool -K uplink tso off gso off >/dev/null")
        assert send_and_digest(made.b, made.a, content) == expected
        with tap(made.b.host, "uplink") as wire:
            for sender, receiver in 3 * ((made.b, made.a), (made.a, made.b)):
                assert send_and_digest(sender, receiver, content) == expected
            words = {packet[4] for packet in drained(wire) if packet[12:16] == made.a.underlay_address.packed}
        assert made.a.stats.counters["bpf_superpackets_out"] > 100 and len(words) > 1
        assert 0xFF not in words and made.b.stats.counters["bpf_up_tcp_train"] == 0, "nobody merges trains here"
