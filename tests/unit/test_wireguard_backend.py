"""flannel's wireguard backend: the whole desired state, from a lease and a view; keys; and what is refused, by its key path."""

import stat
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

import pytest

from flanpy.agent.files import wireguard_key
from flanpy.backends import wireguard
from flanpy.core.x25519 import public_key
from flanpy.errors import PlatformError
from flanpy.model import DesiredState, FlanpyInfo, Hop, LocalFacts, NodeAttributes, Route, WireguardLink, WireguardPeer
from tests.support.backends import UPLINK, config, lease, view_of

OWN_KEY, KEY, KEY6 = (f"{letter}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=" for letter in "xyz")
PSK = "QUJBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="


def data(key: str, port: object = 51820) -> str:
    return f'{{"PublicKey":"{key}","Port":{port}}}'


OWN = lease("wireguard", "10.5.1.0/24", "192.0.2.1", data(OWN_KEY))
PEER = lease("wireguard", "10.5.2.0/24", "198.51.100.2", data(KEY))
OWN_DUAL = lease("wireguard", "10.5.1.0/24", "192.0.2.1", data(OWN_KEY), "fd05:1::/64", "2001:db8::1", data(OWN_KEY, 51821))
PEER_DUAL = lease("wireguard", "10.5.2.0/24", "192.0.2.2", data(KEY), "fd05:2::/64", "2001:db8::2", data(KEY, 51821))


def test_the_desired_state_is_flannels() -> None:
    options = config("wireguard", f'"PSK": "{PSK}", "PersistentKeepaliveInterval": 25')
    peer = WireguardPeer(KEY, Hop(IPv4Address("198.51.100.2"), 51820), (IPv4Network("10.5.2.0/24"),), 25, PSK)
    link = WireguardLink("flannel-wg", 51820, 1420, (IPv4Interface("10.5.1.0/32"),), (peer,))
    assert wireguard.plan(options, OWN, view_of(PEER), UPLINK, 1) == DesiredState(
        tunnel=None,
        routes=frozenset({Route(IPv4Network("10.5.0.0/16"), "flannel-wg")}),
        table=None,
        mtu_bytes=1420,
        links=(link,),
    )
    assert PSK not in repr(link)


def test_separate_devices_carry_the_families() -> None:
    state = wireguard.plan(config("wireguard", ipv6=True), OWN_DUAL, view_of(PEER_DUAL), UPLINK, 1)
    subnet6, endpoint6 = IPv6Network("fd05:2::/64"), Hop(IPv6Address("2001:db8::2"), 51821)
    assert state.links[1] == WireguardLink(
        "flannel-wg-v6", 51821, 1420, (IPv6Interface("fd05:1::/128"),), (WireguardPeer(KEY, endpoint6, (subnet6,)),)
    )
    assert Route(IPv6Network("fd05::/16"), "flannel-wg-v6") in state.routes


@pytest.mark.parametrize(("mode", "address"), [("ipv4", "192.0.2.2"), ("ipv6", "2001:db8::2"), ("auto", "192.0.2.2")])
def test_one_device_carries_both_families_in_the_other_modes(mode: str, address: str) -> None:
    options = config("wireguard", f'"Mode": "{mode}"', ipv6=True)
    own = replace(OWN_DUAL, attributes=replace(OWN_DUAL.attributes, backend_v6_data=data(OWN_KEY)))
    (link,) = wireguard.plan(options, own, view_of(PEER_DUAL), UPLINK, 1).links
    assert isinstance(link, WireguardLink)
    assert [(str(peer.endpoint.address), len(peer.allowed)) for peer in link.peers] == [(address, 2)]
    assert link.addresses == (IPv4Interface("10.5.1.0/32"), IPv6Interface("fd05:1::/128"))


def test_the_lease_carries_key_and_port() -> None:
    base = NodeAttributes(IPv4Address("192.0.2.1"))
    assert wireguard.attributes(base, config("wireguard"), LocalFacts("n", public_key=OWN_KEY)) == replace(
        base, backend_type="wireguard", backend_data=data(OWN_KEY), flanpy=FlanpyInfo("n")
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "BackendData: missing"),
        ("7", "BackendData: '7' is not an object"),
        ("{}", "BackendData.PublicKey: None is not a WireGuard key"),
        (data("AAAA"), "BackendData.PublicKey: 'AAAA' is not a WireGuard key"),
        (data("A" * 43 + "="), f"BackendData.PublicKey: '{'A' * 43}=' is not a WireGuard key"),
        (data(KEY6, 70000), "BackendData.Port: 70000 is not a UDP port"),
        (data(OWN_KEY), f"BackendData.PublicKey: {OWN_KEY} is our own"),
        (data(KEY), f"BackendData.PublicKey: {KEY} is that of 10.5.2.0/24"),
    ],
)
def test_bad_data_is_refused_and_the_others_stay(text: str | None, reason: str) -> None:
    bad = replace(lease("wireguard", "10.5.3.0/24", "192.0.2.3", text), create_revision=6)
    seen = wireguard.screen(config("wireguard"), OWN, view_of(PEER, bad), UPLINK)
    assert seen.peers == view_of(PEER).peers
    assert seen.refusals[0].reason.startswith(reason)


def test_a_public_key_is_what_openssl_makes_of_the_private_one() -> None:
    private = bytes.fromhex("18ee2e0993291bdb262a588a5871ba881ac46441c3833fd69654257ee2d3677a")
    assert public_key(private).hex() == "be6398fbad0e6b57938d6466fab8997f031b55f367d7f8f9435b3d01312eca18"
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        public_key(private[:31])


def test_the_key_is_made_once_kept_secret_and_never_replaced(tmp_path: Path) -> None:
    key, path = wireguard_key(tmp_path), tmp_path / "wireguard-key"
    assert (wireguard_key(tmp_path), stat.S_IMODE(path.stat().st_mode)) == (key, 0o600)
    for damaged in ("", "AAAA", "not base64"):
        path.write_text(damaged)
        with pytest.raises(PlatformError, match="wireguard-key: "):
            wireguard_key(tmp_path)
        assert path.read_text() == damaged
