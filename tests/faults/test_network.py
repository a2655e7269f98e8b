"""The network between the hosts, and who sends on it: strangers, narrow paths, loss, delay, reordering. Both datapaths.

host1-pod1 ── host1 ──── underlay (bridge) ──── [ a middle box, in one test ] ──── host2 ── host2-pod1
                             │
                          a stranger, who is no peer
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flanpy.lab.sandbox import Sandbox
from tests.support import middlebox
from tests.support.clusters import Cluster, eventually
from tests.support.probes import probes
from tests.support.transfers import transfer

pytestmark = pytest.mark.usefixtures("healed")

SEND = (
    "import sys, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    "[s.sendto(bytes.fromhex(sys.argv[1]), ('172.31.9.1', 8285)) for _ in range(100)]"
)


def inner(source: str, target: str) -> str:
    """A UDP packet from the one address to the other, as hexadecimal digits."""
    from scapy.all import IP, UDP, Raw, raw

    return bytes(raw(IP(src=source, dst=target) / UDP(sport=1, dport=9) / Raw(b"x"))).hex()


def test_packets_of_strangers_are_dropped_each_under_its_reason(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 21: an outer sender that is no peer, an inner source that is not the peer's, an inner destination that is not ours.

    Every packet is held against the table: the outer sender must be the peer that has the inner source, and the inner destination
    must be in our own subnet.
    Passes when: dropped, counted by reason.
    """
    ours, theirs = two.pod("host1-pod1"), two.pod("host2-pod1")
    hostile = {
        "drop_unknown_peer": (None, inner(theirs, ours)),
        "drop_spoofed": ("host2", inner("198.51.100.7", ours)),
        "drop_not_local": ("host2", inner(theirs, "198.51.100.7")),
    }
    before = two.verdicts("host1")
    with probes(two) as stream:
        for sender, packet in hostile.values():
            two.sandbox.run(sender, ["python3", "-c", SEND, packet])
        stream.wait(200)

    def grown() -> dict[str, int] | None:
        now = two.verdicts("host1")
        found = {name: now.get(name, 0) - before.get(name, 0) for name in hostile}
        return found if all(count == 100 for count in found.values()) else None

    eventually(grown, 5, "100 of each kind are counted under their reason")
    assert stream.losses == ()
    measured(f"100 of each dropped and counted ({', '.join(hostile)}); {stream.total.words}")


# ------------------------------------------------------------------------------------------------ too big


@contextmanager
def pods_of_1500(two: Cluster) -> Iterator[None]:
    """The pods believe that they may send 1500 bytes, which is 28 more than the tunnel takes."""
    set_mtu = "ip -n {0}-pod1 link set eth0 mtu {1}; ip -n {0} link set veth-pod1 mtu {1}; ip -n {0} link set cni0 mtu {1}"
    two.sandbox.script("; ".join(set_mtu.format(host, 1500) for host in ("host1", "host2")))
    try:
        yield
    finally:
        two.sandbox.script("; ".join(set_mtu.format(host, 1472) for host in ("host1", "host2")))
        for host in ("host1", "host2"):
            two.sandbox.run(f"{host}-pod1", ["ip", "route", "flush", "cache"])


def refused_with(two: Cluster, bytes_: int) -> str:
    """What ping says of a packet of this size with DF from host1-pod1 to host2-pod1."""
    argv = ["ping", "-c1", "-W1", "-Mdo", f"-s{bytes_ - 28}", two.pod("host2-pod1")]
    return two.sandbox.run("host1-pod1", argv, check=False).stdout


