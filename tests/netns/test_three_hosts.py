"""Three hosts: every pod reaches every other, and what each kernel has is what the leases ask for, through a peer's going and coming.

    etcd 172.31.9.254
──── underlay ──┬────────────────────┬────────────────────┬────
            host1 172.31.9.1     host2 172.31.9.2     host3 172.31.9.3
             host1-pod1           host2-pod1           host3-pod1
"""

import itertools
import json
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from flanpy.model import FdbEntry, Neighbour, Route
from tests.support import kernel_state
from tests.support.clusters import Cluster, cluster, eventually
from tests.support.transfers import transfer

HOSTS = ("host1", "host2", "host3")
ADDRESS = {host: IPv4Address(f"172.31.9.{number}") for number, host in enumerate(HOSTS, 1)}


@pytest.fixture(scope="module", params=["udp", "vxlan", "host-gw"])
def three(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    network = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": request.param}})
    with cluster(tmp_path_factory.mktemp("logs"), hosts=3, pods=1, network=network) as running:
        yield running


def backend(three: Cluster) -> str:
    return str(json.loads(three.lab.spec.network_config)["Backend"]["Type"])


def wanted(three: Cluster, host: str, peers: tuple[str, ...]) -> tuple[object, ...]:
    """All that a host should have for these peers: routes, and what they lead through."""
    subnets = {peer: IPv4Network(three.subnet(peer)) for peer in peers}
    match backend(three):
        case "udp":
            hops = {f"{subnet} {ADDRESS[peer]}:8285" for peer, subnet in subnets.items()}
            return frozenset({Route(IPv4Network("10.244.0.0/16"), "flannel0")}), hops
        case "host-gw":
            return frozenset(Route(subnet, "eth0", gateway=ADDRESS[peer]) for peer, subnet in subnets.items()), set()
    macs = {peer: json.loads(three.get(three.key(peer))["value"])["BackendData"]["VtepMAC"] for peer in peers}  # type: ignore[index]
    bases = {peer: subnet.network_address for peer, subnet in subnets.items()}
    return (
        frozenset(Route(subnets[peer], "flannel.1", gateway=bases[peer], onlink=True) for peer in peers),
        {Neighbour("flannel.1", bases[peer], macs[peer]) for peer in peers}
        | {FdbEntry("flannel.1", macs[peer], ADDRESS[peer]) for peer in peers},
    )


def actual(three: Cluster, host: str) -> tuple[object, ...]:
    routes = kernel_state.routes(three, host)
    match backend(three):
        case "udp":
            return routes, {f"{peer['subnets']} {peer['hop']}" for peer in three.status(host)["peers"]}
        case "host-gw":
            return routes, set()
    return routes, set(kernel_state.neighbours(three, host, "flannel.1") | kernel_state.fdb(three, host, "flannel.1"))


def others(host: str) -> tuple[str, ...]:
    return tuple(other for other in HOSTS if other != host)


def test_every_pod_reaches_every_other_and_each_kernel_has_what_the_leases_ask_for(three: Cluster) -> None:
    for source, target in itertools.permutations(HOSTS, 2):
        assert three.ping(f"{source}-pod1", f"{target}-pod1") == 3, (source, target)
    for host in HOSTS:
        assert actual(three, host) == wanted(three, host, others(host))
    sent, received = transfer(three, "host3-pod1", "host1-pod1")
    assert sent == received


def test_a_host_that_leaves_is_forgotten_and_has_its_subnet_again_when_it_comes_back(three: Cluster) -> None:
    key = three.key("host3")
    three.lab.stop_agent("host3")
    three.delete(key)
    for host in ("host1", "host2"):
        eventually(
            lambda host=host: actual(three, host) == wanted(three, host, tuple(set(others(host)) - {"host3"})),  # type: ignore[misc]
            10,
            f"{host} has forgotten host3",
        )
    assert three.ping("host1-pod1", "host2-pod1") == 3
    three.lab.start_agents(["host3"])
    assert three.key("host3") == key
    for host in HOSTS:
        eventually(lambda host=host: actual(three, host) == wanted(three, host, others(host)), 10, f"{host} knows all again")  # type: ignore[misc]
    for source, target in itertools.permutations(HOSTS, 2):
        eventually(
            lambda pair=(source, target): three.ping(f"{pair[0]}-pod1", f"{pair[1]}-pod1") == 3, 10, "pods reach each other"
        )  # type: ignore[misc]
