"""Networks of IPv6 alone: what each backend plans, what its lease says, which addresses it needs; leases told apart by IPv6 addresses."""

import base64
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network

import pytest

from flanpy import backends
from flanpy.config.network import parse_network_config, render_network_config
from flanpy.core.allocate import choose_subnet, fits
from flanpy.core.codec import encode_attributes, key_of, subnets_of
from flanpy.core.membership import View, from_records, view
from flanpy.core.ownership import survey
from flanpy.core.subnet_env import parse_subnet_env, render_subnet_env
from flanpy.model import (
    FlanpyInfo,
    Hop,
    Lease,
    LocalFacts,
    NetworkConfig,
    NodeAttributes,
    Record,
    RecordSet,
    Route,
    Subnets,
    Uplink,
    WireguardLink,
)
from tests.support.backends import lease, peer_of

OWN6, PEER6 = "fd05:1::/64", "fd05:2::/64"
UPLINK = Uplink("eth0", 2, 1500, None, IPv6Address("2001:db8::1"), (IPv6Network("2001:db8::/64"),))
KEY = base64.b64encode(bytes(range(32))).decode()
KEY2 = base64.b64encode(bytes(range(1, 33))).decode()
FACTS = LocalFacts("n", public_key=KEY)


def config(backend: str, options: str = "") -> NetworkConfig:
    return parse_network_config(
        f'{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/16","Backend":{{"Type":"{backend}"{options}}}}}'
    )


def test_the_config_is_rendered_as_it_was_read() -> None:
    assert parse_network_config(render_network_config(config("udp"))) == config("udp")


def test_a_subnet_of_ipv6_alone_is_chosen_and_fits() -> None:
    chosen = choose_subnet(config("udp"), [IPv6Network("fd05:0:0:1::/64")], None, lambda count: 0)
    assert (chosen, fits(config("udp"), chosen)) == (Subnets(None, IPv6Network("fd05:0:0:2::/64")), True)
    assert subnets_of(key_of(chosen)) == chosen
    assert key_of(chosen) == "subnets/0.0.0.0-0&fd05:0:0:2::-64"


def test_subnet_env_has_the_lines_of_ipv6_alone() -> None:
    text = render_subnet_env(config("udp"), Subnets(None, IPv6Network(OWN6)), 1452, False)
    assert text == "FLANNEL_IPV6_NETWORK=fd05::/16\nFLANNEL_IPV6_SUBNET=fd05:1::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=false\n"
    assert parse_subnet_env(text).subnets == Subnets(None, IPv6Network(OWN6))


@pytest.mark.parametrize(
    ("backend", "options", "needed"),
    [
        ("udp", "", ()),
        ("alloc", "", ()),
        ("vxlan", "", (6,)),
        ("host-gw", "", (6,)),
        ("extension", "", (6,)),
        ("wireguard", "", (6,)),
        ("wireguard", ',"Mode":"ipv4"', (4,)),
        ("wireguard", ',"Mode":"ipv6"', (6,)),
        ("wireguard", ',"Mode":"auto"', ()),
    ],
)
def test_a_backend_says_which_families_of_the_underlay_it_needs(backend: str, options: str, needed: tuple[int, ...]) -> None:
    assert backends.find(backend).reached_by(config(backend, options)) == needed


@pytest.mark.parametrize(
    ("backend", "data", "expected"),
    [
        ("host-gw", "", Route(IPv6Network(PEER6), "eth0", gateway=IPv6Address("2001:db8::2"))),
        (
            "vxlan",
            '{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}',
            Route(IPv6Network(PEER6), "flannel-v6.1", gateway=IPv6Address("fd05:2::"), onlink=True),
        ),
    ],
)
def test_a_plan_of_ipv6_alone_has_nothing_of_ipv4(backend: str, data: str, expected: Route) -> None:
    chosen = backends.find(backend)
    base = NodeAttributes(None, IPv6Address("2001:db8::1"), flanpy=FlanpyInfo("n"))
    own = Lease(Subnets(None, IPv6Network(OWN6)), chosen.attributes(base, config(backend), FACTS), 5, 5, 7)
    assert own.attributes.backend_data is None
    remote = lease(backend, "", "", None, PEER6, "2001:db8::2", data)
    seen = chosen.screen(config(backend), own, View((peer_of(remote),), (), ()), UPLINK)
    state = chosen.plan(config(backend), own, seen, UPLINK, 1)
    assert (seen.refusals, state.routes) == ((), frozenset({expected}))


