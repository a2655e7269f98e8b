"""Packets of other flows do not wait behind bulk ones, and every flow keeps its order: tests/support/netns.py draws the topology."""

import select
import struct
from collections.abc import Iterator

from scapy.layers.inet import IP, UDP

from tests.support.netns import PORT, Overlay, capture, overlay, table, udp_socket
from tests.support.polling import soon


def bulk_then_one(made: Overlay, *, bulk: int, size: int) -> None:
    """So many numbered packets of one flow, and one of another, from pod a to pod b, one after the other."""
    to = (str(made.b.pod_address), 7)
    with udp_socket(made.a.pod, made.a.pod_address, 1000) as many, udp_socket(made.a.pod, made.a.pod_address, 2000) as one:
        for number in range(bulk):
            many.sendto(struct.pack("!I", number).ljust(size), to)
        one.sendto(struct.pack("!I", bulk), to)


def inner_packets(wire: object, made: Overlay) -> Iterator[tuple[int, int]]:
    """(source port, number) of what host a sends to host b, in the order on the wire, until there is no more."""
    while select.select([wire], [], [], 2)[0]:
        outer = IP(wire.recv(65536)[14:])  # type: ignore[attr-defined]
        if outer.src == str(made.a.underlay_address) and UDP in outer and outer[UDP].dport == PORT:
            inner = IP(bytes(outer[UDP].payload))
            yield inner[UDP].sport, struct.unpack_from("!I", bytes(inner[UDP].payload))[0]


def test_another_flow_leaves_before_what_of_a_bulk_flow_has_come_earlier() -> None:
    """All packets wait for the first table, so one turn sees all: 60 of one flow, whose first 64 KB are not bulk yet, and one."""
    with overlay(wire=True, gro=False, published=False) as made, capture(made.b.host, "uplink") as wire:
        bulk_then_one(made, bulk=60, size=1400)
        made.a.datapath.publish(table(made.a, made.b))
        sent = list(inner_packets(wire, made))
    assert [number for port, number in sent if port == 1000] == list(range(60))
    assert sorted(sent) == [(1000, number) for number in range(60)] + [(2000, 60)]
    assert sent.index((2000, 60)) <= 65536 // 1428, "it stood behind all 60 in the queue"


def test_where_nothing_is_bulk_packets_leave_as_they_came() -> None:
    """Shows that the test above sees the difference."""
    with overlay(wire=True, gro=False, published=False) as made, capture(made.b.host, "uplink") as wire:
        bulk_then_one(made, bulk=40, size=1400)
        made.a.datapath.publish(table(made.a, made.b))
        sent = list(inner_packets(wire, made))
        assert made.a.datapath.stats().counters["tun_bulk_reads"] == 0
    assert sent == [(1000, number) for number in range(40)] + [(2000, 40)]


def test_a_flood_of_one_flow_arrives_whole_and_in_order_beside_others() -> None:
    """3000 large packets and 300 small ones of ten flows: more than a turn and than a batch hold."""
    with (
        overlay() as made,
        udp_socket(made.b.pod, made.b.pod_address, 7) as receiver,
        udp_socket(made.a.pod, made.a.pod_address, 1000) as many,
    ):
        others = [udp_socket(made.a.pod, made.a.pod_address, 2000 + i) for i in range(10)]
        came: dict[int, list[int]] = {port: [] for port in [1000, *range(2000, 2010)]}
        for number in range(3000):
            many.sendto(struct.pack("!I", number).ljust(1400), (str(made.b.pod_address), 7))
            if number % 10 == 0:
                others[number // 10 % 10].sendto(struct.pack("!I", number // 100), (str(made.b.pod_address), 7))
            if number % 100 == 99:
                assert soon(lambda sent=number + 1: made.a.packets("encapsulated") == sent + sent // 10)  # type: ignore[misc]
        for other in others:
            other.close()
        for _ in range(3300):
            data, (_, port) = receiver.recvfrom(2000)
            came[port].append(struct.unpack_from("!I", data)[0])
        assert made.a.datapath.stats().counters["tun_bulk_reads"] > 0
    assert came == {1000: list(range(3000))} | {port: list(range(30)) for port in range(2000, 2010)}
