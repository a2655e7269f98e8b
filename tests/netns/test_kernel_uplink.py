"""The choice of the uplink in a real network namespace: flannel's order, and a clear word where nothing or too much fits.

namespace   eth0 192.0.2.2/24 (default route, if a test adds one)   eth1 198.51.100.2/24   eth2 (down, no address)
            docker0 172.17.0.1/16 (bridge)   flannel0 10.5.1.0/32 (tun)   lo
"""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanpy.errors import InterfaceError, UsageError
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.uplink import UplinkSelection, find_uplink
from flanpy.model import Uplink
from tests.support.namespaces import Namespace, inside, namespace

pytestmark = pytest.mark.root

SETUP = """
link add eth0 type veth peer name far0
link add eth1 type veth peer name far1
link add eth2 type veth peer name far2
link set far0 up
link set far1 up
link set far2 up
link set eth0 addrgenmode none
link set eth1 addrgenmode none
link set eth2 addrgenmode none
addr add 192.0.2.2/24 dev eth0
addr add 2001:db8::2/64 dev eth0 nodad
addr add 198.51.100.2/24 dev eth1
link set eth0 mtu 1450 up
link set eth1 up
link add docker0 type bridge
addr add 172.17.0.1/16 dev docker0
link set docker0 up
tuntap add flannel0 mode tun
addr add 10.5.1.0/32 dev flannel0
link set flannel0 up
route add 10.5.0.0/16 dev flannel0
"""
ETH0 = ("eth0", "192.0.2.2")
ETH1 = ("eth1", "198.51.100.2")


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made, inside(made):
        made.ip(SETUP)
        yield made


def find(**options: object) -> Uplink:
    with Kernel() as kernel:
        return find_uplink(kernel, UplinkSelection(**options))  # type: ignore[arg-type]


def chosen(**options: object) -> tuple[str, str]:
    uplink = find(**options)
    return uplink.name, str(uplink.address)


