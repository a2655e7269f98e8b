"""flannel's udp backend: the whole desired state, from a lease and a view."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network

import pytest

from flanpy import backends
from flanpy.backends import udp
from flanpy.config.network import parse_network_config
from flanpy.core.membership import View
from flanpy.errors import ConfigError, InterfaceError
from flanpy.model import (
    DesiredState,
    FlanpyInfo,
    ForwardTable,
    Hop,
    Lease,
    LocalFacts,
    NodeAttributes,
    Peer,
    Route,
    Subnets,
    TableEntry,
    Tunnel,
    Uplink,
)
from tests.support.networks import network

CONFIG = network("10.5.0.0/16")
UPLINK = Uplink("eth0", 2, 1500, IPv4Address("192.0.2.1"))


def lease(subnet: str, address: str) -> Lease:
    return Lease(Subnets(IPv4Network(subnet)), NodeAttributes(IPv4Address(address)), 5, 5, 7)


def peer(subnet: str, address: str, port: int = 8285) -> Peer:
    item = lease(subnet, address)
    return Peer(item.subnets, item.attributes, Hop(item.attributes.public_ip, port), item)


OWN = lease("10.5.1.0/24", "192.0.2.1")


def test_the_desired_state_is_flannels() -> None:
    peers = (peer("10.5.2.0/24", "192.0.2.2"), peer("10.5.3.0/24", "192.0.2.3"))
    assert udp.plan(CONFIG, OWN, View(peers, (), ()), UPLINK, 4) == DesiredState(
        tunnel=Tunnel("flannel0", 1472, (IPv4Interface("10.5.1.0/32"),)),
        routes=frozenset({Route(IPv4Network("10.5.0.0/16"), "flannel0")}),
        table=ForwardTable(
            generation=4,
            entries=(
                TableEntry(IPv4Network("10.5.2.0/24"), Hop(IPv4Address("192.0.2.2"), 8285)),
                TableEntry(IPv4Network("10.5.3.0/24"), Hop(IPv4Address("192.0.2.3"), 8285)),
            ),
            local=(IPv4Network("10.5.1.0/24"),),
        ),
        mtu_bytes=1472,
    )


def test_another_device_name_is_used_throughout() -> None:
    state = udp.plan(CONFIG, OWN, View((), (), ()), UPLINK, 1, device="flannel7")
    assert (state.tunnel and state.tunnel.name, {route.device for route in state.routes}) == ("flannel7", {"flannel7"})


def test_a_lease_without_ipv4_cannot_be_planned() -> None:
    config = parse_network_config('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}')
    own = Lease(Subnets(None, IPv6Network("fd00:0:0:1::/64")), OWN.attributes, 5, 5, 7)
    with pytest.raises(ConfigError, match="^EnableIPv4: udp carries IPv4 only"):
        udp.plan(config, own, View((), (), ()), UPLINK, 1)


@pytest.mark.parametrize(("mtu", "inner"), [(1500, 1472), (9000, 8972), (96, 68)])
def test_the_mtu_is_the_uplinks_less_both_headers(mtu: int, inner: int) -> None:
    assert udp.mtu_bytes(Uplink("eth0", 2, mtu, None)) == inner


def test_an_uplink_too_small_for_any_packet_is_refused() -> None:
    with pytest.raises(InterfaceError, match=r"^eth0: MTU 95 is too small for udp \(at least 96\)$"):
        udp.mtu_bytes(Uplink("eth0", 2, 95, None))


def test_a_udp_lease_has_no_backend_type() -> None:
    base = NodeAttributes(IPv4Address("192.0.2.1"), flanpy=FlanpyInfo("n", frozenset({"ecn"})))
    assert udp.attributes(base, CONFIG, LocalFacts("n")) == base


def test_the_registry_finds_udp_and_names_what_it_has() -> None:
    assert backends.find("udp").TYPE == ""
    with pytest.raises(ConfigError, match=r"^Backend\.Type: this version cannot run gre \(it runs: .*udp.*\)$"):
        backends.find("gre")
