"""flannel's vxlan backend: the whole desired state, from a lease and a view; and what is refused, by its key path."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest

from flanpy.backends import vxlan
from flanpy.core.membership import View
from flanpy.errors import ConfigError, InterfaceError
from flanpy.model import (
    DesiredState,
    FdbEntry,
    FlanpyInfo,
    Lease,
    LocalFacts,
    Neighbour,
    NodeAttributes,
    Refusal,
    Route,
    Subnets,
    Uplink,
    VxlanLink,
)
from tests.support.backends import UPLINK, config, lease, peer_of, view_of

CONFIG = config("vxlan")
DUAL = config("vxlan", ipv6=True)
OWN_MAC, MAC, MAC6 = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:06:02"


def data(mac: str = MAC, vni: object = 1) -> str:
    return f'{{"VNI":{vni},"VtepMAC":"{mac}"}}'


def vxlan_lease(subnet: str, address: str, text: str | None, subnet6: str = "", address6: str = "", text6: str = "") -> Lease:
    return lease("vxlan", subnet, address, text, subnet6, address6, text6)


OWN = vxlan_lease("10.5.1.0/24", "192.0.2.1", data(OWN_MAC))
PEER = vxlan_lease("10.5.2.0/24", "192.0.2.2", data())
OWN_DUAL = vxlan_lease("10.5.1.0/24", "192.0.2.1", data(OWN_MAC), "fd05:1::/64", "2001:db8::1", data("02:00:00:00:06:01"))
PEER_DUAL = vxlan_lease("10.5.2.0/24", "192.0.2.2", data(), "fd05:2::/64", "2001:db8::2", data(MAC6))


def test_the_desired_state_is_flannels() -> None:
    assert vxlan.plan(CONFIG, OWN, view_of(PEER), UPLINK, 4) == DesiredState(
        tunnel=None,
        routes=frozenset({Route(IPv4Network("10.5.2.0/24"), "flannel.1", gateway=IPv4Address("10.5.2.0"), onlink=True)}),
        table=None,
        mtu_bytes=1450,
        links=(
            VxlanLink(
                "flannel.1",
                1,
                8472,
                OWN_MAC,
                IPv4Address("192.0.2.1"),
                "eth0",
                1450,
                (IPv4Interface("10.5.1.0/32"),),
                False,
                False,
            ),
        ),
        neighbours=frozenset({Neighbour("flannel.1", IPv4Address("10.5.2.0"), MAC)}),
        fdb=frozenset({FdbEntry("flannel.1", MAC, IPv4Address("192.0.2.2"))}),
    )


def test_dual_stack_has_a_device_for_each_family_and_the_smaller_mtu() -> None:
    state = vxlan.plan(DUAL, OWN_DUAL, view_of(PEER_DUAL), UPLINK, 4)
    base6 = IPv6Address("fd05:2::")
    assert [(link.name, link.local, link.mtu_bytes, link.addresses) for link in state.links] == [
        ("flannel.1", IPv4Address("192.0.2.1"), 1450, (IPv4Interface("10.5.1.0/32"),)),
        ("flannel-v6.1", IPv6Address("2001:db8::1"), 1430, (IPv6Interface("fd05:1::/128"),)),
    ]
    assert state.mtu_bytes == 1430
    assert Route(IPv6Network("fd05:2::/64"), "flannel-v6.1", gateway=base6, onlink=True) in state.routes
    assert Neighbour("flannel-v6.1", base6, MAC6) in state.neighbours
    assert FdbEntry("flannel-v6.1", MAC6, IPv6Address("2001:db8::2")) in state.fdb


def test_all_options_reach_the_device() -> None:
    options = '"VNI": 7, "Port": 4789, "MTU": 9000, "GBP": true, "Learning": true'
    own = vxlan_lease("10.5.1.0/24", "192.0.2.1", data(OWN_MAC, 7))
    state = vxlan.plan(config("vxlan", options), own, View((), (), ()), UPLINK, 1)
    assert state.links == (
        VxlanLink(
            "flannel.7", 7, 4789, OWN_MAC, IPv4Address("192.0.2.1"), "eth0", 8950, (IPv4Interface("10.5.1.0/32"),), True, True
        ),
    )


def test_direct_routing_is_for_peers_on_the_link() -> None:
    far = vxlan_lease("10.5.3.0/24", "198.51.100.3", data("02:00:00:00:00:03"))
    state = vxlan.plan(config("vxlan", '"DirectRouting": true'), OWN, view_of(PEER, far), UPLINK, 1)
    assert state.routes == frozenset(
        {
            Route(IPv4Network("10.5.2.0/24"), "eth0", gateway=IPv4Address("192.0.2.2")),
            Route(IPv4Network("10.5.3.0/24"), "flannel.1", gateway=IPv4Address("10.5.3.0"), onlink=True),
        }
    )
    assert {entry.destination for entry in state.fdb} == {IPv4Address("198.51.100.3")}
    assert {entry.address for entry in state.neighbours} == {IPv4Address("10.5.3.0")}


def test_the_lease_carries_flannels_data_and_our_id() -> None:
    base = NodeAttributes(IPv4Address("192.0.2.1"), flanpy=FlanpyInfo("n", frozenset({"ecn"})))
    facts = LocalFacts("n", {"flannel.1": OWN_MAC})
    assert vxlan.attributes(base, CONFIG, facts) == NodeAttributes(
        IPv4Address("192.0.2.1"), backend_type="vxlan", backend_data=data(OWN_MAC), flanpy=FlanpyInfo("n")
    )


def test_a_vni_above_16_bits_is_written_as_flannel_can_read_it() -> None:
    big = config("vxlan", '"VNI": 70000')
    base = NodeAttributes(IPv4Address("192.0.2.1"))
    said = vxlan.attributes(base, big, LocalFacts("n", {"flannel.70000": OWN_MAC})).backend_data
    assert said == data(OWN_MAC, 4464)
    own = vxlan_lease("10.5.1.0/24", "192.0.2.1", said)
    assert [link.vni for link in vxlan.plan(big, own, View((), (), ()), UPLINK, 1).links] == [70000]


def test_a_made_mac_is_unicast_local_stable_and_different_for_each_node_and_device() -> None:
    macs = [vxlan.made_mac(node, device) for node in ("a", "b") for device in ("flannel.1", "flannel-v6.1")]
    assert macs == [vxlan.made_mac(node, device) for node in ("a", "b") for device in ("flannel.1", "flannel-v6.1")]
    assert len(set(macs)) == 4
    assert {int(mac[:2], 16) & 3 for mac in macs} == {2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, 'BackendData: missing; vxlan needs {"VNI":1,"VtepMAC":"02:42:ac:11:00:02"}'),
        ("[]", "BackendData: () is not an object such as"),
        ('"x"', "BackendData: 'x' is not an object such as"),
        ('{"VNI":1}', "BackendData.VtepMAC: None is not a MAC such as"),
        ('{"VNI":1,"VtepMAC":7}', "BackendData.VtepMAC: 7 is not a MAC such as"),
        (data("02:00:00:00:00"), "BackendData.VtepMAC: '02:00:00:00:00' is not a MAC such as"),
        (data("02:00:00:00:00:0g"), "BackendData.VtepMAC: '02:00:00:00:00:0g' is not a MAC such as"),
        (data("ff:ff:ff:ff:ff:ff"), "BackendData.VtepMAC: ff:ff:ff:ff:ff:ff is not the MAC of one device"),
        (data("00:00:00:00:00:00"), "BackendData.VtepMAC: 00:00:00:00:00:00 is not the MAC of one device"),
        (data(vni=2), "BackendData.VNI: 2 is not the network config's 1"),
        (data(vni=1 << 24), "BackendData.VNI: 16777216 is not the network config's 1"),
        (data(vni="true"), "BackendData.VNI: True is not the network config's 1"),
        (data(vni='"1"'), "BackendData.VNI: '1' is not the network config's 1"),
        (data(OWN_MAC), f"BackendData.VtepMAC: {OWN_MAC} is our own; two nodes cannot have one MAC"),
    ],
)
def test_bad_data_is_refused_and_the_others_stay(text: str | None, reason: str) -> None:
    bad = vxlan_lease("10.5.3.0/24", "192.0.2.3", text)
    seen = vxlan.screen(CONFIG, OWN, view_of(PEER, bad), UPLINK)
    assert seen.peers == view_of(PEER).peers
    (refusal,) = seen.refusals
    assert refusal.key == "subnets/10.5.3.0-24"
    assert refusal.reason.startswith(reason)


@pytest.mark.parametrize(
    "text", [data(MAC.upper()), data(MAC.replace(":", "-")), f'{{"VtepMAC":"{MAC}"}}', f'{{"vni":1,"vtepmac":"{MAC}"}}']
)
def test_what_gos_decoder_reads_is_read(text: str) -> None:
    peer = vxlan_lease("10.5.2.0/24", "192.0.2.2", text)
    seen = vxlan.screen(CONFIG, OWN, view_of(peer), UPLINK)
    assert vxlan.plan(CONFIG, OWN, seen, UPLINK, 1).fdb == frozenset({FdbEntry("flannel.1", MAC, IPv4Address("192.0.2.2"))})


def test_of_two_peers_with_one_mac_the_older_stands() -> None:
    younger = replace(vxlan_lease("10.5.0.0/24", "192.0.2.3", data()), create_revision=9)
    seen = vxlan.screen(CONFIG, OWN, view_of(younger, PEER), UPLINK)
    assert seen.peers == (peer_of(PEER),)
    assert seen.refusals == (
        Refusal("subnets/10.5.0.0-24", f"BackendData.VtepMAC: {MAC} is that of 10.5.2.0/24; two nodes cannot have one MAC"),
    )


def test_a_dual_stack_peer_without_an_ipv6_address_or_data_is_refused() -> None:
    for bad, reason in (
        (vxlan_lease("10.5.2.0/24", "192.0.2.2", data(), "fd05:2::/64", "", data(MAC6)), "PublicIPv6: missing"),
        (vxlan_lease("10.5.2.0/24", "192.0.2.2", data(), "fd05:2::/64", "2001:db8::2"), "BackendV6Data: missing"),
        (
            vxlan_lease("10.5.2.0/24", "192.0.2.2", data(), "fd05:2::/64", "ff02::1", data(MAC6)),
            "PublicIPv6: ff02::1 is no address",
        ),
    ):
        seen = vxlan.screen(DUAL, OWN_DUAL, view_of(bad), UPLINK)
        assert (seen.peers, seen.refusals[0].reason[: len(reason)]) == ((), reason)


@pytest.mark.parametrize(
    ("options", "mtu", "message"),
    [("", 117, "^eth0: MTU 117 is too small for vxlan with IPv4"), ('"MTU": 100', 1500, r"^Backend\.MTU 100 is too small")],
)
def test_an_mtu_too_small_for_any_packet_is_refused(options: str, mtu: int, message: str) -> None:
    with pytest.raises(InterfaceError, match=message):
        vxlan.plan(config("vxlan", options), OWN, View((), (), ()), replace(UPLINK, mtu_bytes=mtu), 1)


def test_an_uplink_without_an_ipv6_address_cannot_carry_ipv6_subnets() -> None:
    with pytest.raises(InterfaceError, match="^eth0: has no IPv6 address"):
        vxlan.plan(DUAL, OWN_DUAL, View((), (), ()), Uplink("eth0", 2, 1500, IPv4Address("192.0.2.1")), 1)


def test_an_own_lease_of_another_kind_waits_to_be_written() -> None:
    own = Lease(Subnets(IPv4Network("10.5.1.0/24")), NodeAttributes(IPv4Address("192.0.2.1")), 5, 5, 7)
    with pytest.raises(ConfigError, match=r"^our own lease 10\.5\.1\.0/24 is not a vxlan lease yet: BackendData: missing"):
        vxlan.plan(CONFIG, own, View((), (), ()), UPLINK, 1)
