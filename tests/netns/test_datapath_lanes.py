"""Which of the underlay's sockets the kernel puts a packet into: by its sender, so that a full queue is that sender's own.

one namespace:  172.31.0.1 .. 172.31.0.31, fd07::1 .. fd07::1f (senders)  ──▶  172.31.0.200 or fd07::c8, port 8285: 31 sockets
"""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from flanpy.datapath.sockets import SOCKETS, UnderlaySockets, adopt_underlay, open_underlay, sockets_of
from flanpy.model import Address
from tests.support.clusters import eventually
from tests.support.namespaces import Namespace, inside, namespace
from tests.support.netns import PORT

HERE: dict[int, Address] = {4: IPv4Address("172.31.0.200"), 6: IPv6Address("fd07::c8")}


@pytest.fixture(scope="module", autouse=True)
def host() -> Iterator[Namespace]:
    with namespace() as where:
        for number in [*range(1, 32), 200]:
            where.run("ip", "address", "add", f"172.31.0.{number}/24", "dev", "lo")
            where.run("ip", "address", "add", f"fd07::{number:x}/64", "dev", "lo", "nodad")
        eventually(
            lambda: all(f"local fd07::{number:x} " in routes(where) for number in [*range(1, 32), 200]), 10, "addresses work"
        )
        with inside(where):
            yield where


def routes(where: Namespace) -> str:
    """The kernel makes the route of an IPv6 address some time after the address."""
    return where.run("ip", "-6", "route", "show", "table", "local")


def send(source: str, to: Address, datagram: bytes = b"x", times: int = 1) -> None:
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        for _ in range(times):
            sender.sendto(datagram, (str(to), PORT))


def arrived(underlay: UnderlaySockets, expected: int) -> list[tuple[int, str]]:
    """(number of the socket, sender) of so many packets and whatever else waits, the queues becoming empty."""
    came: list[tuple[int, str]] = []
    while ready := select.select(underlay.sockets, [], [], 10 if len(came) < expected else 0)[0]:
        came += [(underlay.sockets.index(each), each.recvfrom(2000)[1][0]) for each in ready]
    return came


@pytest.mark.parametrize("version", [4, 6])
def test_every_sender_of_a_small_cluster_has_a_queue_of_its_own(version: int) -> None:
    with closing(open_underlay(HERE[version], PORT)) as underlay:
        assert underlay.degraded == ()
        senders = [str(ip_address(int(HERE[version]) - 200 + number)) for number in range(1, 32)]
        for sender in [*senders, *senders]:
            send(sender, HERE[version])
        came = arrived(underlay, 62)
        assert len(came) == 2 * len(set(came)) == 62, "the second packet is where the first one is"
        assert sorted(sender for _, sender in set(came)) == sorted(senders)
        assert {number for number, _ in came} == set(range(SOCKETS)), "31 senders, 31 queues"


def test_every_word_of_an_ipv6_address_tells_senders_apart(host: Namespace) -> None:
    """Nodes may have a network each, so that only upper words differ."""
    others = [f"fd07:0:0:{number}::1" for number in range(1, 4)] + [f"fd07:{number}::1" for number in range(1, 4)]
    for each in others:
        host.run("ip", "address", "add", f"{each}/128", "dev", "lo", "nodad")
    eventually(lambda: all(f"local {each} " in routes(host) for each in others), 10, "addresses work")
    with closing(open_underlay(HERE[6], PORT)) as underlay:
        for each in others:
            send(each, HERE[6])
        assert len({number for number, _ in arrived(underlay, 6)}) > 3


def test_a_sender_that_fills_its_queue_takes_nothing_from_another() -> None:
    with closing(open_underlay(HERE[4], PORT, buffer_bytes=1 << 16)) as underlay:
        send("172.31.0.1", HERE[4], bytes(1000), times=2000)
        send("172.31.0.2", HERE[4], bytes(1000))
        came = []
        while "172.31.0.2" not in came:  # fails by the time limit of the test if it has been lost
            came += [sender for _, sender in arrived(underlay, 1)]
        assert 0 < came.count("172.31.0.1") < 2000, "the queue was full"
        assert came.count("172.31.0.2") == 1


def test_a_sender_that_fills_the_only_queue_takes_it_from_all() -> None:
    """What the lanes are for: shows that the test above can fail."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as only:
        only.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        only.bind((str(HERE[4]), PORT))
        send("172.31.0.1", HERE[4], bytes(1000), times=2000)
        send("172.31.0.2", HERE[4], bytes(1000))
        senders = set()
        while select.select([only], [], [], 0.2)[0]:
            senders.add(only.recvfrom(2000)[1][0])
        assert senders == {"172.31.0.1"}


@pytest.mark.parametrize("queues", [1, 2, 5, 31, 64])
def test_queues_share_the_sockets_evenly(queues: int) -> None:
    with closing(open_underlay(HERE[4], PORT, queues)) as underlay:
        lanes = underlay.lanes(queues)
        assert [len(each) for each in lanes] == [sockets_of(queues) // queues] * queues
        assert sorted(fd for each in lanes for fd in each) == sorted(underlay.fds)
        assert max(31 - queues, queues) <= len(underlay.fds) <= 64


def test_one_socket_of_an_earlier_build_is_kept_with_what_waits_in_it_and_gets_lanes() -> None:
    """As it is handed over by a process of such a build: alone on its port, and not to be shared."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as earlier:
        earlier.bind((str(HERE[4]), PORT))
        send("172.31.0.1", HERE[4], b"waits")
        underlay = adopt_underlay([earlier.fileno()], HERE[4], PORT)
    assert underlay is not None
    with closing(underlay):
        assert len(underlay.sockets) == SOCKETS
        assert arrived(underlay, 1) == [(0, "172.31.0.1")]
        for number in range(1, 32):
            send(f"172.31.0.{number}", HERE[4])
        assert {number for number, _ in arrived(underlay, 31)} == {0}, "somebody may still read that one, and no other"
        underlay.spread()
        for number in range(1, 32):
            send(f"172.31.0.{number}", HERE[4])
        assert len({number for number, _ in arrived(underlay, 31)}) == SOCKETS


def test_sockets_of_more_queues_are_not_adopted() -> None:
    with closing(open_underlay(HERE[4], PORT, 40)) as underlay:
        assert adopt_underlay(underlay.fds, HERE[4], PORT, 1) is None


@pytest.mark.parametrize(("memory_bytes", "most_bytes"), [(64 << 30, 128 << 20), (1 << 30, 32 << 20)])
def test_all_lanes_together_hold_a_small_part_of_the_memory(
    memory_bytes: int, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PHYS_PAGES": memory_bytes >> 12, "SC_PAGE_SIZE": 1 << 12}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    with closing(open_underlay(HERE[4], PORT)) as underlay:
        sizes = [each.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2 for each in underlay.sockets]
    assert (len(sizes), underlay.degraded) == (SOCKETS, ())
    assert sum(sizes) <= most_bytes
