"""flannel's ipip backend: the whole desired state, from a lease and a view."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flanpy.backends import ipip
from flanpy.errors import ConfigError, InterfaceError
from flanpy.model import DesiredState, FlanpyInfo, IpipLink, LocalFacts, NodeAttributes, Route
from tests.support.backends import UPLINK, config, lease, view_of

OWN = lease("ipip", "10.5.1.0/24", "192.0.2.1")
NEAR = lease("ipip", "10.5.2.0/24", "192.0.2.2")
FAR = lease("ipip", "10.5.3.0/24", "198.51.100.3")


def state(direct: bool, routes: frozenset[Route]) -> DesiredState:
    link = IpipLink("flannel.ipip", IPv4Address("192.0.2.1"), "eth0", 1480, (IPv4Interface("10.5.1.0/32"),))
    return DesiredState(tunnel=None, routes=routes, table=None, mtu_bytes=1480, links=(link,))


def route(subnet: str, device: str, gateway: str) -> Route:
    return Route(IPv4Network(subnet), device, gateway=IPv4Address(gateway), onlink=device == "flannel.ipip")


@pytest.mark.parametrize(("direct", "near"), [(False, "flannel.ipip"), (True, "eth0")])
def test_the_desired_state_is_flannels(direct: bool, near: str) -> None:
    options = config("ipip", f'"DirectRouting": {str(direct).lower()}')
    expected = {route("10.5.2.0/24", near, "192.0.2.2"), route("10.5.3.0/24", "flannel.ipip", "198.51.100.3")}
    assert ipip.plan(options, OWN, view_of(NEAR, FAR), UPLINK, 1) == state(direct, frozenset(expected))


def test_the_lease_carries_the_type_alone() -> None:
    base = NodeAttributes(IPv4Address("192.0.2.1"))
    assert ipip.attributes(base, config("ipip"), LocalFacts("n")) == replace(base, backend_type="ipip", flanpy=FlanpyInfo("n"))


def test_ipv6_subnets_and_tiny_underlays_are_refused() -> None:
    own = lease("ipip", "10.5.1.0/24", "192.0.2.1", None, "fd05:1::/64", "2001:db8::1")
    with pytest.raises(ConfigError, match="^EnableIPv6: ipip carries IPv4 only"):
        ipip.plan(config("ipip", ipv6=True), own, view_of(), UPLINK, 1)
    with pytest.raises(InterfaceError, match="^eth0: MTU 87 is too small for ipip with IPv4"):
        ipip.plan(config("ipip"), OWN, view_of(), replace(UPLINK, mtu_bytes=87), 1)