def test_a_packet_that_is_too_big_is_answered_with_the_mtu_and_tcp_goes_on(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 24: a pod sends packets with DF that are larger than the tunnel takes.

    The host answers with ICMP fragmentation needed and the tunnel's MTU; TCP sends smaller segments from then on.
    Passes when: ICMP fragmentation-needed with the right MTU; TCP completes.
    """
    with pods_of_1500(two):
        assert "mtu = 1472" in refused_with(two, 1500)
        assert "1 received" in refused_with(two, 1472)
        started = time.monotonic()
        sent, arrived = transfer(two, "host1-pod1", "host2-pod1")
        assert sent == arrived
        measured(f"mtu = 1472 is answered; 16 MB of TCP whole in {time.monotonic() - started:.1f} s")


# ------------------------------------------------------------------------------------------------ a bad network

LOSS, DUPLICATES, DELAY_S, JITTER_S = 0.10, 0.02, 0.05, 0.005
TAKE = """
ip link set host2 nomaster
ip link add mid0 type veth peer name mid1
ip link set mid0 master underlay up
ip link set mid1 up
ethtool -K mid0 tx off tso off gso off gro off >/dev/null
ethtool -K mid1 tx off tso off gso off gro off >/dev/null
ip netns exec host2 ethtool -K eth0 tx off tso off gso off >/dev/null
nft 'add table netdev middle'
nft 'add chain netdev middle a { type filter hook ingress device "host2" priority 0; policy drop; }'
nft 'add chain netdev middle b { type filter hook ingress device "mid1" priority 0; policy drop; }'
"""
GIVE_BACK = """
nft delete table netdev middle
ip link del mid0
ip link set host2 master underlay
ip netns exec host2 ethtool -K eth0 tx on tso on gso on >/dev/null
"""


@contextmanager
def bad_network(sandbox: Sandbox, seed: int) -> Iterator[Callable[[], dict[str, int]]]:
    """Everything between host2 and the others goes through the middle box; yields its counts."""
    sandbox.script(TAKE)
    values = (seed, LOSS, DUPLICATES, DELAY_S, JITTER_S)
    argv = [sys.executable, "-I", "-S", str(Path(middlebox.__file__)), "host2", "mid1", *map(str, values)]
    try:
        with sandbox.popen(None, argv, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n", process.stderr.read() if process.stderr else ""

                def counts() -> dict[str, int]:
                    process.stdin.write("\n")  # type: ignore[union-attr]
                    process.stdin.flush()  # type: ignore[union-attr]
                    return dict(json.loads(process.stdout.readline()))  # type: ignore[union-attr]

                yield counts
            finally:
                process.stdin.close()
    finally:
        sandbox.script(GIVE_BACK)


def test_a_bad_network_loses_what_it_loses_and_nothing_more(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 25: the path between the hosts loses 10 % of the frames, doubles 2 %, delays them by 50 ms and reorders them.

    The datapath keeps no state of a path, so it adds nothing; etcd's connection goes on by TCP's own means.
    Passes when: no loss added; lease kept.
    """
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    before = two.status("host2")["lease"]
    with bad_network(two.sandbox, seed) as counts:
        # an ARP request that is lost is sent again after a second, and the kernel holds no more than some hundred packets for its answer
        eventually(lambda: two.ping("host1-pod1", "host2-pod1"), 20, "the hosts know each other's link addresses")
        with probes(two, rate_per_s=500) as stream:
            stream.wait(1500, within_s=30)
        seen = counts()
        key = two.key("host2")
        two.delete(key)
        started = time.monotonic()
        eventually(lambda: two.get(key), 10, "over this path the lease is registered again")
        again_s = time.monotonic() - started
    total = stream.total
    assert seen["probes"] == total.sent
    assert total.lost == seen["probes_dropped"], "what the network has lost, and nothing more"
    assert total.duplicates <= seen["probes_doubled"]
    assert total.reordered > 0
    after = two.status("host2")["lease"]
    assert (after["subnets"], after["public_ip"]) == (before["subnets"], before["public_ip"])
    measured(
        f"{total.lost} probes of {total.sent:,} lost, {seen['probes_dropped']} of them by the network; "
        f"{total.reordered} reordered, {total.duplicates} doubled; a lease that was deleted is there again after {again_s:.1f} s"
    )
