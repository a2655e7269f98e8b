"""The tests of the userspace datapath, word for word, with ebpf on both hosts: same drops, same answers, same bytes.

Host senders of the drop tests send twice: with a UDP checksum, as sockets do, so that the packet reaches the userspace half; and
without, as the BPF programs do, so that these judge it. Verdict names and counts have to be the same.
"""

import hashlib
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP

from tests.netns import test_datapath_drops as drops
from tests.netns import test_datapath_traffic as traffic
from tests.support.ebpf import EbpfOverlay, drained, ebpf_overlay, tap
from tests.support.namespaces import Namespace
from tests.support.netns import PORT, udp_socket

pytestmark = pytest.mark.root

SO_NO_CHECK = 11
ELSEWHERE = {
    "test_a_path_that_shrinks_is_told_to_the_senders_and_loses_nothing",  # counts sends of the userspace half
    "test_two_threads_a_queue_carry_the_same",
    "test_tcp_content_arrives_unharmed_both_ways",  # test_ebpf_traffic.py has it for every pair
    "test_icmp_errors_are_limited_in_rate",
    "test_the_wire_carries_what_flannel_sends",  # below, behind an interface that finishes checksums
    "test_many_flows_at_once_keep_their_content",
}


def both_ebpf(*, tuning: object = None, spin_us: int = 50, **how: Any) -> AbstractContextManager[EbpfOverlay]:
    """The overlay that the other suite asks for; how its workers are tuned means nothing here."""
    return ebpf_overlay(("ebpf", "ebpf"), **how)


def collected(module: Any) -> list[Any]:
    return [
        pytest.param(test, id=name.removeprefix("test_"))
        for name, test in vars(module).items()
        if name.startswith("test_") and name not in ELSEWHERE
    ]


def cases(test: Any) -> Iterator[dict[str, Any]]:
    """The arguments of a test, by its ``parametrize`` mark; none of that suite has more than one."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    if not marks:
        yield {}
        return
    names, values = marks[0].args
    for value in values:
        yield {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))


@pytest.mark.parametrize("checksum", [True, False], ids=["to-userspace", "to-bpf"])
@pytest.mark.parametrize("test", collected(drops))
def test_drops_and_answers(test: Any, checksum: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def socket_of(where: Namespace, address: IPv4Address | None = None, port: int = 0) -> socket.socket:
        made = udp_socket(where, address, port)
        made.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 0 if checksum else 1)
        return made

    monkeypatch.setattr(drops, "overlay", both_ebpf)
    monkeypatch.setattr(drops, "udp_socket", socket_of)
    for case in cases(test):
        test(**case)


@pytest.mark.parametrize("test", collected(traffic))
def test_traffic(test: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "overlay", both_ebpf)
    for case in cases(test):
        test(**case)


@contextmanager
def narrow_path() -> Iterator[EbpfOverlay]:
    with ebpf_overlay() as made:
        for side in (made.a, made.b):
            side.host.script("ip link set uplink mtu 1400")
        yield made


def test_a_path_that_shrinks_is_told_to_the_senders_and_loses_nothing() -> None:
    content = bytes(range(256)) * 32768
    with narrow_path() as made:
        assert traffic.send_and_digest(made.a, made.b, content)
        assert made.a.packets("icmp_sent") > 0
        assert made.a.packets("drop_send") == 0


def test_the_mtu_of_a_route_is_heeded_and_told_to_the_senders() -> None:
    """Not locked, so that the kernel does not tell the programs of it."""
    content = bytes(range(256)) * 32768
    with ebpf_overlay(wire=True) as made:  # every packet by itself, so that its size can be seen
        made.a.host.script("ip route add 172.31.0.2/32 dev uplink mtu 1300")
        made.a.check()
        with tap(made.b.host, "uplink") as wire:
            assert traffic.send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
            sizes = [len(packet) for packet in drained(wire) if packet[12:16] == made.a.underlay_address.packed]
        assert 1200 < max(sizes) <= 1300
        assert made.a.packets("icmp_sent") > 0
        assert made.a.stats.counters["bpf_superpackets_out"] > 0, "cut smaller, they go by the programs again"
        made.a.host.script("ip route del 172.31.0.2/32")
        made.a.check()
        told = made.a.packets("icmp_sent")
        assert traffic.send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
        assert made.a.packets("icmp_sent") == told


@pytest.mark.parametrize("tos", [0xB8, 0xB9, 0xBA, 0xBB])
def test_the_wire_carries_what_flannel_sends(tos: int) -> None:
    """Every byte: no DSCP outside, ECN copied to a peer that combines it, no UDP checksum, DF; inside only a hop less."""
    with ebpf_overlay() as made, tap(made.b.host, "uplink") as wire, udp_socket(made.a.pod, made.a.pod_address, 5000) as sender:
        made.a.host.script("ethtool -K uplink tx off >/dev/null")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        sender.sendto(b"flannel", (str(made.b.pod_address), 7))
        seen = iter(lambda: IP(wire.recv(1 << 17)[14:]), None)
        outer = next(packet for packet in seen if packet.src == "172.31.0.1" and bytes(packet).endswith(b"flannel"))
        sent = IP(bytes(outer[UDP].payload))
        inner = (
            IP(src="10.5.1.2", dst="10.5.2.2", tos=tos, flags="DF", id=sent.id, ttl=62) / UDP(sport=5000, dport=7) / b"flannel"
        )
        expected = (
            IP(src="172.31.0.1", dst="172.31.0.2", tos=tos & 3, flags="DF", id=0, ttl=64)
            / UDP(sport=PORT, dport=PORT, chksum=0)
            / bytes(inner)
        )
        assert bytes(outer) == bytes(expected)
