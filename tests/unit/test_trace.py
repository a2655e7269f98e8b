"""The way of a packet as ``flanpy trace`` tells it, and what the operator may call a node or a pod: whole answers in, whole steps out."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from flanpy.agent.cluster_map import ClusterMap, Target
from flanpy.agent.trace import Carrier, Step, trace
from flanpy.cli.output import Paint
from flanpy.cli.trace import render
from flanpy.errors import UsageError
from flanpy.kernel.lookup import Behind, Way
from flanpy.model import Address
from tests.support.answers import STATUS

PEERS = {
    "peers": [
        {"node": "aaaa1111-22", "public_ip": "172.31.9.2", "backend": "udp", "features": ["ecn"]}
        | {"subnets": "10.244.8.0/24", "hop": "172.31.9.2:8285"},
        {"node": None, "public_ip": "172.31.9.3", "backend": "udp", "features": []}
        | {"subnets": "10.244.9.0/24", "hop": "172.31.9.3:8285"},
        {"node": "aaaa1111-33", "public_ip": "172.31.9.4", "backend": "udp", "features": []}
        | {"subnets": "10.244.10.0/24", "hop": "172.31.9.4:8285"},
    ]
}
ROUTES = {
    "table": [
        {"prefix": "10.244.8.0/24", "hop": "172.31.9.2:8285"},
        {"prefix": "10.244.9.77/32", "hop": "172.31.9.2:8285"},
        {"prefix": "10.244.11.0/24", "hop": "172.31.9.99:8285"},
    ]
}
PODS = [
    {"pod": "web-0", "namespace": "shop", "address": "10.244.9.77"},
    {"pod": "db", "namespace": "shop", "address": "10.244.7.3"},
    {"pod": "db", "namespace": "test", "address": "10.244.8.3"},
]
CLUSTER = ClusterMap.of(STATUS, PEERS, ROUTES, PODS)
CARRIER = Carrier("udp", ("flannel0",), 12, "userspace", "eth0")
SIZE = 1472


class Sketch:
    """A machine with a pod 10.244.7.2 on the bridge cni0, whose kernel routes the network into flannel0."""

    def __init__(self, **ways: Way) -> None:
        self._ways = ways

    def way(self, destination: Address, source: Address | None = None, arriving: str = "") -> Way:
        text = str(destination)
        if text in self._ways:
            return self._ways[text]
        if text in ("10.244.7.0", "10.244.7.1", "172.31.9.1"):
            return Way("local", "lo", 65536)
        for network, way in (
            ("10.244.7.0/24", Way("unicast", "cni0", SIZE, matched=ip_network("10.244.7.0/24"))),
            ("10.244.0.0/16", Way("unicast", "flannel0", SIZE, matched=ip_network("10.244.0.0/16"))),
            ("172.31.9.0/24", Way("unicast", "eth0", 1500, source=ip_address("172.31.9.1"))),
        ):
            if destination in ip_network(network):
                return way
        return Way("unicast", "eth0", 1500, gateway=ip_address("172.31.9.254"), matched=ip_network("0.0.0.0/0"))

    def behind(self, address: Address, device: str) -> Behind | None:
        return Behind("02:00:00:00:00:02", "veth2") if str(address) == "10.244.7.2" else None

    def is_bridge(self, device: str) -> bool:
        return device == "cni0"


def steps(source: str, target: str, machine: Sketch | None = None, carrier: Carrier = CARRIER) -> list[Step]:
    return trace(ip_address(source), ip_address(target), CLUSTER, carrier, machine or Sketch())


POD = Step("here", "pod", "10.244.7.2 on bridge cni0 port veth2, 02:00:00:00:00:02")
ROUTE = Step("here", "route", "10.244.0.0/16 dev flannel0, MTU 1472")


def test_a_packet_to_another_node_passes_bridge_route_table_and_underlay() -> None:
    assert steps("10.244.7.2", "10.244.8.5") == [
        POD,
        ROUTE,
        Step("here", "table", "10.244.8.0/24 -> 172.31.9.2:8285 (table 12, datapath userspace), TTL - 1"),
        Step("here", "underlay", "eth0 172.31.9.1 -> 172.31.9.2:8285 on the link, MTU 1500"),
        Step("aaaa1111…", "node", "172.31.9.2 has 10.244.8.0/24: 10.244.8.5 is behind its bridge"),
    ]


def test_a_pod_that_keeps_its_address_is_followed_to_the_node_that_has_it() -> None:
    assert steps("10.244.7.2", "10.244.9.77")[2].text.startswith("10.244.9.77/32 -> 172.31.9.2:8285 (table 12")
    assert steps("10.244.7.2", "10.244.9.76")[2].text.startswith("10.244.9.0/24 -> 172.31.9.3:8285 (table 12")


def test_pods_of_one_node_meet_on_the_bridge() -> None:
    assert steps("10.244.7.2", "10.244.7.9") == [
        POD,
        Step("here", "route", "10.244.7.0/24 dev cni0, MTU 1472"),
        Step("here", "bridge", "cni0 switches it from port to port; no overlay, no route"),
        Step("here", "pod", "10.244.7.9 on bridge cni0; it has not been heard of lately, so its port is not known"),
    ]


def test_the_outside_is_left_to_the_underlays_gateway() -> None:
    assert steps("10.244.7.2", "192.0.2.1")[1:] == [
        Step("here", "route", "0.0.0.0/0 via 172.31.9.254 dev eth0, MTU 1500"),
        Step("here", "outside", "leaves the overlay by eth0 to 172.31.9.254"),
    ]


def test_a_packet_of_another_node_is_followed_from_the_source_check_to_the_pod() -> None:
    assert steps("10.244.8.5", "10.244.7.2") == [
        Step("aaaa1111…", "pod", "10.244.8.5 is on the node 172.31.9.2; run flanpy trace there for its side"),
        Step("aaaa1111…", "table", "10.244.7.0/24 -> 172.31.9.1, as that node reads it in etcd"),
        Step("here", "datapath", "10.244.8.5 may only come from 172.31.9.2, TTL - 1, out of flannel0"),
        Step("here", "route", "10.244.7.0/24 dev cni0, MTU 1472"),
        POD,
    ]


def test_two_other_nodes_are_told_from_their_leases_alone() -> None:
    assert [step.where for step in steps("10.244.8.5", "10.244.9.5")] == ["aaaa1111…", "aaaa1111…", "172.31.9.3"]
    assert [step.what for step in steps("10.244.8.5", "10.244.8.6")] == ["pod", "bridge"]


def test_the_kernel_carries_packets_of_the_other_backends() -> None:
    way = Way("unicast", "flannel.1", 1450, gateway=ip_address("10.244.8.0"), matched=ip_network("10.244.8.0/24"))
    found = steps(
        "10.244.7.0", "10.244.8.5", Sketch(**{"10.244.8.5": way}), Carrier("vxlan", ("flannel.1",), 0, "kernel", "eth0")
    )
    assert found[1:3] == [
        Step("here", "route", "10.244.8.0/24 via 10.244.8.0 dev flannel.1, MTU 1450"),
        Step("here", "vxlan", "10.244.8.0/24 -> 172.31.9.2:8285 by flannel.1"),
    ]


@pytest.mark.parametrize(
    ("source", "target", "ways", "last"),
    [
        ("10.244.7.2", "10.244.99.1", {}, ("table", "no node has 10.244.99.1: answered with unreachable")),
        ("10.244.7.2", "10.244.7.5", {"10.244.7.5": Way("blackhole")}, ("route", "10.244.7.5: blackhole")),
        ("10.244.7.2", "10.244.99.1", {"10.244.99.1": Way("no route")}, ("route", "10.244.99.1: no route; no node has it")),
        ("10.244.8.5", "10.244.7.2", {"10.244.7.2": Way("no route")}, ("route", "10.244.7.2: no route")),
        ("10.244.7.2", "10.244.8.5", {"172.31.9.2": Way("unreachable")}, ("underlay", "172.31.9.2: unreachable")),
        ("10.244.7.2", "2001:db8::1", {}, ("start", "10.244.7.2 and 2001:db8::1 are of two families: no packet has both")),
        ("192.0.2.1", "10.244.8.5", {}, ("start", "192.0.2.1 belongs to no node of the overlay, and is not this machine's")),
        (
            "10.244.7.2",
            "10.244.8.5",
            {"10.244.8.5": Way("unicast", "eth0", 1500)},
            ("table", "the route leads to eth0, not to flannel0: the datapath never sees it"),
        ),
    ],
)
def test_where_a_packet_is_lost_the_trace_stops_and_says_why(
    source: str, target: str, ways: dict[str, Way], last: tuple[str, str]
) -> None:
    assert steps(source, target, Sketch(**ways))[-1] == Step("here", *last, stops=True)


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("text", "address", "is_node"),
    [
        ("10.244.8.5", "10.244.8.5", False),
        ("10.244.8.0", "10.244.8.0", True),
        ("10.244.8.0/24", "10.244.8.0", True),
        ("172.31.9.2", "10.244.8.0", True),
        ("172.31.9.3", "10.244.9.0", True),
        ("172.31.9.1", "10.244.7.0", True),
        ("shop/db", "10.244.7.3", False),
        ("test/db", "10.244.8.3", False),
        ("web-0", "10.244.9.77", False),
        ("192.0.2.1", "192.0.2.1", False),
    ],
)
def test_a_target_is_an_address_a_subnet_a_node_or_a_pod(text: str, address: str, is_node: bool) -> None:
    found = CLUSTER.find(text)
    assert (str(found.address), found.is_node) == (address, is_node)


def test_a_node_is_found_by_the_beginning_of_its_id() -> None:
    one = ClusterMap.of(STATUS, {"peers": PEERS["peers"][:2]}, ROUTES)
    node = one.peers[0]
    for text in ("aaaa", "aaaa1111…", "aaaa1111-22"):
        assert one.find(text) == Target("aaaa1111… (172.31.9.2)", ip_address("10.244.8.0"), node, is_node=True)
    assert CLUSTER.find("aaaa1111-3").node == CLUSTER.peers[2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an empty name: give an address, a subnet, a node's id or a pod"),
        ("aaaa1111", "aaaa1111: several nodes begin so: aaaa1111…, aaaa1111…; give more of the id"),
        ("aa", "aa: neither an address nor"),
        ("db", "db: neither an address nor"),
        ("10.244.8.0/33", "10.244.8.0/33: neither an address nor"),
    ],
)
def test_what_is_not_known_or_not_clear_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        CLUSTER.find(text)
    assert str(refused.value).startswith(reason)


def test_the_text_marks_the_step_that_stops_the_packet() -> None:
    rows: list[Any] = [POD, Step("here", "route", "10.244.8.5: no\x1b route", stops=True)]
    assert render(rows, Paint(False)) == [
        " 1  here  pod    10.244.7.2 on bridge cni0 port veth2, 02:00:00:00:00:02",
        r" 2  here  route  STOPS 10.244.8.5: no\x1b route",
    ]
