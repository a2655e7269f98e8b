"""A node goes from flanneld to flanpy and back, with packets on their way: same subnet, same subnet.env, nothing of the other is left.

    etcd 172.31.9.254
──── underlay ──┬──────────────────────────────────┬────
            host1 172.31.9.1                   host2 172.31.9.2
flanneld's node (tests/support/flannel_node)     our agent
             host1-pod1  ◀── 1,000 probes/s each way ──▶  host2-pod1
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flanpy.lab import topology
from flanpy.lab.cluster import Lab
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox
from tests.support import kernel_state
from tests.support.clusters import Cluster, eventually
from tests.support.flannel_node import FlannelNode
from tests.support.pace import SLOWNESS
from tests.support.probes import Count, probes

SUBNET = IPv4Network("10.244.42.0/24")
OUTAGE_S = 1.0
KERNEL_BACKENDS = [("vxlan", "userspace"), ("host-gw", "userspace")]
UDP_BACKENDS = [("udp", "userspace"), ("udp", "ebpf")]


@contextmanager
def flannel_s(logs: Path, backend: str, datapath: str) -> Iterator[tuple[Cluster, FlannelNode]]:
    """The cluster of the drawing, host1 being flanneld's from the beginning."""
    network = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": backend}})
    with Sandbox.create() as sandbox:
        spec = LabSpec("test", 2, 1, network, datapath=datapath, agent_flags=("--ip-masq", "--ip-blackhole-route"))
        lab = Lab(spec, sandbox, logs, SLOWNESS)
        sandbox.script(topology.underlay_script(lab.plan))
        lab.start_etcd()
        lab.put_network_config(network)
        cluster = Cluster(lab)
        node = FlannelNode(cluster, backend, SUBNET)
        node.write_lease()  # or the agent might take this very subnet, one time in 256
        lab.start_agents(["host2"])
        node.start(IPv4Network(cluster.subnet("host2")))
        lab.attach_pods()
        node.blackhole()
        try:
            yield cluster, node
        finally:
            node.stop()


def cleanup(cluster: Cluster) -> None:
    """What an operator runs once the agent of host1 has ended, to give the node back."""
    cluster.flanpy("host1", "cleanup", "--for-flanneld")


def kept(cluster: Cluster) -> tuple[list[str], str]:
    """What no switch may change: the keys of the leases, and subnet.env."""
    return sorted(cluster.keys()), cluster.lab.host_path("host1", "subnet.env").read_text()


def rules(cluster: Cluster) -> str:
    return cluster.sandbox.run("host1", ["nft", "-s", "list", "ruleset"]).stdout


def is_ours(cluster: Cluster) -> bool:
    """Routes, rules and lease are ours, and no more than that."""
    found = rules(cluster)
    blackholes = [line for line in cluster.routes("host1") if line.startswith("blackhole")]
    record = cluster.get(f"subnets/{str(SUBNET).replace('/', '-')}")
    assert record is not None
    return (
        "table inet flanpy" in found
        and "flannel" not in found.lower().replace("flannel0", "")
        and blackholes == [f"blackhole {SUBNET} proto 102 metric 4096"]
        and '"flanpy":{"node":' in record["value"]
        and not [line for line in cluster.routes("host1") if line.startswith("10.244.") and "proto" not in line]
    )


def is_flannel_s(cluster: Cluster, node: FlannelNode) -> bool:
    """Rules and lease are flanneld's, and nothing is ours but what it has taken over."""
    found = rules(cluster)
    blackholes = [line for line in cluster.routes("host1") if line.startswith("blackhole")]
    record = cluster.get(f"subnets/{str(SUBNET).replace('/', '-')}")
    assert record is not None
    return "flanpy" not in found.lower() and blackholes == [f"blackhole {SUBNET}"] and record["value"] == node.value()


@pytest.mark.parametrize(("backend", "datapath"), KERNEL_BACKENDS)
def test_a_node_is_switched_and_switched_back_without_losing_a_packet(tmp_path: Path, backend: str, datapath: str) -> None:
    with flannel_s(tmp_path, backend, datapath) as (cluster, node):
        eventually(lambda: cluster.ping("host1-pod1", "host2-pod1") == 3, 10, "flanneld's way works")
        before, index = kept(cluster), _index(cluster, backend)
        with probes(cluster) as stream:
            cluster.lab.start_agents(["host1"])
            eventually(lambda: is_ours(cluster), 10, "all is ours")
            stream.wait(300)
            cluster.lab.stop_agent("host1")
            stream.wait(100)
            node.start(IPv4Network(cluster.subnet("host2")))
            node.blackhole()
            cleanup(cluster)
            eventually(lambda: is_flannel_s(cluster, node), 10, "all is flanneld's")
            stream.wait(300)
        assert stream.losses == ()
        assert (kept(cluster), _index(cluster, backend)) == (before, index)


def _index(cluster: Cluster, backend: str) -> int:
    return kernel_state.index(cluster, "host1", "flannel.1" if backend == "vxlan" else "eth0")


@pytest.mark.parametrize(("backend", "datapath"), UDP_BACKENDS)
def test_a_udp_node_is_switched_and_switched_back_within_a_second(tmp_path: Path, backend: str, datapath: str) -> None:
    """The agent is started while flanneld runs still: it waits for port and device, and takes both when flanneld ends.

    A machine that is busy with something else gets three more tries.
    """
    with flannel_s(tmp_path, backend, datapath) as (cluster, node):
        eventually(lambda: cluster.ping("host1-pod1", "host2-pod1") == 3, 10, "flanneld's way works")
        before = kept(cluster)
        seen = [_outages(cluster, node)]
        while len(seen) < 4 and max(_best(seen)) >= OUTAGE_S:
            seen.append(_outages(cluster, node))
        assert max(_best(seen)) < OUTAGE_S, seen
        assert kept(cluster) == before


def _best(seen: list[tuple[float, float]]) -> tuple[float, float]:
    return min(there for there, _ in seen), min(back for _, back in seen)


def _outages(cluster: Cluster, node: FlannelNode) -> tuple[float, float]:
    """One switch to flanpy and one back: how long no packet came through, seconds."""
    begin = len(cluster.log("host1")) if cluster.lab.log_path("host1").exists() else 0
    cluster.lab._start_agent("host1")
    eventually(lambda: "resource_held" in cluster.log("host1")[begin:], 20, "the agent waits")
    with probes(cluster) as there:
        node.stop()
        there.flow()
    eventually(lambda: is_ours(cluster), 10, "all is ours")
    with probes(cluster) as back:
        cluster.lab.stop_agent("host1")
        if stays := "flannel0" in cluster.sandbox.run("host1", ["ip", "link"]).stdout:
            cleanup(cluster)
        node.start(IPv4Network(cluster.subnet("host2")))
        node.blackhole()
        if not stays:
            cleanup(cluster)
        back.flow()
    eventually(lambda: is_flannel_s(cluster, node), 10, "all is flanneld's")
    return _gap(there.total), _gap(back.total)


def _gap(count: Count) -> float:
    assert count.lost, "the device was away"
    return count.longest_gap_s
