"""Probes between agents on real clusters: a path that works, one that is filtered, a node without a cable, a node without an agent.

etcd 172.31.9.254
──── underlay ──┬──────────────┬──────────────┬────
              host1          host2          host3
"""

import json
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from flanpy.agent.peer_prober import PeerProber
from flanpy.core.peer_probes import PROBE_BYTES, PeerProbes, Target
from tests.support.clusters import Cluster, cluster, eventually
from tests.support.namespaces import inside, namespace

FAST = ("--peer-probe-interval=1",)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("logs"), hosts=3, agent_flags=FAST) as running:
        yield running


def flanpy(where: Cluster, *words: str) -> str:
    return where.flanpy("host1", *words, check=False).stdout


def answer(where: Cluster, command: str) -> Any:
    return json.loads(flanpy(where, command, "--output", "json"))


def paths(where: Cluster) -> dict[str, str]:
    """State of each path from host1, by the peer's public address."""
    peers = answer(where, "peers")["peers"]
    return {peer["public_ip"]: peer["path"]["state"] if peer["path"] else "not asked" for peer in peers}


def becomes(where: Cluster, expected: dict[str, str]) -> None:
    eventually(lambda: paths(where) == expected, 40, f"the paths are {expected}")


SOUND = {"172.31.9.2": "ok", "172.31.9.3": "ok"}


def sound(where: Cluster) -> None:
    """Every path carries packets; what was lost before may still be in the loss."""
    eventually(lambda: set(paths(where).values()) <= {"ok", "lossy"}, 40, "all paths work")


def test_every_path_is_asked_and_answered(three: Cluster) -> None:
    becomes(three, SOUND)
    status = answer(three, "status")
    assert (status["paths"]["probed"], status["paths"]["states"], status["warnings"]) == (2, {"ok": 2}, [])
    path = answer(three, "peers")["peers"][0]["path"]
    assert 0 < path["rtt_ms"] < 1000
    assert 0 <= path["last_seen_s_ago"] < 10
    assert "paths     2 ok, round trip at most " in flanpy(three, "status")


def test_a_filter_on_the_way_is_a_dead_path_and_not_a_dead_node(three: Cluster) -> None:
    three.sandbox.run("host2", ["nft", "add table inet guard"])
    three.sandbox.run("host2", ["nft", "add chain inet guard port { type filter hook input priority 0; }"])
    three.sandbox.run("host2", ["nft", "add rule inet guard port udp dport 8285 drop"])
    try:
        becomes(three, {"172.31.9.2": "path down", "172.31.9.3": "ok"})
        status = answer(three, "status")
        expected = f"peer {three.subnet('host2')} (172.31.9.2): no probe comes through the overlay, though the node may be up"
        assert (status["state"], status["warnings"]) == ("ready", [expected])
    finally:
        three.sandbox.run("host2", ["nft", "delete table inet guard"])
    sound(three)


def test_a_node_without_its_cable_is_a_dead_node_whose_routes_stay(three: Cluster) -> None:
    three.lab.cut("host3")
    try:
        eventually(lambda: paths(three)["172.31.9.3"] == "node down", 40, "host3 is down")
        assert len(answer(three, "routes")["table"]) == 2
    finally:
        three.lab.join("host3")
    sound(three)


def test_a_node_whose_agent_is_away_says_so_itself(tmp_path: Path) -> None:
    """With vxlan the kernel goes on carrying packets, and refuses the port that nobody has."""
    network = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
    with cluster(tmp_path, hosts=2, network=network, agent_flags=FAST) as two:
        becomes(two, {"172.31.9.2": "ok"})
        two.lab.stop_agent("host2")
        becomes(two, {"172.31.9.2": "no agent"})


def test_a_node_without_probes_neither_announces_nor_asks(tmp_path: Path) -> None:
    with cluster(tmp_path, hosts=2, agent_flags=("--peer-probe-interval=0",)) as two:
        peer = answer(two, "peers")["peers"][0]
        assert (peer["path"], answer(two, "status")["paths"]) == (None, None)
        assert not [name for name in peer["features"] if name.startswith("probe")]


# ------------------------------------------------------------------------------------------------ the thread alone


def test_the_socket_answers_a_peer_and_nobody_else() -> None:
    """We on 10.9.1.0, the peer on 10.9.2.0, a stranger on 10.9.3.0: all on one loopback device."""
    own, peer, stranger = (ip_address(f"10.9.{number}.0") for number in (1, 2, 3))
    assert own in ip_network("10.9.1.0/24")
    with namespace() as place:
        place.ip("".join(f"addr add {address}/32 dev lo\n" for address in (own, peer, stranger)))
        with inside(place):
            prober = PeerProber(3600, 8286)
            prober.start()
            prober.aim(own, {peer: Target(peer, 8286, peer)})
            friend, foe = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        with friend, foe:
            friend.bind((str(peer), 8286))
            foe.bind((str(stranger), 8286))
            friend.settimeout(5)
            asked, _ = friend.recvfrom(100)
            assert len(asked) == PROBE_BYTES
            theirs = PeerProbes(10, lambda: b"12345678")
            theirs.aim({own: Target(own, 8286, own)}, 0.0)
            (packet,) = theirs.due(0.0)
            foe.sendto(packet.payload, (str(own), 8286))
            for junk in (b"", b"x" * 2000, packet.payload[:-1]):
                friend.sendto(junk, (str(own), 8286))
            friend.sendto(packet.payload, (str(own), 8286))
            reply, source = friend.recvfrom(100)
            assert (reply, source) == (packet.payload[:5] + b"\x02" + packet.payload[6:], (str(own), 8286))
            foe.setblocking(False)
            with pytest.raises(BlockingIOError):
                foe.recv(100)
            friend.sendto(asked[:5] + b"\x02" + asked[6:], (str(own), 8286))
            eventually(lambda: prober.health()[peer].word == "ok", 5, "the answer is taken")
        prober.close()
