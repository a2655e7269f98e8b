"""The tunnel device in a real network namespace: exactly as wanted, changed only where it differs.

namespace   flannel0 (tun)   eth9 (veth, stands for a device that is not ours)
"""

import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface

import pytest

from flanpy.core.reconcile import Difference
from flanpy.errors import PlatformError, ResourceBusy
from flanpy.kernel.devices import list_addresses
from flanpy.kernel.links import Ensured, ensure_tunnel, find_device, remove_link
from flanpy.kernel.netlink import Kernel, explained
from flanpy.kernel.routes import apply, list_routes
from flanpy.model import Route, Tunnel
from tests.support.namespaces import Namespace, inside, namespace, without_net_admin

pytestmark = pytest.mark.root

TUNNEL = Tunnel("flannel0", 1472, (IPv4Interface("10.5.1.0/32"),))
DUAL = Tunnel("flannel0", 1472, (IPv4Interface("10.5.1.1/24"), IPv6Interface("fd05::1/64")))


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made, inside(made):
        made.ip("tuntap add flannel0 mode tun\nlink add eth9 type veth peer name eth8")
        yield made


@pytest.fixture
def kernel(ns: Namespace) -> Iterator[Kernel]:
    with Kernel() as opened:
        yield opened


def state(ns: Namespace, name: str = "flannel0") -> tuple[object, ...]:
    """MTU, queue length, whether up, and every address with its flags, as iproute2 sees them."""
    (device,) = json.loads(ns.run("ip", "-j", "addr", "show", "dev", name))
    flags = ("noprefixroute", "nodad", "secondary", "tentative")
    addresses = [
        (a["local"], a["prefixlen"], a["scope"], *(flag for flag in flags if a.get(flag)))
        for a in device["addr_info"]
        if "local" in a
    ]
    return device["mtu"], device["txqlen"], "UP" in device["flags"], addresses


def index_of(name: str = "flannel0") -> int:
    return socket.if_nametoindex(name)


