"""When the endpoint of a WireGuard peer is written again: pure decisions, no kernel."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from flanpy.kernel import wireguard
from flanpy.kernel.wireguard import PeerThere, WireguardDevices
from flanpy.model import Hop, WireguardPeer

LEASED = Hop(IPv4Address("192.0.2.1"), 51820)
ROAMED = Hop(IPv4Address("192.0.2.77"), 40000)
ALLOWED = IPv4Network("10.5.1.0/24")
PEER = WireguardPeer(public_key="k", endpoint=LEASED, allowed=(ALLOWED,))


class Clock:
    """Monotonic time by hand, and a time of day that nobody may ask for."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(wireguard, "time", made)
    return made


def differs(devices: WireguardDevices, endpoint: Hop, handshake_s: int) -> bool:
    there = PeerThere(endpoint, frozenset({ALLOWED}), PEER.keepalive_s, wireguard._NO_KEY, handshake_s)
    return devices._differs("flannel-wg", PEER, there)


@pytest.mark.parametrize("handshake_s", [1, 1_900_000_000, 4_000_000_000], ids=["long ago", "about now", "in the future"])
def test_a_peer_that_roams_keeps_its_endpoint_whatever_the_clock_on_the_wall_says(clock: Clock, handshake_s: int) -> None:
    devices = WireguardDevices("")
    assert not differs(devices, ROAMED, handshake_s)
    for number in range(1, 5):
        clock.now_s += wireguard.SILENT_S - 1
        assert not differs(devices, ROAMED, handshake_s + 120 * number), "it has shaken hands meanwhile"


def test_a_peer_that_has_fallen_silent_is_sought_where_its_lease_says(clock: Clock) -> None:
    devices = WireguardDevices("")
    assert not differs(devices, ROAMED, 7)
    clock.now_s += wireguard.SILENT_S + 1
    assert differs(devices, ROAMED, 7)
    assert not differs(devices, LEASED, 7), "it is there already"


def test_a_peer_that_has_never_shaken_hands_is_sought_at_once(clock: Clock) -> None:
    assert differs(WireguardDevices(""), ROAMED, 0)
