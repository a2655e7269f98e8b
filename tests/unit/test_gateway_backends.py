"""host-gw and alloc: the whole desired state, from a lease and a view."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from flanpy.backends import alloc, host_gw
from flanpy.model import DesiredState, FlanpyInfo, LocalFacts, NodeAttributes, Refusal, Route
from tests.support.backends import UPLINK, config, lease, view_of

CONFIG = config("host-gw")
OWN = lease("host-gw", "10.5.1.0/24", "192.0.2.1")
PEER = lease("host-gw", "10.5.2.0/24", "192.0.2.2")
DUAL = lease("host-gw", "10.5.3.0/24", "192.0.2.3", None, "fd05:3::/64", "2001:db8::3")


def test_host_gw_is_a_route_a_peer_with_the_underlay_s_mtu() -> None:
    assert host_gw.plan(CONFIG, OWN, view_of(PEER, DUAL), UPLINK, 1) == DesiredState(
        tunnel=None,
        routes=frozenset(
            {
                Route(IPv4Network("10.5.2.0/24"), "eth0", gateway=IPv4Address("192.0.2.2")),
                Route(IPv4Network("10.5.3.0/24"), "eth0", gateway=IPv4Address("192.0.2.3")),
            }
        ),
        table=None,
        mtu_bytes=1500,
    )


def test_host_gw_routes_ipv6_via_the_ipv6_address() -> None:
    own = lease("host-gw", "10.5.1.0/24", "192.0.2.1", None, "fd05:1::/64", "2001:db8::1")
    state = host_gw.plan(config("host-gw", ipv6=True), own, view_of(DUAL), UPLINK, 1)
    assert Route(IPv6Network("fd05:3::/64"), "eth0", gateway=IPv6Address("2001:db8::3")) in state.routes
    assert len(state.routes) == 2


def test_host_gw_refuses_a_peer_behind_a_router_by_name() -> None:
    far = lease("host-gw", "10.5.9.0/24", "198.51.100.9")
    seen = host_gw.screen(CONFIG, OWN, view_of(PEER, far), UPLINK)
    assert seen == replace(
        view_of(PEER),
        refusals=(
            Refusal(
                "subnets/10.5.9.0-24",
                "PublicIP: 198.51.100.9 is not on the link of eth0 (192.0.2.0/24); host-gw needs that, vxlan does not",
            ),
        ),
    )


def test_host_gw_refuses_a_peer_without_an_ipv6_address_when_it_has_an_ipv6_subnet() -> None:
    own = lease("host-gw", "10.5.1.0/24", "192.0.2.1", None, "fd05:1::/64", "2001:db8::1")
    bad = lease("host-gw", "10.5.3.0/24", "192.0.2.3", None, "fd05:3::/64")
    seen = host_gw.screen(config("host-gw", ipv6=True), own, view_of(bad), UPLINK)
    assert seen.refusals[0].reason == "PublicIPv6: missing, so its IPv6 subnet cannot be reached"


def test_leases_carry_the_type_and_alloc_s_none() -> None:
    base = NodeAttributes(IPv4Address("192.0.2.1"), flanpy=FlanpyInfo("n", frozenset({"ecn"})))
    said = [backend.attributes(base, CONFIG, LocalFacts("n")) for backend in (host_gw, alloc)]
    assert said == [
        NodeAttributes(IPv4Address("192.0.2.1"), backend_type="host-gw", flanpy=FlanpyInfo("n")),
        NodeAttributes(IPv4Address("192.0.2.1"), flanpy=FlanpyInfo("n")),
    ]


def test_alloc_wants_nothing_on_this_machine() -> None:
    view = view_of(lease("", "10.5.2.0/24", "198.51.100.2"))
    assert alloc.screen(config("alloc"), OWN, view, UPLINK) == view
    assert alloc.plan(config("alloc"), OWN, view, UPLINK, 1) == DesiredState(None, frozenset(), None, 1500)
