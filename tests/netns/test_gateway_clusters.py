"""The backends without a device of their own: host-gw and alloc, and vxlan with DirectRouting. Topology as in test_vxlan_cluster."""

import json
import signal
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from flanpy.model import Route
from tests.support import kernel_state
from tests.support.clusters import Cluster, cluster, eventually
from tests.support.transfers import transfer


def network(backend: dict[str, object]) -> str:
    return json.dumps({"Network": "10.244.0.0/16", "Backend": backend})


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, network=network({"Type": "host-gw"})) as running:
        yield running


def direct(running: Cluster, *more: Route) -> frozenset[Route]:
    """host1's routes for host2 alone, and some more."""
    return frozenset({Route(IPv4Network(running.subnet("host2")), "eth0", gateway=IPv4Address("172.31.9.2")), *more})


def test_host_gw_routes_by_the_underlay_without_any_device(gateways: Cluster) -> None:
    assert kernel_state.routes(gateways, "host1") == direct(gateways)
    assert "flannel" not in gateways.sandbox.run("host1", ["ip", "link"]).stdout
    record = gateways.get(gateways.key("host1"))
    assert record is not None
    assert record["value"].startswith(
        '{"PublicIP":"172.31.9.1","PublicIPv6":null,"BackendType":"host-gw","BackendData":{"flanpy":'
    )


def test_host_gw_carries_everything_with_the_underlay_s_mtu(gateways: Cluster) -> None:
    sent, received = transfer(gateways, "host1-pod1", "host2-pod1")
    assert sent == received
    assert gateways.lab.lease("host1").mtu_bytes == 1500  # type: ignore[union-attr]
    fits = [
        gateways.sandbox.run(
            "host1-pod1", ["ping", "-c1", "-W1", "-Mdo", f"-s{size}", gateways.pod("host2-pod1")], check=False
        ).returncode
        == 0
        for size in (1472, 1473)
    ]
    assert fits == [True, False]


def test_host_gw_follows_a_peer_that_moves_and_refuses_one_behind_a_router(gateways: Cluster) -> None:
    far = '{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"host-gw"}'
    gateways.put("subnets/10.244.252.0-24", far)
    key, subnet = "subnets/10.244.251.0-24", IPv4Network("10.244.251.0/24")
    for address in ("172.31.9.77", "172.31.9.78"):
        gateways.put(key, far.replace("192.0.2.9", address))
        expected = direct(gateways, Route(subnet, "eth0", gateway=IPv4Address(address)))
        eventually(lambda expected=expected: kernel_state.routes(gateways, "host1") == expected, 5, f"via {address}")  # type: ignore[misc]
    reason = "refused: PublicIP: 192.0.2.9 is not on the link of eth0 (172.31.9.0/24)"
    eventually(lambda: reason in str(gateways.status("host1")["problems"]), 5, "the far peer is refused by name")
    gateways.delete(key)
    gateways.delete("subnets/10.244.252.0-24")
    eventually(lambda: kernel_state.routes(gateways, "host1") == direct(gateways), 5, "nothing is left")


def test_host_gw_mends_its_routes(gateways: Cluster) -> None:
    gateways.sandbox.run("host1", ["ip", "route", "del", gateways.subnet("host2")])
    eventually(lambda: kernel_state.routes(gateways, "host1") == direct(gateways), 5, "the route is back")


def test_host_gw_loses_no_packet_while_the_agent_is_away_and_takes_over_flanneld_s_route(gateways: Cluster) -> None:
    """flanneld's route differs from ours in its protocol alone."""
    ping = gateways.sandbox.popen("host1-pod1", ["ping", "-n", "-q", "-i0.01", "-c600", "-W1", gateways.pod("host2-pod1")])
    gateways.lab.stop_agent("host1", signal.SIGKILL)
    subnet = gateways.subnet("host2")
    swap = f"ip route append {subnet} via 172.31.9.2 dev eth0; ip route del {subnet} via 172.31.9.2 dev eth0 proto 102"
    gateways.sandbox.run("host1", ["sh", "-euc", swap])
    gateways.lab.start_agents(["host1"])
    ping.send_signal(signal.SIGINT)
    summary = ping.communicate(timeout=30)[0]
    assert " 0% packet loss" in summary
    assert kernel_state.routes(gateways, "host1") == direct(gateways)
    assert [line for line in gateways.routes("host1") if line.startswith(subnet)] == [
        f"{subnet} via 172.31.9.2 dev eth0 proto 102"
    ]


def test_a_route_that_somebody_made_otherwise_is_said_and_left_and_keeps_nobody_waiting(gateways: Cluster) -> None:
    subnet = gateways.subnet("host2")
    gateways.lab.stop_agent("host1")
    swap = f"ip route append {subnet} via 172.31.9.99 dev eth0; ip route del {subnet} via 172.31.9.2 dev eth0 proto 102"
    gateways.sandbox.run("host1", ["sh", "-euc", swap])
    gateways.lab.start_agents(["host1"])
    eventually(lambda: "a route that is not ours is there" in str(gateways.status("host1")["problems"]), 10, "it is said")
    assert gateways.status("host1")["ready"]
    assert f"{subnet} via 172.31.9.99 dev eth0" in gateways.routes("host1")
    gateways.sandbox.run("host1", ["ip", "route", "del", subnet])
    eventually(lambda: kernel_state.routes(gateways, "host1") == direct(gateways), 15, "with the obstacle gone all is well")
    eventually(lambda: gateways.status("host1")["problems"] == [], 5, "and nothing is wrong")


def test_alloc_leases_a_subnet_and_leaves_the_rest_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, network=network({"Type": "alloc"})) as running:
        status = running.status("host1")
        assert (status["backend"], status["ready"], status["problems"]) == ("alloc", True, [])
        assert (len(status["peers"]), running.lab.lease("host1").mtu_bytes) == (1, 1500)  # type: ignore[union-attr]
        assert (kernel_state.routes(running, "host1"), running.ping("host1-pod1", "host2-pod1", 1)) == (frozenset(), 0)
        record = running.get(running.key("host1"))
        assert record is not None
        assert record["value"].startswith('{"PublicIP":"172.31.9.1","PublicIPv6":null,"BackendData":{"flanpy":{')


def test_vxlan_with_direct_routing_encapsulates_only_behind_a_router(tmp_path_factory: pytest.TempPathFactory) -> None:
    options = {"Type": "vxlan", "VNI": 70000, "Port": 4789, "DirectRouting": True, "Learning": True, "GBP": True, "MTU": 1400}
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, network=network(options)) as running:
        far = {"VNI": 70000 & 0xFFFF, "VtepMAC": "02:00:00:00:00:99"}
        running.put(
            "subnets/10.244.251.0-24",
            json.dumps({"PublicIP": "192.0.2.9", "PublicIPv6": None, "BackendType": "vxlan", "BackendData": far}),
        )
        device = kernel_state.vxlan(running, "host1", "flannel.70000")
        assert (device.vni, device.port, device.learning, device.gbp, device.mtu_bytes) == (70000, 4789, True, True, 1350)
        base = IPv4Address("10.244.251.0")
        expected = direct(running, Route(IPv4Network("10.244.251.0/24"), "flannel.70000", gateway=base, onlink=True))
        eventually(lambda: kernel_state.routes(running, "host1") == expected, 5, "one direct, one encapsulated")
        found = kernel_state.fdb(running, "host1", "flannel.70000")
        assert {(entry.mac, str(entry.destination)) for entry in found} == {("02:00:00:00:00:99", "192.0.2.9")}
        assert running.ping("host1-pod1", "host2-pod1") == 3
