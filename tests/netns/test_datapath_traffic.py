"""What the userspace datapath carries between two pods, unharmed: the topology is drawn in tests/support/netns.py."""

import hashlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flanpy.datapath.userspace import Tuning
from flanpy.model import Address
from tests.support.namespaces import inside
from tests.support.netns import MTU, Overlay, Side, counters, overlay, udp_socket
from tests.support.polling import soon

CONTENT_BYTES = 64 << 20
UNDERLAYS = {
    "superpacket": {"wire": False},
    "wire": {"wire": True},
    "wire-without-gro": {"wire": True, "gro": False},
    "two-queues": {"queues": 2},
}


def digest_of_all(server: socket.socket) -> str:
    connection, _ = server.accept()
    digest = hashlib.sha256()
    with connection:
        connection.settimeout(20)
        while received := connection.recv(1 << 20):
            digest.update(received)
    return digest.hexdigest()


def send_and_digest(sender: Side, receiver: Side, content: bytes, address: Address | None = None) -> str:
    """The digest of what arrives when one pod sends this content to the other over TCP, at this address of it or its usual one."""
    target = address or receiver.pod_address
    family = socket.AF_INET6 if target.version == 6 else socket.AF_INET
    with inside(receiver.pod):
        server = socket.create_server((str(target), 0), family=family)
    with inside(sender.pod):
        client = socket.socket(family)
    server.settimeout(20)
    client.settimeout(20)
    with ThreadPoolExecutor(1) as pool, server, client:
        digest = pool.submit(digest_of_all, server)
        client.connect(server.getsockname())
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        return digest.result()


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_tcp_content_arrives_unharmed_both_ways(underlay: str) -> None:
    content = os.urandom(CONTENT_BYTES)
    expected = hashlib.sha256(content).hexdigest()
    with overlay(**UNDERLAYS[underlay]) as made:
        assert send_and_digest(made.a, made.b, content) == expected
        assert send_and_digest(made.b, made.a, content) == expected
        stats = made.b.datapath.stats()
        assert set(counters(stats)) == {"encapsulated", "decapsulated"}
        assert stats.verdicts["decapsulated"].bytes > CONTENT_BYTES
        assert stats.counters["gso_off"] == stats.counters["udp_truncated"] == 0


def test_one_thread_for_both_directions_carries_the_same() -> None:
    content = os.urandom(CONTENT_BYTES)
    with overlay(tuning=Tuning(threads_per_queue=1)) as made:
        assert send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
        assert soon(lambda: set(counters(made.b.datapath.stats())) == {"encapsulated", "decapsulated"})


def test_ping_crosses_and_is_counted_once_each_way() -> None:
    with overlay() as made:
        assert " 3 received" in made.a.pod.run("ping", "-c3", "-i0.05", "-W2", str(made.b.pod_address))
        assert soon(lambda: counters(made.a.datapath.stats()) == {"encapsulated": 3, "decapsulated": 3})
        assert soon(lambda: counters(made.b.datapath.stats()) == {"encapsulated": 3, "decapsulated": 3})
        assert made.b.datapath.stats().verdicts["decapsulated"].bytes == 3 * 84


@pytest.mark.parametrize("underlay", ["superpacket", "wire"])
def test_udp_of_every_size_arrives_unharmed(underlay: str) -> None:
    """From one byte to beyond the MTU, where the pod's kernel fragments."""
    sizes = [*range(1, MTU - 28 + 1), MTU - 27, 2000, 8000, 65000]
    with overlay(**UNDERLAYS[underlay]) as made, udp_socket(made.b.pod, made.b.pod_address) as receiver:
        with udp_socket(made.a.pod) as sender:
            for size in sizes:
                sent = os.urandom(size)
                sender.sendto(sent, receiver.getsockname())
                assert receiver.recv(65536) == sent, f"{size} bytes"


def test_udp_superpackets_are_cut_and_merged_without_change() -> None:
    """A pod that sends with UDP_SEGMENT: the receiver sees each datagram as it was, the last one shorter."""
    datagrams = [os.urandom(1200) for _ in range(40)] + [os.urandom(77)]
    with overlay() as made, udp_socket(made.b.pod, made.b.pod_address) as receiver, udp_socket(made.a.pod) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1200)
        sender.sendto(b"".join(datagrams), receiver.getsockname())
        assert [receiver.recv(65536) for _ in datagrams] == datagrams


def ping_exit_text(made: Overlay, size: int) -> str:
    return made.a.host.run("ping", "-c1", "-W1", "-M", "do", "-s", str(size), str(made.b.tunnel_address), check=False)


def test_the_largest_packet_passes_and_one_byte_more_is_answered() -> None:
    """The device is opened wider than the path, so that the datapath and not the kernel has to say what fits."""
    with overlay() as made:
        made.a.host.script("ip link set flannel0 mtu 1500")
        assert " 1 received" in ping_exit_text(made, MTU - 28)
        assert f"mtu = {MTU}" in ping_exit_text(made, MTU - 27).replace("mtu=", "mtu = ")
        assert made.a.packets("drop_too_big") == 1
        assert soon(lambda: made.a.packets("icmp_sent") == 1)  # counted once it is written, and answered by then


def test_a_path_that_shrinks_is_told_to_the_senders_and_loses_nothing() -> None:
    """The uplink's MTU falls below what a full packet needs; UDP_SEGMENT goes on for all others."""
    content = os.urandom(CONTENT_BYTES)
    with overlay(wire=True) as made:
        for side in (made.a, made.b):
            side.host.script("ip link set uplink mtu 1400")
        assert send_and_digest(made.a, made.b, content) == hashlib.sha256(content).hexdigest()
        stats = made.a.datapath.stats()
        assert stats.verdicts["icmp_sent"].packets > 0
        assert stats.counters["gso_off"] == 0
        assert stats.counters["udp_sent_segments"] > 5 * stats.counters["udp_sends"]
        assert set(counters(stats)) <= {"encapsulated", "decapsulated", "icmp_sent", "icmp_limited"}


def test_many_flows_at_once_keep_their_content() -> None:
    content = os.urandom(4 << 20)
    expected = hashlib.sha256(content).hexdigest()
    with overlay(queues=2) as made:
        failures: list[str] = []

        def both(sender: Side, receiver: Side) -> None:
            if send_and_digest(sender, receiver, content) != expected:
                failures.append(f"{sender.number} to {receiver.number}")

        threads = [threading.Thread(target=both, args=pair) for pair in [(made.a, made.b), (made.b, made.a)] * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
