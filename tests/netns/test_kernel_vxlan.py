"""VXLAN devices and their entries in a real network namespace: exactly as wanted, changed in place, made anew only where it must be.

namespace   eth0 (veth, 192.0.2.1)   eth1 (veth)   flannel.1 (vxlan on eth0)
"""

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest

from flanpy.errors import PlatformError, ResourceBusy
from flanpy.kernel.neighbours import list_entries, remove_entries, write_entries
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.vxlan import ensure_vxlan, list_vxlan
from flanpy.model import FdbEntry, Neighbour, VxlanLink
from tests.support.namespaces import Namespace, inside, namespace

pytestmark = pytest.mark.root

LINK = VxlanLink(
    "flannel.1", 1, 8472, "02:00:00:00:00:01", IPv4Address("192.0.2.1"), "eth0", 1450, (IPv4Interface("10.5.1.0/32"),)
)
LINK6 = replace(
    LINK, name="flannel-v6.1", local=IPv6Address("2001:db8::1"), mtu_bytes=1430, addresses=(IPv6Interface("fd05:1::/128"),)
)


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made, inside(made):
        made.ip(
            "link add eth0 type veth peer name eth1\nlink set eth0 up\nlink set eth1 up\naddr add 192.0.2.1/24 dev eth0\n"
            "addr add 2001:db8::1/64 dev eth0 nodad"
        )
        yield made


@pytest.fixture
def kernel(ns: Namespace) -> Iterator[Kernel]:
    with Kernel() as opened:
        yield opened


def test_a_device_is_made_once_and_then_left_alone(kernel: Kernel) -> None:
    made = ensure_vxlan(kernel, LINK)
    assert made.changed == ("made", "address 10.5.1.0/32 added", "set up")
    again = ensure_vxlan(kernel, LINK)
    assert (again.index, again.changed) == (made.index, ())
    found = list_vxlan(kernel)["flannel.1"]
    assert (found.mac, found.fixed, found.local, found.learning, found.device.mtu_bytes) == (
        LINK.mac,
        (1, 8472, False, False),
        LINK.local,
        False,
        1450,
    )


def test_an_ipv6_underlay_is_carried_too(kernel: Kernel) -> None:
    ensure_vxlan(kernel, LINK)
    ensure_vxlan(kernel, LINK6)
    assert list_vxlan(kernel)["flannel-v6.1"].local == IPv6Address("2001:db8::1")
    assert ensure_vxlan(kernel, LINK6).changed == ()


@pytest.mark.parametrize(
    "wanted",
    [
        replace(LINK, mtu_bytes=1400),
        replace(LINK, mac="02:00:00:00:00:07"),
        replace(LINK, learning=True),
        replace(LINK, local=IPv4Address("192.0.2.7")),
        replace(LINK, uplink="eth1"),
        replace(LINK, addresses=(IPv4Interface("10.5.9.0/32"),)),
    ],
)
def test_what_can_be_changed_is_changed_in_place(kernel: Kernel, wanted: VxlanLink) -> None:
    before = ensure_vxlan(kernel, LINK).index
    changed = ensure_vxlan(kernel, wanted)
    assert changed.index == before
    assert changed.changed
    assert ensure_vxlan(kernel, wanted).changed == ()


@pytest.mark.parametrize("wanted", [replace(LINK, vni=2), replace(LINK, port=4789), replace(LINK, gbp=True)])
def test_what_cannot_be_changed_makes_the_device_anew(kernel: Kernel, wanted: VxlanLink) -> None:
    before = ensure_vxlan(kernel, LINK).index
    changed = ensure_vxlan(kernel, wanted)
    assert changed.index != before
    assert changed.changed[0].startswith("removed")
    assert ensure_vxlan(kernel, wanted).changed == ()


def test_a_device_of_another_kind_is_left_alone(ns: Namespace, kernel: Kernel) -> None:
    ns.ip("link add flannel.1 type bridge")
    with pytest.raises(ResourceBusy, match=r"^flannel\.1: a bridge device has this name"):
        ensure_vxlan(kernel, LINK)
    assert "bridge" in ns.run("ip", "-d", "link", "show", "flannel.1")


def test_without_its_uplink_the_device_waits(kernel: Kernel) -> None:
    with pytest.raises(PlatformError, match="^eth7: the underlay device is gone"):
        ensure_vxlan(kernel, replace(LINK, uplink="eth7"))


def test_a_port_that_another_device_has_is_said(ns: Namespace, kernel: Kernel) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 8472))
        with pytest.raises(ResourceBusy, match=r"flannel\.1"):
            ensure_vxlan(kernel, LINK)


ENTRIES = frozenset(
    {
        Neighbour("flannel.1", IPv4Address("10.5.2.0"), "02:00:00:00:00:02"),
        FdbEntry("flannel.1", "02:00:00:00:00:02", IPv4Address("192.0.2.2")),
        Neighbour("flannel-v6.1", IPv6Address("fd05:2::"), "02:00:00:00:06:02"),
        FdbEntry("flannel-v6.1", "02:00:00:00:06:02", IPv6Address("2001:db8::2")),
    }
)


def test_entries_are_written_read_back_replaced_and_removed(ns: Namespace, kernel: Kernel) -> None:
    for link in (LINK, LINK6):
        ensure_vxlan(kernel, link)
    devices = ("flannel.1", "flannel-v6.1")
    ns.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
    assert write_entries(kernel, ENTRIES) == ()
    assert list_entries(kernel, devices) == ENTRIES
    moved = FdbEntry("flannel.1", "02:00:00:00:00:02", IPv4Address("192.0.2.3"))
    assert write_entries(kernel, [moved]) == ()
    assert moved in list_entries(kernel, devices)
    assert len(list_entries(kernel, devices)) == 4
    assert remove_entries(kernel, [*ENTRIES, moved]) == ()
    assert list_entries(kernel, devices) == frozenset()
    assert "192.0.2.9" in ns.run("ip", "neigh", "show", "dev", "eth0")


def test_one_entry_that_cannot_be_written_does_not_keep_the_others(kernel: Kernel) -> None:
    ensure_vxlan(kernel, LINK)
    good = FdbEntry("flannel.1", "02:00:00:00:00:02", IPv4Address("192.0.2.2"))
    bad = [FdbEntry("flannel.1", "02:00:00:00:00:03", IPv6Address("2001:db8::2")), replace(good, device="flannel.9")]
    failed = write_entries(kernel, [bad[0], good, bad[1]])
    assert [entry for entry, _ in failed] == bad
    assert list_entries(kernel, ["flannel.1"]) == {good}
