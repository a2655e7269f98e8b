"""Networks of IPv6 alone for the backends that the kernel carries, and what nodes of udp say to those that cannot read IPv6.

``tests.support.six`` draws the topology.
"""

import json
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from flanpy.model import Route
from tests.support import kernel_state
from tests.support.clusters import eventually
from tests.support.six import HOSTS, Six, six
from tests.support.transfers import transfer


def lease(cluster: Six, host: str) -> dict[str, object]:
    """The value of a host's lease, by the key that flannel would give it."""
    record = cluster.get(f"subnets/0.0.0.0-0&{str(cluster.subnet6(host)).replace('/', '-')}")
    assert record is not None
    value: dict[str, object] = json.loads(record["value"])
    return value


@pytest.mark.parametrize(("backend", "mtu"), [("vxlan", 1430), ("host-gw", 1500)])
def test_a_network_of_ipv6_alone_on_an_underlay_of_ipv6_alone(backend: str, mtu: int, tmp_path: Path) -> None:
    with six(tmp_path, backend, "6", "6") as two:
        own, other = two.subnet6("host1"), two.subnet6("host2")
        text = two.lab.host_path("host1", "subnet.env").read_text()
        assert text == (
            f"FLANNEL_IPV6_NETWORK=fd05::/48\nFLANNEL_IPV6_SUBNET={own[1]}/64\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
        )
        said = lease(two, "host1")
        assert (said["PublicIP"], said["PublicIPv6"], said["BackendType"]) == ("0.0.0.0", "fd31:9::1", backend)
        gateway = other.network_address if backend == "vxlan" else IPv6Address("fd31:9::2")
        device = "flannel-v6.1" if backend == "vxlan" else "eth0"
        route = Route(other, device, gateway=gateway, onlink=backend == "vxlan")
        eventually(lambda: kernel_state.routes(two, "host1") == {route}, 10, "the route to the peer")
        (target,) = two.pods("host2-pod1")
        eventually(lambda: two.answers("host1-pod1", target, "-M", "do", "-s", str(mtu - 48)), 10, "a packet of the whole MTU")
        sent, arrived = transfer(two, "host1-pod1", "host2-pod1", target)
        assert sent == arrived
        two.lab.stop_agent("host1")
        two.lab.start_agents(["host1"])
        assert two.subnet6("host1") == own, "adopted after a restart"
        assert lease(two, "host1") == said


def test_a_node_that_does_not_read_ipv6_gets_ipv4_alone_and_is_named(tmp_path: Path) -> None:
    """host2's lease loses what flanpy says in it, as a flanneld's never has; its agent is stopped so that it stays so."""
    with six(tmp_path, "udp", "46", "4") as two:
        pods, keys = two.pods("host2-pod1"), two.keys()
        key = next(key for key in keys if str(two.subnet6("host2").network_address) in key)
        for address in pods:
            eventually(lambda address=address: two.answers("host1-pod1", address), 10, f"{address} answers")
        two.lab.stop_agent("host2")
        granted = two.etcd("lease/grant", {"TTL": 600})["ID"]
        two.put(key, '{"PublicIP":"172.31.9.2","PublicIPv6":null}', lease=granted)
        eventually(lambda: named(two), 10, "the peer is named")
        reason = named(two)
        assert reason.endswith("and is sent none; its IPv4 subnet is reached")
        table = {entry["prefix"] for entry in two.ask("host1", "routes")["table"]}
        assert table == {str(two.subnets("host2")[0])}
        before = two.verdicts("host1").get("encapsulated", 0)
        unanswered = two.sandbox.run("host1-pod1", ["ping", "-6", "-n", "-c1", "-W1", pods[1]], check=False)
        assert "Destination unreachable: No route" in unanswered.stdout
        assert two.verdicts("host1").get("encapsulated", 0) == before, "not one IPv6 packet has left"
        assert len(two.ask("host1", "peers")["peers"]) == 1


def named(two: Six) -> str:
    """Why something of host2's lease is refused, as ``flanpy peers`` has it."""
    refused = two.ask("host1", "peers")["refused"]
    return str(refused[0]["reason"]) if refused else ""


def test_a_pod_learns_of_a_narrower_path_and_its_packets_arrive(tmp_path: Path) -> None:
    """IPv6 inside, IPv4 outside: a packet that the tunnel does not carry is answered with packet too big by the node."""
    with six(tmp_path, "udp", "46", "4") as two:
        (_, target) = two.pods("host2-pod1")
        eventually(lambda: two.answers("host1-pod1", target), 10, "it answers")
        for pod in ("host1-pod1", "host2-pod1"):
            two.sandbox.run(pod, ["ip", "link", "set", "eth0", "mtu", "1500"])
        for host in HOSTS:
            two.sandbox.run(host, ["ip", "link", "set", "cni6", "mtu", "1500"])
            two.sandbox.run(host, ["ip", "link", "set", f"{host}-pod1", "mtu", "1500"])
        told = two.sandbox.run("host1-pod1", ["ping", "-6", "-n", "-c1", "-W1", "-M", "do", "-s", "1452", target], check=False)
        assert "mtu" in told.stdout.lower()
        sent, arrived = transfer(two, "host1-pod1", "host2-pod1", target)
        assert sent == arrived


@pytest.mark.parametrize("outer", ["4", "6"])
def test_a_path_that_narrows_costs_no_packet_of_1280_bytes(outer: str, tmp_path: Path) -> None:
    """The kernel learns of a path MTU of 1300 outside: 1280 bytes of IPv6 need more than that, and are fragmented outside."""
    with six(tmp_path, "udp", "46", "46" if outer == "4" else "6") as two:
        (_, target) = two.pods("host2-pod1")
        eventually(lambda: two.answers("host1-pod1", target), 10, "it answers")
        peer = "172.31.9.2/32" if outer == "4" else "fd31:9::2/128"
        two.sandbox.run("host1", ["ip", f"-{outer}", "route", "add", peer, "dev", "eth0", "mtu", "1300"])
        told = two.sandbox.run("host1-pod1", ["ping", "-6", "-n", "-c1", "-W1", "-M", "do", "-s", "1352", target], check=False)
        eventually(lambda: two.answers("host1-pod1", target, "-s", "1232"), 10, "1280 bytes arrive")
        sent, arrived = transfer(two, "host1-pod1", "host2-pod1", target)
        assert sent == arrived
        assert told.returncode in (0, 1)


def test_a_node_named_by_its_ipv6_address_leaves_ipv4_aside(tmp_path: Path) -> None:
    with six(tmp_path, "udp", "6", "46", by_address6=True) as two:
        (target,) = two.pods("host2-pod1")
        eventually(lambda: two.answers("host1-pod1", target), 10, "it answers")
        assert {lease(two, host)["PublicIP"] for host in HOSTS} == {"0.0.0.0"}
        assert two.status("host1")["uplink"]["address"] == "fd31:9::1"
        assert two.env("host1").mtu_bytes == 1452
