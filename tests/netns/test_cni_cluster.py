"""Pods of two nodes, attached by our plugin through Debian's bridge and host-local, over real agents.

    etcd 172.31.9.254
──── underlay ──┬──────────────────────┬────
            host1 (agent)          host2 (agent)
             flannel0               flannel0
             cni0 (by the plugin)   cni0
             ├ a1                   └ b1
             └ a2
"""

import http.client
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest

from tests.support import runc
from tests.support.clusters import Cluster, eventually
from tests.support.cni import Answer, Runtime, cni_cluster
from tests.support.runc import Container

SHOW_SENDER = """
import socket
with socket.create_server(("", 5001)) as server:
    print("listening", flush=True)
    server.settimeout(10)
    print(server.accept()[1][0])
"""
SEND = "import socket, sys; socket.create_connection((sys.argv[1], 5001), timeout=10).close()"
WRITE = 'n=0; while n=$((n + 1)); do echo "written $n" >/data/.new; mv /data/.new /data/page; busybox sleep 1; done'


@dataclass(frozen=True, slots=True)
class Pods:
    """The cluster with its three pods; ``answers`` are the results of their ADDs."""

    cluster: Cluster
    host1: Runtime
    host2: Runtime
    answers: dict[str, Answer]

    def ping(self, source: str, target: str) -> int:
        """How many of three pings were answered."""
        argv = ["ping", "-n", "-q", "-c3", "-i0.05", "-W1", self.answers[target].address]
        done = self.cluster.sandbox.run(source, argv, check=False)
        return int(done.stdout.split(" received")[0].rsplit(" ", 1)[-1])


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    with cni_cluster(tmp_path_factory.mktemp("cni")) as (cluster, (host1, host2)):
        answers = {"a1": host1.add("a1"), "a2": host1.add("a2"), "b1": host2.add("b1")}
        yield Pods(cluster, host1, host2, answers)


def test_every_pod_gets_an_address_of_its_node_s_subnet(pods: Pods) -> None:
    for pod, host in (("a1", "host1"), ("a2", "host1"), ("b1", "host2")):
        result = pods.answers[pod].json
        assert result["cniVersion"] == "1.0.0"
        assert ip_address(pods.answers[pod].address) in ip_network(pods.cluster.subnet(host))
        assert {"dst": "10.244.0.0/16"} in result["routes"]


def test_the_pod_has_the_overlay_s_mtu_and_its_routes(pods: Pods) -> None:
    device = json.loads(pods.cluster.sandbox.run("a1", ["ip", "-j", "link", "show", "eth0"]).stdout)[0]
    routes = [line.strip() for line in pods.cluster.sandbox.run("a1", ["ip", "route"]).stdout.splitlines()]
    gateway = pods.cluster.subnet("host1").replace(".0/24", ".1")
    assert device["mtu"] == 1472
    assert {f"default via {gateway} dev eth0", f"10.244.0.0/16 via {gateway} dev eth0"} <= set(routes)


def test_pods_of_two_nodes_reach_each_other_over_the_overlay(pods: Pods) -> None:
    before = pods.cluster.verdicts("host1")
    assert (pods.ping("a1", "b1"), pods.ping("b1", "a1")) == (3, 3)
    after = pods.cluster.verdicts("host1")
    assert after["encapsulated"] - before.get("encapsulated", 0) >= 6
    assert after["decapsulated"] - before.get("decapsulated", 0) >= 6


def test_pods_of_one_node_meet_on_the_bridge_alone(pods: Pods) -> None:
    before = pods.cluster.verdicts("host1")
    assert pods.ping("a1", "a2") == 3
    assert pods.cluster.verdicts("host1") == before


def test_the_pod_keeps_its_own_address_towards_the_other_node(pods: Pods) -> None:
    server = pods.cluster.sandbox.popen("b1", [sys.executable, "-ISc", SHOW_SENDER])
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    pods.cluster.sandbox.run("a1", [sys.executable, "-ISc", SEND, pods.answers["b1"].address])
    assert server.communicate(timeout=10)[0] == pods.answers["a1"].address + "\n"


def test_a_pod_comes_and_goes_while_the_agent_and_etcd_are_away(pods: Pods) -> None:
    lab = pods.cluster.lab
    lab.stop_agent("host2")
    lab.stop_etcd()
    try:
        before = pods.host2.addresses()
        assert pods.host2.add("b2").status == 0
        assert pods.host2.call("CHECK", "b2").status == 0
        assert pods.host2.call("DEL", "b2").status == 0
        assert pods.host2.addresses() == before
    finally:
        lab.start_etcd()
        lab.start_agents(["host2"])


def test_check_tells_a_pod_of_a_subnet_that_the_node_has_lost(pods: Pods) -> None:
    text, own = pods.host1.path("subnet.env").read_text(), pods.cluster.subnet("host1").replace(".0/24", ".1/24")
    pods.host1.path("other.env").write_text(text.replace(f"FLANNEL_SUBNET={own}", "FLANNEL_SUBNET=10.99.0.1/24"))
    other = pods.host1.config(subnetFile="/run/lab/host1/other.env")  # not the agent's own file, which it would mend at once
    assert (
        pods.host1.call("CHECK", "a1", config=other)
        .refused(101)
        .endswith(
            "outside of this node's subnet 10.99.0.0/24; the node has another subnet than when the pod was attached: delete the pod"
        )
    )
    assert pods.host1.call("CHECK", "a1").status == 0


@pytest.fixture
def two_containers(pods: Pods) -> Iterator[tuple[Container, Container]]:
    sandbox = pods.cluster.sandbox
    runc.prepare(sandbox)
    server = runc.start(sandbox, "server", "exec httpd -f -p 8080 -h /data", pod="b1", volume="/run/lab/volume")
    try:
        writer = runc.start(sandbox, "writer", WRITE, pod="b1", volume="/run/lab/volume", beside=server)
        yield server, writer
        writer.delete()
    finally:
        server.delete()


def test_two_containers_of_a_pod_share_network_ipc_and_a_volume(pods: Pods, two_containers: tuple[Container, Container]) -> None:
    server, writer = two_containers
    for kind, shared in (("net", True), ("ipc", True), ("pid", False), ("mnt", False)):
        assert (server.namespace(kind) == writer.namespace(kind)) is shared, kind
    server.exec("touch", "/dev/mqueue/hello")
    assert writer.exec("ls", "/dev/mqueue") == "hello\n"
    eventually(lambda: server.exec("ls", "/data") == "page\n", 10, "the writer's page is on the volume")
    assert writer.exec("wget", "-qO-", "http://127.0.0.1:8080/page").startswith("written ")

    with pods.cluster.sandbox.enter("a1"):
        connection = http.client.HTTPConnection(pods.answers["b1"].address, 8080, timeout=5)
        connection.request("GET", "/page")
        assert connection.getresponse().read().startswith(b"written ")
        connection.close()