@contextmanager
def carrier(name: str) -> Iterator[None]:
    """Hold the TUN device open, so that it has a carrier."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))
        yield
    finally:
        os.close(fd)


def test_a_new_device_gets_everything_and_the_second_call_changes_nothing(ns: Namespace, kernel: Kernel) -> None:
    done = ensure_tunnel(kernel, TUNNEL)
    assert done == Ensured(index_of(), ("MTU 1500 -> 1472", "txqueuelen 500 -> 1000", "address 10.5.1.0/32 added", "set up"))
    assert state(ns) == (1472, 1000, True, [("10.5.1.0", 32, "global")])
    assert ensure_tunnel(kernel, TUNNEL) == Ensured(index_of(), ())
    assert json.loads(ns.run("ip", "-j", "route", "show", "dev", "flannel0") or "[]") == []


def test_both_families_leave_the_routes_to_us(ns: Namespace, kernel: Kernel) -> None:
    ensure_tunnel(kernel, DUAL)
    v4, v6 = ("10.5.1.1", 24, "global", "noprefixroute"), ("fd05::1", 64, "global", "noprefixroute", "nodad")
    assert state(ns) == (1472, 1000, True, [v4, v6])
    assert ensure_tunnel(kernel, DUAL) == Ensured(index_of(), ())
    for family in ("-4", "-6"):
        assert "flannel0" not in ns.run("ip", family, "route", "show", "table", "main")


def test_a_device_of_a_host_without_ipv6_has_it_when_it_is_to_have_an_address(ns: Namespace, kernel: Kernel) -> None:
    ns.script("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
    with pytest.raises(PlatformError, match="IPv6 is disabled"), explained("try"):
        kernel.ip.addr("add", index=index_of(), address="fd05::9", prefixlen=128)
    ensure_tunnel(kernel, DUAL)
    assert ("fd05::1", 64, "global", "noprefixroute", "nodad") in state(ns)[3]
    assert ns.run("sysctl", "-n", "net.ipv6.conf.default.disable_ipv6").strip() == "1", "and no other device"


def test_the_device_speaks_no_ipv6_of_its_own(ns: Namespace, kernel: Kernel) -> None:
    with carrier("flannel0"):
        ensure_tunnel(kernel, TUNNEL)
        assert ns.run("ip", "-6", "addr", "show", "dev", "flannel0") == ""
        assert "addrgenmode none" in ns.run("ip", "-d", "link", "show", "dev", "flannel0")


def test_an_ipv6_address_that_the_kernel_had_made_is_removed(ns: Namespace, kernel: Kernel) -> None:
    with carrier("flannel0"):
        ns.script("ip link set flannel0 up; ip addr add fe80::7/64 dev flannel0 nodad")
        ensure_tunnel(kernel, TUNNEL)
    assert state(ns) == (1472, 1000, True, [("10.5.1.0", 32, "global")])


def test_addresses_of_an_earlier_run_go(ns: Namespace, kernel: Kernel) -> None:
    ns.script(
        "ip addr add 10.5.7.0/32 dev flannel0; ip addr add 10.5.1.9/24 dev flannel0; ip -6 addr add fd07::1/64 dev flannel0"
    )
    done = ensure_tunnel(kernel, TUNNEL)
    assert state(ns) == (1472, 1000, True, [("10.5.1.0", 32, "global")])
    assert {line for line in done.changed if line.endswith("removed")} == {
        "address 10.5.7.0/32 removed",
        "address 10.5.1.9/24 removed",
        "address fd07::1/64 removed",
    }


def test_a_new_address_in_the_subnet_of_the_old_one_survives_its_removal(ns: Namespace, kernel: Kernel) -> None:
    ensure_tunnel(kernel, DUAL)
    moved = replace(DUAL, addresses=(IPv4Interface("10.5.1.2/24"),))
    ensure_tunnel(kernel, moved)
    assert state(ns)[3] == [("10.5.1.2", 24, "global", "noprefixroute")]
    assert ensure_tunnel(kernel, moved) == Ensured(index_of(), ())


def test_a_changed_address_leaves_the_routes_in_place(ns: Namespace, kernel: Kernel) -> None:
    ensure_tunnel(kernel, TUNNEL)
    route = Route(IPv4Network("10.5.0.0/16"), "flannel0")
    apply(kernel, Difference(frozenset((route,))))
    ensure_tunnel(kernel, replace(TUNNEL, addresses=(IPv4Interface("10.5.2.0/32"),)))
    assert list_routes(kernel) == {route}


def test_an_address_with_a_prefix_route_is_corrected(ns: Namespace, kernel: Kernel) -> None:
    ns.script("ip link set flannel0 up; ip addr add 10.5.1.1/24 dev flannel0; ip -6 addr add fd05::1/64 dev flannel0 nodad")
    ensure_tunnel(kernel, DUAL)
    assert [address[3] for address in state(ns)[3]] == ["noprefixroute", "noprefixroute"]
    assert ensure_tunnel(kernel, DUAL) == Ensured(index_of(), ())


@pytest.mark.parametrize(
    ("damage", "repair"),
    [
        ("ip addr flush dev flannel0", ("address 10.5.1.0/32 added",)),
        ("ip link set flannel0 down", ("set up",)),
        ("ip link set flannel0 mtu 1300", ("MTU 1300 -> 1472",)),
        ("ip link set flannel0 txqueuelen 5", ("txqueuelen 5 -> 1000",)),
        ("ip addr add 10.200.0.1/16 dev flannel0", ("address 10.200.0.1/16 removed",)),
    ],
)
def test_what_somebody_changed_is_put_right(ns: Namespace, kernel: Kernel, damage: str, repair: tuple[str, ...]) -> None:
    ensure_tunnel(kernel, TUNNEL)
    wanted = state(ns)
    ns.script(damage)
    assert ensure_tunnel(kernel, TUNNEL) == Ensured(index_of(), repair)
    assert state(ns) == wanted


def test_a_device_that_is_gone_is_an_error_that_says_so(ns: Namespace, kernel: Kernel) -> None:
    ensure_tunnel(kernel, TUNNEL)
    ns.script("ip link del flannel0")
    with pytest.raises(PlatformError, match="flannel0: the tunnel device is not there"):
        ensure_tunnel(kernel, TUNNEL)


@pytest.mark.parametrize("make", ["ip link set eth9 name flannel1", "ip link add flannel1 type bridge"])
def test_a_name_that_belongs_to_somebody_else_is_left_alone(ns: Namespace, kernel: Kernel, make: str) -> None:
    ns.script(make)
    before = state(ns, "flannel1")
    with pytest.raises(ResourceBusy, match=r"flannel1: a (veth|bridge) device has this name"):
        ensure_tunnel(kernel, replace(TUNNEL, name="flannel1"))
    with pytest.raises(ResourceBusy, match=r"flannel1: a (veth|bridge) device has this name"):
        remove_link(kernel, "flannel1")
    assert state(ns, "flannel1") == before


def test_a_device_is_removed_once(ns: Namespace, kernel: Kernel) -> None:
    assert remove_link(kernel, "flannel0") is True
    assert remove_link(kernel, "flannel0") is False
    assert find_device(kernel, "flannel0") is None


def test_a_kernel_without_ipv6_on_the_device_does_not_stop_us(ns: Namespace, kernel: Kernel) -> None:
    ns.script("echo 1 > /proc/sys/net/ipv6/conf/flannel0/disable_ipv6")
    ensure_tunnel(kernel, TUNNEL)
    assert state(ns) == (1472, 1000, True, [("10.5.1.0", 32, "global")])


def test_without_the_right_to_configure_the_cure_is_named(ns: Namespace) -> None:
    before = state(ns)
    with without_net_admin(), Kernel() as kernel, pytest.raises(PlatformError, match=r"configure flannel0: .*CAP_NET_ADMIN"):
        ensure_tunnel(kernel, TUNNEL)
    assert state(ns) == before


def test_an_impossible_mtu_is_refused_with_the_kernels_words(kernel: Kernel) -> None:
    with pytest.raises(PlatformError, match=r"configure flannel0: "):
        ensure_tunnel(kernel, replace(TUNNEL, mtu_bytes=70000))


def test_opening_and_closing_leaks_no_descriptor(ns: Namespace) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, not paths

    with Kernel() as kernel:
        list_addresses(kernel)
    before = opened()
    for _ in range(20):
        with Kernel() as kernel:
            list_addresses(kernel)
        kernel.close()
    assert opened() == before
