"""The underlay of a node changes while packets are to flow: cable, link, address, routes. Topology as in test_vxlan_cluster.

One cluster for each way to carry packets; each test leaves it in sync. What peers know (``way``) is what their kernel or datapath sends by.
"""

import json
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from flanpy.model import Route
from tests.support import kernel_state
from tests.support.clusters import NETWORK, Agent, Cluster, bare, cluster, eventually
from tests.support.pace import SLOWNESS
from tests.support.probes import probes

WAYS = {
    "udp-userspace": ("udp", "userspace"),
    "udp-ebpf": ("udp", "ebpf"),
    "vxlan": ("vxlan", "auto"),
    "host-gw": ("host-gw", "auto"),
}
ROUTER = "172.31.9.254"


@pytest.fixture(scope="module", params=WAYS)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    backend, datapath = WAYS[request.param]
    network = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": backend}})
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, network=network, datapath=datapath) as running:
        yield running


@pytest.fixture(autouse=True)
def in_sync(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "two" in request.fixturenames:
        two = request.getfixturevalue("two")
        eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other again after the test")


def way(two: Cluster) -> set[str]:
    """The addresses that host1 sends packets for other nodes to."""
    status = two.status("host1")
    if status["backend"] == "udp":
        return {peer["hop"].split(":")[0] for peer in status["peers"]}
    if status["backend"] == "vxlan":
        return {str(entry.destination) for entry in kernel_state.fdb(two, "host1", "flannel.1")}
    return {str(route.gateway) for route in kernel_state.routes(two, "host1")}


def registered(two: Cluster) -> str:
    """The address in host2's lease."""
    record = two.get(two.key("host2"))
    assert record is not None
    return str(json.loads(record["value"])["PublicIP"])


def test_another_address_is_registered_within_5_s_and_the_old_one_is_nowhere_after_10(two: Cluster) -> None:
    move = "ip addr del {}/24 dev eth0; ip addr add {}/24 dev eth0; ip route replace default via " + ROUTER
    for old, new in (("172.31.9.2", "172.31.9.88"), ("172.31.9.88", "172.31.9.2")):
        key, begin, said = two.key("host2"), time.monotonic(), len(two.log("host2"))
        two.sandbox.run("host2", ["sh", "-euc", move.format(old, new)])
        eventually(lambda new=new: registered(two) == new, 5, f"{new} is registered")  # type: ignore[misc]
        eventually(lambda new=new: way(two) == {new}, 10, f"host1 sends to {new} alone")  # type: ignore[misc]
        eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 10, "packets flow")
        assert two.key("host2") == key
        assert "store_down" not in two.log("host2")[said:], (
            "etcd is asked from the new address, not until the old connection times out"
        )
        assert time.monotonic() - begin < 25 * SLOWNESS


def test_a_link_that_was_set_down_carries_packets_again_once_it_is_up(two: Cluster) -> None:
    """With the link go all routes by it; the kernel writes none of them anew."""
    before = kernel_state.routes(two, "host2")
    two.sandbox.run("host2", ["ip", "link", "set", "eth0", "down"])
    assert two.ping("host1-pod1", "host2-pod1", 1) == 0
    two.sandbox.run("host2", ["sh", "-euc", f"ip link set eth0 up; ip route replace default via {ROUTER}"])
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 10, "packets flow")
    eventually(lambda: kernel_state.routes(two, "host2") == before, 10, "the routes are as they were")
    assert (registered(two), way(two)) == ("172.31.9.2", {"172.31.9.2"})


def test_a_pulled_cable_changes_nothing_but_that_packets_wait(two: Cluster) -> None:
    before = (kernel_state.routes(two, "host2"), way(two), two.key("host2"))
    two.lab.cut("host2")
    assert two.ping("host1-pod1", "host2-pod1", 1) == 0
    two.lab.join("host2")
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 10, "packets flow")
    assert (kernel_state.routes(two, "host2"), way(two), two.key("host2")) == before