def test_wireguard_has_one_device_for_ipv6_alone() -> None:
    chosen = backends.find("wireguard")
    base = NodeAttributes(None, IPv6Address("2001:db8::1"))
    own = Lease(Subnets(None, IPv6Network(OWN6)), chosen.attributes(base, config("wireguard"), FACTS), 5, 5, 7)
    remote = lease("wireguard", "", "", None, PEER6, "2001:db8::2", f'{{"PublicKey":"{KEY2}","Port":51821}}')
    seen = chosen.screen(config("wireguard"), own, View((peer_of(remote),), (), ()), UPLINK)
    (link,) = chosen.plan(config("wireguard"), own, seen, UPLINK, 1).links
    assert isinstance(link, WireguardLink)
    assert (link.name, link.port, link.addresses) == ("flannel-wg-v6", 51821, (IPv6Interface("fd05:1::/128"),))
    assert [(peer.endpoint, peer.allowed) for peer in link.peers] == [
        (Hop(IPv6Address("2001:db8::2"), 51821), (IPv6Network(PEER6),))
    ]


def test_wireguards_auto_mode_reaches_a_node_without_ipv4_by_ipv6() -> None:
    chosen, both = backends.find("wireguard"), config("wireguard", ',"Mode":"auto"')
    own = Lease(
        Subnets(None, IPv6Network(OWN6)),
        chosen.attributes(NodeAttributes(None, IPv6Address("2001:db8::1")), both, FACTS),
        5,
        5,
        7,
    )
    remote = lease("wireguard", "", "", None, PEER6, "2001:db8::2", f'{{"PublicKey":"{KEY2}","Port":51820}}')
    (link,) = chosen.plan(both, own, View((peer_of(remote),), (), ()), UPLINK, 1).links
    assert isinstance(link, WireguardLink)
    assert link.peers[0].endpoint == Hop(IPv6Address("2001:db8::2"), 51820)


# ------------------------------------------------------------------------------------------------ leases without IPv4


def record(subnet: str, address: str, node: str = "n", create: int = 5) -> Record:
    attributes = NodeAttributes(None, IPv6Address(address), flanpy=FlanpyInfo(node, frozenset({"ipv6"})) if node else None)
    return Record(key_of(Subnets(None, IPv6Network(subnet))), encode_attributes(attributes), create, create, 7)


def test_leases_without_ipv4_are_told_apart_by_their_ipv6_addresses() -> None:
    mine, twin, inherited, other = (
        record("fd05:1::/64", "2001:db8::1"),
        record("fd05:2::/64", "2001:db8::2"),
        record("fd05:3::/64", "2001:db8::1", ""),
        record("fd05:4::/64", "2001:db8::4", "other"),
    )
    address = IPv6Address("2001:db8::1")
    found = survey((mine, twin, inherited, other), "n", address, {address}, None)
    assert [[str(lease.subnets) for lease in group] for group in (found.own, found.twins, found.inherited)] == [
        ["fd05:1::/64"],
        ["fd05:2::/64"],
        ["fd05:3::/64"],
    ]
    assert len(found.taken) == 4


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("2001:db8::1", "PublicIPv6 2001:db8::1 is our own: an earlier lease of this node, or a node behind the same address"),
        ("ff02::1", "PublicIPv6 ff02::1 is no unicast address: no node can be reached there"),
        ("::1", "PublicIPv6 ::1 is no unicast address: no node can be reached there"),
        ("fe80::1", "PublicIPv6 fe80::1 is no unicast address: no node can be reached there"),
        ("::c000:201", "PublicIPv6 ::c000:201 is no unicast address: no node can be reached there"),
        ("fd05:1::9", "PublicIPv6 fd05:1::9 lies in a leased subnet: packets to it would be encapsulated again"),
    ],
)
def test_a_hostile_address_is_refused_and_the_others_work(address: str, reason: str) -> None:
    own, good, bad = record(OWN6, "2001:db8::1"), record("fd05:9::/64", "2001:db8::9", "g"), record(PEER6, address, "b", 6)
    seen = view(from_records(RecordSet(9, (bad, own, good))), config("udp"), Subnets(None, IPv6Network(OWN6)))
    assert [peer.hop for peer in seen.peers] == [Hop(IPv6Address("2001:db8::9"), 8285)]
    assert [refusal.reason for refusal in seen.refusals] == [reason]


def test_an_ipv4_address_in_disguise_is_no_ipv6_address_of_a_node() -> None:
    """The datapath has IPv4 hops in this form: such a lease would send to whatever IPv4 address it likes."""
    own, bad = record(OWN6, "2001:db8::1"), record(PEER6, "::ffff:192.0.2.1", "b", 6)
    seen = view(from_records(RecordSet(9, (bad, own))), config("udp"), Subnets(None, IPv6Network(OWN6)))
    assert (seen.peers, [refusal.key for refusal in seen.refusals]) == ((), ["subnets/0.0.0.0-0&fd05:2::-64"])


def test_a_node_with_both_addresses_is_reached_by_ipv4() -> None:
    both = NodeAttributes(IPv4Address("192.0.2.9"), IPv6Address("2001:db8::9"))
    assert both.address == IPv4Address("192.0.2.9")
    with pytest.raises(ValueError, match="needs a public IPv4 or IPv6 address"):
        NodeAttributes(None, None)
