"""WireGuard and IP-in-IP devices in real network namespaces; on a kernel that lacks them, the option that is named.

`make test-vm` runs this on a stock kernel, which has both.

namespace a   eth0 192.0.2.1  ──── veth ────  eth0 192.0.2.2   namespace b
              10.5.1.0/32 on the tunnel device   10.5.2.0/32
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flanpy.core.reconcile import Difference
from flanpy.core.x25519 import clamped, public_key
from flanpy.errors import PlatformError
from flanpy.kernel.ipip import ensure_ipip
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.routes import apply
from flanpy.kernel.wireguard import WireguardDevices
from flanpy.model import Hop, IpipLink, Route, WireguardLink, WireguardPeer
from tests.support.clusters import eventually
from tests.support.link_kinds import has_ipip, has_wireguard
from tests.support.namespaces import Namespace, inside, namespace

pytestmark = pytest.mark.root

PRIVATE = [clamped(bytes([number]) * 32) for number in (1, 2, 3)]
PUBLIC = [base64.b64encode(public_key(key)).decode() for key in PRIVATE]


def base(number: int) -> IPv4Interface:
    return IPv4Interface(f"10.5.{number}.0/32")


@contextmanager
def joined() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces with a cable between them."""
    with namespace() as a, namespace() as b:
        a.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.path)
        for number, side in ((1, a), (2, b)):
            side.ip(f"addr add 192.0.2.{number}/24 dev eth0\nlink set eth0 up")
        yield a, b


def answers(side: Namespace, number: int) -> bool:
    return " 1 received" in side.run("ping", "-c1", "-W2", "-I", f"10.5.{3 - number}.0", f"10.5.{number}.0", check=False)


def wireguard(number: int, *more: WireguardPeer) -> WireguardLink:
    other = 3 - number
    peer = WireguardPeer(PUBLIC[other - 1], Hop(IPv4Address(f"192.0.2.{other}"), 51820), (IPv4Network(f"10.5.{other}.0/24"),))
    return WireguardLink("flannel-wg", 51820, 1420, (base(number),), (peer, *more))


def test_wireguard_carries_packets_and_has_the_wanted_peers_alone() -> None:
    if not has_wireguard():
        with (
            namespace() as made,
            inside(made),
            Kernel() as kernel,
            pytest.raises(PlatformError, match=r"CONFIG_WIREGUARD.*modprobe"),
        ):
            WireguardDevices("").ensure(kernel, wireguard(1))
        return
    with joined() as (a, b):
        for number, side in ((2, b), (1, a)):
            with inside(side), Kernel() as kernel:
                devices = WireguardDevices(base64.b64encode(PRIVATE[number - 1]).decode())
                made = devices.ensure(kernel, wireguard(number))
                apply(kernel, Difference(frozenset({Route(IPv4Network("10.5.0.0/16"), "flannel-wg")})))
                again = devices.ensure(kernel, wireguard(number))
                assert (again.index, again.changed) == (made.index, ())
        eventually(lambda: answers(a, 2), 20, "packets arrive")
        with inside(a), Kernel() as kernel:
            devices = WireguardDevices(base64.b64encode(PRIVATE[0]).decode())
            assert devices.ensure(kernel, wireguard(1)).changed == (), "a restarted agent changes nothing"
            psk = base64.b64encode(bytes([9]) * 32).decode()
            third = WireguardPeer(PUBLIC[2], Hop(IPv4Address("192.0.2.3"), 51820), (IPv4Network("10.5.3.0/24"),), 25, psk)
            moved = replace(third, endpoint=Hop(IPv4Address("192.0.2.4"), 51821))
            for link, change in (
                (wireguard(1, third), f"peer {PUBLIC[2]} at 192.0.2.3:51820"),
                (wireguard(1, moved), f"peer {PUBLIC[2]} at 192.0.2.4:51821"),
                (wireguard(1), f"peer {PUBLIC[2]} removed"),
                (replace(wireguard(1), mtu_bytes=1300), "MTU 1420 -> 1300"),
            ):
                assert devices.ensure(kernel, link).changed == (change,)
                assert devices.ensure(kernel, link).changed == ()
        assert answers(a, 2)


def ipip(number: int) -> IpipLink:
    return IpipLink("flannel.ipip", IPv4Address(f"192.0.2.{number}"), "eth0", 1480, (base(number),))


def test_ipip_carries_packets_and_is_changed_in_place() -> None:
    if not has_ipip():
        with (
            namespace() as made,
            inside(made),
            Kernel() as kernel,
            pytest.raises(PlatformError, match=r"CONFIG_NET_IPIP.*modprobe"),
        ):
            ensure_ipip(kernel, ipip(1))
        return
    with joined() as (a, b):
        for number, side in ((1, a), (2, b)):
            with inside(side), Kernel() as kernel:
                made = ensure_ipip(kernel, ipip(number))
                assert ensure_ipip(kernel, ipip(number)).changed == ()
                gateway = IPv4Address(f"192.0.2.{3 - number}")
                route = Route(IPv4Network(f"10.5.{3 - number}.0/24"), "flannel.ipip", gateway=gateway, onlink=True)
                assert apply(kernel, Difference(frozenset({route}))).failed == ()
        assert answers(a, 2)
        with inside(b), Kernel() as kernel:
            changed = ensure_ipip(kernel, replace(ipip(2), mtu_bytes=1400, local=IPv4Address("192.0.2.9")))
            assert changed.index == made.index
            assert set(changed.changed) == {"local 192.0.2.2 -> 192.0.2.9", "MTU 1480 -> 1400"}
            ensure_ipip(kernel, ipip(2))
        assert answers(a, 2)