def test_another_mtu_of_the_uplink_reaches_pods_and_subnet_env(two: Cluster) -> None:
    lease, before, said = two.lab.lease("host1"), _device(two), len(two.log("host1"))
    assert lease is not None
    for less in (100, 0):
        with probes(two) as stream:
            two.sandbox.run("host1", ["ip", "link", "set", "eth0", "mtu", str(1500 - less)])
            eventually(lambda less=less: two.lab.lease("host1").mtu_bytes == lease.mtu_bytes - less, 10, "subnet.env has it")  # type: ignore[misc, union-attr]
        assert stream.losses == ()
        size = lease.mtu_bytes - less - 28
        eventually(lambda size=size: fits(two, size), 10, "the greatest packet arrives")  # type: ignore[misc]
        assert not fits(two, size + 1)
    assert _device(two) == before, "the device is the same one"
    assert "datapath_started" not in two.log("host1")[said:], "and the datapath goes on"


def _device(two: Cluster) -> int:
    """The index of the overlay device, or of the uplink where there is none."""
    devices = {"udp": "flannel0", "vxlan": "flannel.1", "host-gw": "eth0"}
    return kernel_state.index(two, "host1", devices[two.status("host1")["backend"]])


def fits(two: Cluster, size: int) -> bool:
    """Whether a ping with so many bytes of payload arrives, the other way: a pod of host2 learns of a narrower host1 by ICMP alone."""
    argv = ["ping", "-c1", "-W1", "-Mdo", f"-s{size}", two.pod("host2-pod1")]
    return two.sandbox.run("host1", argv, check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ how the uplink is chosen


def test_a_peer_behind_a_static_on_link_route_is_a_gateway(tmp_path_factory: pytest.TempPathFactory) -> None:
    network = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}})
    with bare(tmp_path_factory.mktemp("logs"), network=network) as one:
        one.put("subnets/10.244.200.0-24", '{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"host-gw"}')
        one.sandbox.run("host1", ["ip", "route", "add", "192.0.2.9/32", "dev", "eth0"])
        with Agent(one, "--iface=eth0") as agent:
            agent.says("ready: subnet", 30)
            expected = frozenset({Route(IPv4Network("10.244.200.0/24"), "eth0", gateway=IPv4Address("192.0.2.9"))})
            eventually(lambda: kernel_state.routes(one, "host1") == expected, 5, "the route by the peer that is on the link")


@pytest.mark.parametrize(
    ("flags", "public"),
    [
        (["--iface-can-reach=198.51.100.9"], "198.51.100.1"),
        (["--iface-regex=^wan"], "198.51.100.1"),
        (["--iface-regex=nothing", "--iface-regex=172\\.31\\."], "172.31.9.1"),
        (["--iface=eth0", "--public-ip=203.0.113.5"], "203.0.113.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_lease_names_the_address_that_the_flags_choose(wan: Cluster, flags: list[str], public: str) -> None:
    with Agent(wan, "--datapath=userspace", *flags) as agent:
        agent.says("ready: subnet", 30)
        (key,) = wan.keys()
        record = wan.get(key)
        assert record is not None
        assert json.loads(record["value"])["PublicIP"] == public
        agent.stop()
    wan.delete(key)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One host with a second interface, and no agent."""
    with bare(tmp_path_factory.mktemp("logs"), network=NETWORK) as one:
        lines = "ip link add wan0 type veth peer name wan1; ip addr add 198.51.100.1/24 dev wan0; ip link set wan0 up; ip link set wan1 up"
        one.sandbox.run("host1", ["sh", "-euc", lines])
        yield one


def test_behind_a_nat_the_public_address_stays_when_the_own_one_changes(wan: Cluster) -> None:
    with Agent(wan, "--datapath=userspace", "--iface=eth0", "--public-ip=203.0.113.5") as agent:
        agent.says("ready: subnet", 30)
        (key,) = wan.keys()
        before = wan.get(key)
        move = "ip addr del {}/24 dev eth0; ip addr add {}/24 dev eth0; ip route replace default via " + ROUTER
        for old, new in (("172.31.9.1", "172.31.9.66"), ("172.31.9.66", "172.31.9.1")):
            wan.sandbox.run("host1", ["sh", "-euc", move.format(old, new)])
            agent.says(f"underlay: now eth0 {new} ")
        assert wan.get(key) == before
