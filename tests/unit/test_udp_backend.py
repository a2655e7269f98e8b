"""flannel's udp backend: the whole desired state, from a lease and a view."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

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
    NetworkConfig,
    NodeAttributes,
    Peer,
    Refusal,
    Route,
    Subnets,
    TableEntry,
    Tunnel,
    Uplink,
)
from tests.support.networks import network

CONFIG = network("10.5.0.0/16")
DUAL = parse_network_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/16"}')
ONLY6 = parse_network_config('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/16"}')
UPLINK = Uplink("eth0", 2, 1500, IPv4Address("192.0.2.1"))


def lease(subnet: str, address: str) -> Lease:
    return Lease(Subnets(IPv4Network(subnet)), NodeAttributes(IPv4Address(address)), 5, 5, 7)


def peer(subnet: str, address: str, port: int = 8285) -> Peer:
    item = lease(subnet, address)
    return Peer(item.subnets, item.attributes, Hop(item.attributes.address, port), item)


OWN = lease("10.5.1.0/24", "192.0.2.1")


def lease6(subnet: str, subnet6: str, address: str, address6: str = "") -> Lease:
    subnets = Subnets(IPv4Network(subnet) if subnet else None, IPv6Network(subnet6))
    attributes = NodeAttributes(
        IPv4Address(address) if address else None,
        IPv6Address(address6) if address6 else None,
        flanpy=FlanpyInfo("n", frozenset({"ecn", "ipv6"})),
    )
    return Lease(subnets, attributes, 5, 5, 7)


def dual_peer(subnet: str, subnet6: str, address: str, address6: str = "") -> Peer:
    item = lease6(subnet, subnet6, address, address6)
    return Peer(item.subnets, item.attributes, Hop(item.attributes.address, 8285), item)


DUAL_OWN = lease6("10.5.1.0/24", "fd05:1::/64", "192.0.2.1")


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
            mtu_bytes=1472,
        ),
        mtu_bytes=1472,
    )


def test_another_device_name_is_used_throughout() -> None:
    state = udp.plan(CONFIG, OWN, View((), (), ()), UPLINK, 1, device="flannel7")
    assert (state.tunnel and state.tunnel.name, {route.device for route in state.routes}) == ("flannel7", {"flannel7"})


@pytest.mark.parametrize(("mtu", "inner"), [(1500, 1472), (9000, 8972), (96, 68)])
def test_the_mtu_is_the_uplinks_less_both_headers(mtu: int, inner: int) -> None:
    assert udp.mtu_bytes(CONFIG, Uplink("eth0", 2, mtu, IPv4Address("192.0.2.1"))) == inner


@pytest.mark.parametrize(("config", "address", "least"), [(CONFIG, 4, 96), (CONFIG, 6, 116), (DUAL, 4, 1308), (DUAL, 6, 1328)])
def test_an_uplink_too_small_for_any_packet_is_refused(config: NetworkConfig, address: int, least: int) -> None:
    ipv4 = IPv4Address("192.0.2.1") if address == 4 else None
    assert udp.mtu_bytes(config, Uplink("eth0", 2, least, ipv4, IPv6Address("2001:db8::1"))) > 0
    with pytest.raises(InterfaceError, match=rf"^eth0: MTU {least - 1} is too small for udp with IPv\d \(at least {least}\)$"):
        udp.mtu_bytes(config, Uplink("eth0", 2, least - 1, ipv4, IPv6Address("2001:db8::1")))


# ------------------------------------------------------------------------------------------------ IPv6


def test_both_families_have_address_route_and_table_entries() -> None:
    peers = (dual_peer("10.5.2.0/24", "fd05:2::/64", "192.0.2.2"), peer("10.5.3.0/24", "192.0.2.3"))
    hop = Hop(IPv4Address("192.0.2.2"), 8285)
    assert udp.plan(DUAL, DUAL_OWN, View(peers, (), ()), UPLINK, 4) == DesiredState(
        tunnel=Tunnel("flannel0", 1472, (IPv4Interface("10.5.1.0/32"), IPv6Interface("fd05:1::/128"))),
        routes=frozenset({Route(IPv4Network("10.5.0.0/16"), "flannel0"), Route(IPv6Network("fd05::/16"), "flannel0")}),
        table=ForwardTable(
            generation=4,
            entries=(
                TableEntry(IPv4Network("10.5.2.0/24"), hop),
                TableEntry(IPv6Network("fd05:2::/64"), hop),
                TableEntry(IPv4Network("10.5.3.0/24"), Hop(IPv4Address("192.0.2.3"), 8285)),
            ),
            local=(IPv4Network("10.5.1.0/24"), IPv6Network("fd05:1::/64")),
            mtu_bytes=1472,
        ),
        mtu_bytes=1472,
    )


def test_a_network_of_ipv6_alone_is_planned_without_ipv4() -> None:
    peers = (dual_peer("", "fd05:2::/64", "192.0.2.2"),)
    state = udp.plan(ONLY6, lease6("", "fd05:1::/64", "192.0.2.1"), View(peers, (), ()), UPLINK, 1)
    assert state.tunnel == Tunnel("flannel0", 1472, (IPv6Interface("fd05:1::/128"),))
    assert state.routes == frozenset({Route(IPv6Network("fd05::/16"), "flannel0")})
    assert state.table == ForwardTable(
        1, (TableEntry(IPv6Network("fd05:2::/64"), Hop(IPv4Address("192.0.2.2"), 8285)),), (IPv6Network("fd05:1::/64"),), 1472
    )


def test_an_underlay_without_ipv4_is_used_by_ipv6_at_twenty_bytes_more() -> None:
    uplink = Uplink("eth0", 2, 1500, None, IPv6Address("2001:db8::1"))
    remote = dual_peer("10.5.2.0/24", "fd05:2::/64", "", "2001:db8::2")
    own = lease6("10.5.1.0/24", "fd05:1::/64", "", "2001:db8::1")
    view = udp.screen(DUAL, own, View((remote,), (), ()), uplink)
    state = udp.plan(DUAL, own, view, uplink, 1)
    assert (view.refusals, state.mtu_bytes) == ((), 1452)
    assert state.table is not None
    assert {str(entry.hop) for entry in state.table.entries} == {"[2001:db8::2]:8285"}


def test_a_node_that_does_not_say_that_it_reads_ipv6_is_sent_none_and_that_is_said() -> None:
    flannel = Lease(
        Subnets(IPv4Network("10.5.3.0/24"), IPv6Network("fd05:3::/64")), NodeAttributes(IPv4Address("192.0.2.3")), 5, 5, 7
    )
    other = Peer(flannel.subnets, flannel.attributes, Hop(IPv4Address("192.0.2.3"), 8285), flannel)
    ours = dual_peer("10.5.2.0/24", "fd05:2::/64", "192.0.2.2")
    view = udp.screen(DUAL, DUAL_OWN, View((ours, other), (), ()), UPLINK)
    reason = (
        "fd05:3::/64: its node does not say that it reads IPv6 in UDP, as flanneld does not, and is sent none; "
        "its IPv4 subnet is reached"
    )
    assert view == View((ours, other), (Refusal("subnets/10.5.3.0-24&fd05:3::-64", reason),), ())
    table = udp.plan(DUAL, DUAL_OWN, view, UPLINK, 1).table
    assert table is not None
    assert [str(entry.prefix) for entry in table.entries] == ["10.5.2.0/24", "fd05:2::/64", "10.5.3.0/24"]


def test_where_there_is_no_ipv4_such_a_node_is_no_peer_at_all() -> None:
    flannel = Lease(Subnets(None, IPv6Network("fd05:3::/64")), NodeAttributes(IPv4Address("192.0.2.3")), 5, 5, 7)
    other = Peer(flannel.subnets, flannel.attributes, Hop(IPv4Address("192.0.2.3"), 8285), flannel)
    view = udp.screen(ONLY6, lease6("", "fd05:1::/64", "192.0.2.1"), View((other,), (), ()), UPLINK)
    assert (view.peers, [refusal.key for refusal in view.refusals]) == ((), ["subnets/0.0.0.0-0&fd05:3::-64"])


@pytest.mark.parametrize("config", [DUAL, ONLY6], ids=["dual stack", "IPv6 alone"])
def test_a_reservation_that_nobody_has_taken_up_is_no_trouble_and_gets_no_ipv6(config: NetworkConfig) -> None:
    subnets = Subnets(IPv4Network("10.5.3.0/24") if config.enable_ipv4 else None, IPv6Network("fd05:3::/64"))
    kept = Lease(subnets, NodeAttributes(IPv4Address("192.0.2.3")), 5, 5, 0)
    own = DUAL_OWN if config.enable_ipv4 else lease6("", "fd05:1::/64", "192.0.2.1")
    view = View((Peer(kept.subnets, kept.attributes, Hop(IPv4Address("192.0.2.3"), 8285), kept),), (), ())
    assert udp.screen(config, own, view, UPLINK) == view
    table = udp.plan(config, own, view, UPLINK, 1).table
    assert table is not None
    assert [entry.prefix.version for entry in table.entries] == ([4] if config.enable_ipv4 else [])


def test_a_peer_on_the_other_family_of_the_underlay_is_refused() -> None:
    remote = dual_peer("10.5.2.0/24", "fd05:2::/64", "", "2001:db8::2")
    view = udp.screen(DUAL, DUAL_OWN, View((remote,), (), ()), UPLINK)
    assert view.peers == ()
    assert view.refusals[0].reason.startswith("it takes packets at 2001:db8::2, but this node's underlay is IPv4: ")


def test_a_lease_of_a_family_that_the_network_has_not_cannot_be_planned() -> None:
    with pytest.raises(ConfigError, match=r"^our own lease 10\.5\.1\.0/24 fd05:1::/64 has a family"):
        udp.plan(CONFIG, DUAL_OWN, View((), (), ()), UPLINK, 1)


def test_the_lease_says_that_ipv6_is_read_where_the_network_has_it() -> None:
    base = NodeAttributes(IPv4Address("192.0.2.1"), flanpy=FlanpyInfo("n", frozenset({"ecn"})))
    assert udp.attributes(base, DUAL, LocalFacts("n")).flanpy == FlanpyInfo("n", frozenset({"ecn", "ipv6"}))


def test_a_udp_lease_has_no_backend_type() -> None:
    base = NodeAttributes(IPv4Address("192.0.2.1"), flanpy=FlanpyInfo("n", frozenset({"ecn"})))
    assert udp.attributes(base, CONFIG, LocalFacts("n")) == base


def test_the_registry_finds_udp_and_names_what_it_has() -> None:
    assert backends.find("udp").TYPE == ""
    with pytest.raises(ConfigError, match=r"^Backend\.Type: this version cannot run gre \(it runs: .*udp.*\)$"):
        backends.find("gre")