def test_the_uplink_is_told_whole(ns: Namespace) -> None:
    eth0, eth1 = (socket.if_nametoindex(name) for name in ("eth0", "eth1"))
    both = (IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/64"))
    assert find(iface=("eth0",)) == Uplink("eth0", eth0, 1450, IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2"), both)
    assert find(iface=("eth1",)) == Uplink(
        "eth1", eth1, 1500, IPv4Address("198.51.100.2"), None, (IPv4Network("198.51.100.0/24"),)
    )


def test_routes_without_a_gateway_put_others_on_the_link(ns: Namespace) -> None:
    """Only those of the uplink, of the main table, that somebody wrote: no default, no multicast, none that refuses."""
    ns.ip(
        """
route add 203.0.113.9/32 dev eth0
route add 203.0.113.64/26 dev eth0 proto static
route add 203.0.113.128/26 dev eth0 proto 102
route add 198.51.100.128/25 via 192.0.2.1
route add 100.64.0.0/24 dev eth1
route add 100.64.1.0/24 dev eth0 table 77
route add 239.0.0.0/8 dev eth0
route add blackhole 100.64.2.0/24
route add 2001:db8:7::/64 dev eth0
route add 2001:db8:8::/64 via 2001:db8::9
"""
    )
    assert [str(network) for network in find(iface=("eth0",)).on_link] == [
        "192.0.2.0/24",
        "203.0.113.9/32",
        "203.0.113.64/26",
        "2001:db8::/64",
        "2001:db8:7::/64",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"iface": ("eth1",)}, ETH1),
        ({"iface": ("198.51.100.2",)}, ETH1),
        ({"iface": ("eth7", "192.0.2.99", "eth1", "eth0")}, ETH1),
        ({"iface": ("eth2", "eth1")}, ETH1),
        ({"iface": ("eth1",), "iface_regex": ("eth0",), "iface_can_reach": "192.0.2.9"}, ETH1),
        ({"iface": ("eth7",), "iface_regex": ("eth0",)}, ETH0),
        ({"iface_regex": ("eth1",)}, ETH1),
        ({"iface_regex": ("none", r"^198\.51\.")}, ETH1),
        ({"iface_regex": ("eth[12]",)}, ETH1),
        ({"iface_regex": ("^eth",), "iface_can_reach": "198.51.100.9"}, ETH0),
        ({"iface_regex": (".*",)}, ETH0),
        ({"iface_can_reach": "198.51.100.9"}, ETH1),
        ({"iface_can_reach": "203.0.113.9"}, ETH0),
        ({}, ETH0),
    ],
    ids=str,
)
def test_the_order_is_flannels(ns: Namespace, options: dict[str, object], expected: tuple[str, str]) -> None:
    ns.script("ip route add default via 192.0.2.1")
    assert chosen(**options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"iface": ("eth7",)},
            "--iface eth7: there is no interface of this name, and it is no address. There are: .*eth0 .192.0.2.2, 2001:db8::2.",
        ),
        ({"iface": ("192.0.2.77",)}, "--iface 192.0.2.77: no interface has this address"),
        ({"iface": ("eth2",)}, "eth2 is down: ip link set eth2 up"),
        ({"iface": ("far0",)}, "far0 has no address .*: ip addr add ADDRESS/PREFIX dev far0"),
        ({"iface": ("; rm -rf /",)}, "there is no interface of this name"),
        ({"iface_regex": ("wlan",)}, "--iface-regex wlan: no name or address of an interface matches it"),
        ({"iface_regex": ("eth2",)}, "--iface-regex eth2: eth2 is down"),
        ({"iface_regex": ("^lo$",)}, "--iface-regex .*: lo is the loopback device"),
        ({"iface_regex": ("flannel",)}, "--iface-regex flannel: flannel0 belongs to an overlay"),
        ({"iface": ("flannel0",)}, "flannel0 belongs to an overlay and cannot carry one"),
        ({"iface_can_reach": "10.5.7.1"}, "flannel0 belongs to an overlay and cannot carry one"),
        ({"iface_can_reach": "203.0.113.9"}, "--iface-can-reach 203.0.113.9: no route leads there .Network is unreachable."),
        ({"iface_can_reach": "192.0.2.2"}, "this leads to this machine itself"),
        ({"iface_can_reach": "127.0.0.1"}, "this leads to this machine itself"),
        ({"iface_can_reach": "127.0.0.77"}, "this leads to this machine itself"),
        ({}, "there is no default route: name the underlay by --iface. There are: lo"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said_with_what_is_there(ns: Namespace, options: dict[str, object], message: str) -> None:
    with pytest.raises(InterfaceError, match=message):
        find(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iface_regex": ("(",)}, r"--iface-regex: '\(' is not a regular expression"),
        (
            {
                "iface_regex": (
                    "eth0",
                    "a{9}{9}",
                )
            },
            "is not a regular expression",
        ),
        ({"iface_regex": ("a{99999999999}",)}, "is not a regular expression"),
        ({"iface_regex": ("(" * 5000 + ")" * 5000,)}, "has 10000 characters, at most 256"),
        ({"iface_can_reach": "example.org"}, "'example.org' is not an address"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_option_that_is_wrong_in_itself_is_a_usage_error(ns: Namespace, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find(**options)


def test_a_regex_that_backtracks_without_end_meets_names_too_short_for_it(ns: Namespace) -> None:
    with pytest.raises(InterfaceError):
        find(iface_regex=("^(([a-z0-9.])+.)+[A-Z]([a-z0-9.])+$",))


def test_of_several_addresses_the_operator_chooses(ns: Namespace) -> None:
    ns.script("ip addr add 203.0.113.2/24 dev eth1")
    message = "eth1 has several addresses: 198.51.100.2, 203.0.113.2; choose one by --iface ADDRESS .or --public-ip"
    for options in ({"iface": ("eth1",)}, {"iface_regex": ("eth1",)}, {"iface": ("eth1", "eth0")}):
        with pytest.raises(InterfaceError, match=message):
            find(**options)
    assert chosen(iface=("203.0.113.2",)) == ("eth1", "203.0.113.2")
    assert chosen(iface_regex=("203",)) == ("eth1", "203.0.113.2")
    assert chosen(iface=("eth1",), public_ip=IPv4Address("203.0.113.2")) == ("eth1", "203.0.113.2")
    assert chosen(iface_can_reach="203.0.113.9") == ("eth1", "203.0.113.2")
    assert chosen(iface_can_reach="198.51.100.9") == ETH1


@pytest.mark.parametrize(
    "more",
    [
        "ip addr add 198.51.100.3/24 dev eth1",  # secondary
        "ip addr add 198.51.100.100/32 dev eth1",  # floating
        "ip addr add 169.254.7.7/16 dev eth1 scope link",
        "ip addr add 203.0.113.2/24 dev eth1 valid_lft 100 preferred_lft 0",  # deprecated
    ],
)
def test_an_address_that_cannot_be_meant_makes_no_doubt(ns: Namespace, more: str) -> None:
    ns.script(more)
    assert chosen(iface=("eth1",)) == ETH1


def test_a_link_local_address_does_where_there_is_no_other(ns: Namespace) -> None:
    ns.script("ip addr flush dev eth1; ip addr add 169.254.7.7/16 dev eth1 scope link")
    assert chosen(iface=("eth1",)) == ("eth1", "169.254.7.7")


def test_a_public_address_of_a_nat_router_does_not_disturb_the_choice(ns: Namespace) -> None:
    assert chosen(iface=("eth1",), public_ip=IPv4Address("203.0.113.99")) == ETH1


@pytest.mark.parametrize(
    ("route", "address"),
    [
        ("via 192.0.2.1", "192.0.2.2"),
        ("via 203.0.113.1", "203.0.113.2"),
        ("via 192.0.2.1 src 203.0.113.2", "203.0.113.2"),
        ("dev eth0 src 192.0.2.2", "192.0.2.2"),
    ],
)
def test_the_default_route_tells_which_of_several_addresses(ns: Namespace, route: str, address: str) -> None:
    ns.script(f"ip addr add 203.0.113.2/24 dev eth0; ip route add default {route}")
    assert chosen() == ("eth0", address)


def test_a_default_route_without_gateway_leaves_several_addresses_open(ns: Namespace) -> None:
    ns.script("ip addr add 203.0.113.2/24 dev eth0; ip route add default dev eth0")
    with pytest.raises(InterfaceError, match=r"eth0 has several addresses: 192\.0\.2\.2, 203\.0\.113\.2"):
        find()


def test_the_default_route_of_the_lowest_metric_counts(ns: Namespace) -> None:
    ns.script("ip route add default via 198.51.100.1 metric 50; ip route add default via 192.0.2.1 metric 100")
    assert chosen() == ETH1


def test_a_default_route_into_a_container_network_is_passed_over(ns: Namespace) -> None:
    ns.script("ip route add default via 172.17.0.9; ip route add default dev flannel0 metric 5")
    with pytest.raises(InterfaceError, match="there is no default route but by docker0, flannel0, which is a container network"):
        find()
    ns.script("ip route add default via 192.0.2.1 metric 100")
    assert chosen() == ETH0


def test_default_routes_of_one_metric_by_two_interfaces_are_not_guessed_about(ns: Namespace) -> None:
    ns.script("ip route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1")
    with pytest.raises(InterfaceError, match="default routes of one metric lead by eth0 and eth1: choose by --iface"):
        find()


def test_the_default_route_of_a_link_without_address_says_so(ns: Namespace) -> None:
    ns.script("ip addr flush dev eth0; ip route add default dev eth0")
    with pytest.raises(InterfaceError, match="eth0 has no address"):
        find()


# ------------------------------------------------------------------------------------------------ IPv6

ONLY6 = "ip -4 addr flush dev eth0"


@pytest.mark.parametrize(
    "options",
    [{"iface": ("eth0",)}, {"iface": ("2001:db8::2",)}, {"iface_regex": ("^2001:",)}, {"iface_can_reach": "2001:db8::9"}],
)
def test_an_interface_without_ipv4_is_taken_by_its_ipv6_address(ns: Namespace, options: dict[str, object]) -> None:
    ns.script(ONLY6)
    found = find(**options)
    assert (found.name, found.address, found.address6, found.underlay) == (
        "eth0",
        None,
        IPv6Address("2001:db8::2"),
        IPv6Address("2001:db8::2"),
    )


def test_ipv6s_default_route_counts_where_ipv4_has_none(ns: Namespace) -> None:
    ns.script(f"{ONLY6}; ip -6 route add default via 2001:db8::1 dev eth0")
    found = find()
    assert (found.name, found.address, found.address6) == ("eth0", None, IPv6Address("2001:db8::2"))


def test_an_interface_named_by_its_ipv6_address_is_used_by_that_alone(ns: Namespace) -> None:
    found = find(iface=("2001:db8::2",))
    assert (found.name, found.address, found.address6) == ("eth0", None, IPv6Address("2001:db8::2"))


def test_a_link_local_address_is_no_address_for_peers(ns: Namespace) -> None:
    ns.script("ip addr flush dev eth0; ip -6 addr add fe80::5/64 dev eth0 nodad")
    with pytest.raises(InterfaceError, match=r"eth0 has no address \(IPv6: none that is global and lasting\)"):
        find(iface=("eth0",))


def test_temporary_and_deprecated_ipv6_addresses_are_not_announced(ns: Namespace) -> None:
    ns.script(
        """
        ip -6 addr flush dev eth0
        ip -6 addr add fe80::5/64 dev eth0 nodad
        ip -6 addr add 2001:db8::3/64 dev eth0 nodad valid_lft 100 preferred_lft 0
        """
    )
    assert find(iface=("eth0",)).address6 is None
    ns.script("ip -6 addr add 2001:db8::4/64 dev eth0 nodad")
    assert find(iface=("eth0",)).address6 == IPv6Address("2001:db8::4")
