"""The monitor in a real network namespace: each change by somebody else is told, our own and foreign ones are not.

namespace   flannel0 (tun, up)   v0 10.9.0.1/24 == v1 (both here, up)
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface

import pytest

from flanpy.core.reconcile import Difference, diff
from flanpy.kernel.devices import device_names, list_devices
from flanpy.kernel.messages import split
from flanpy.kernel.monitor import AddressChanged, KernelEvent, LinkChanged, Monitor, Overrun, RouteChanged, subscribe
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.route_codec import RTM_NEWROUTE, parse
from flanpy.kernel.routes import apply, list_routes
from flanpy.model import Route
from tests.support.namespaces import Namespace, inside, namespace, without_net_admin

pytestmark = pytest.mark.root

SETUP = """
tuntap add flannel0 mode tun
link set flannel0 up
link add v0 type veth peer name v1
link set v0 addrgenmode none up
link set v1 addrgenmode none up
addr add 10.9.0.1/24 dev v0
"""
OURS = Route(IPv4Network("10.5.0.0/16"), "flannel0")
DEADLINE_S = 5.0


def plain(event: KernelEvent) -> KernelEvent:
    """The event with index 0: which numbers the kernel gives depends on what it puts into a new namespace by itself."""
    return replace(event, index=0) if isinstance(event, LinkChanged | AddressChanged) else event


class Heard:
    """What a monitor has told (``plain``; ``indexes`` has the numbers), and a wait for it."""

    def __init__(self) -> None:
        self.events: list[KernelEvent] = []
        self.indexes: dict[str, int] = {}
        self._news = threading.Condition()
        self.gate = threading.Event()
        self.gate.set()

    def sink(self, event: KernelEvent) -> None:
        with self._news:
            self.events.append(plain(event))
            if isinstance(event, LinkChanged):
                self.indexes[event.name] = event.index
            self._news.notify_all()
        assert self.gate.wait(DEADLINE_S)

    def until(self, holds: Callable[[list[KernelEvent]], bool]) -> list[KernelEvent]:
        with self._news:
            assert self._news.wait_for(lambda: holds(self.events), DEADLINE_S), self.events
            return list(self.events)


def wait_for_carriers() -> None:
    """The kernel tells of a carrier, or the lack of one, somewhat late; what is still to be told must not disturb a test."""
    deadline = time.monotonic() + DEADLINE_S
    with Kernel() as kernel:
        while {device.name for device in list_devices(kernel) if device.is_running} != {"lo", "v0", "v1"}:
            assert time.monotonic() < deadline, list_devices(kernel)


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made, inside(made):
        made.ip(SETUP)
        wait_for_carriers()
        yield made


@contextmanager
def listening(**options: object) -> Iterator[Heard]:
    heard = Heard()
    with Monitor(heard.sink, **options):  # type: ignore[arg-type]
        yield heard


def told_by(ns: Namespace, heard: Heard, script: str) -> list[KernelEvent]:
    """All that is told about a script: a change of lo's MTU after it marks the end."""
    ns.script(script)
    mtu = 2000 + len(heard.events)
    ns.script(f"ip link set lo mtu {mtu}")
    mark = LinkChanged(0, "lo", True, mtu, False)
    return [event for event in heard.until(lambda events: mark in events) if event != mark]


@pytest.mark.parametrize(
    ("script", "event"),
    [
        ("ip route del 10.5.0.0/16", RouteChanged(OURS, 102, True)),
        (
            "ip route add default via 10.9.0.2",
            RouteChanged(Route(IPv4Network("0.0.0.0/0"), "v0", IPv4Address("10.9.0.2"), protocol=3), 3, False),
        ),
        ("ip addr add 10.9.7.1/24 dev v0", AddressChanged(0, IPv4Interface("10.9.7.1/24"), False)),
        ("ip -6 addr add fd09::1/64 dev v0 nodad", AddressChanged(0, IPv6Interface("fd09::1/64"), False)),
        ("ip addr flush dev v0", AddressChanged(0, IPv4Interface("10.9.0.1/24"), True)),
        ("ip link set v0 mtu 1400", LinkChanged(0, "v0", True, 1400, False)),
        ("ip link set v0 down", LinkChanged(0, "v0", False, 1500, False)),
        ("ip link set v1 down", LinkChanged(0, "v0", False, 1500, False)),
        ("ip link del flannel0", LinkChanged(0, "flannel0", False, 1500, True)),
        ("ip link add new0 type bridge", LinkChanged(0, "new0", False, 1500, False)),
    ],
)
def test_each_change_by_somebody_else_is_told(ns: Namespace, script: str, event: KernelEvent) -> None:
    ns.script("ip route add 10.5.0.0/16 dev flannel0 proto 102")
    with listening() as heard:
        ns.script(script)
        heard.until(lambda events: event in events)


def test_a_link_that_goes_down_and_up_at_once_is_told_though_it_looks_the_same(ns: Namespace) -> None:
    with listening() as heard:
        ns.script("ip link set v0 down; ip link set v0 up")
        heard.until(lambda events: LinkChanged(0, "v0", True, 1500, False) in events)


def test_foreign_routes_and_refreshed_addresses_tell_nothing(ns: Namespace) -> None:
    with listening() as heard:
        told = told_by(
            ns,
            heard,
            """
            ip route add 10.70.0.0/16 dev v0 proto static
            ip route replace 10.70.0.0/16 dev v1 proto static
            ip route del 10.70.0.0/16
            ip -6 route add fd70::/64 dev v0
            ip addr replace 10.9.0.1/24 dev v0
            ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:01 dev v0
            """,
        )
    assert told == []


def test_foreign_routes_do_not_even_reach_the_socket(ns: Namespace) -> None:
    """So they wake nobody: of the routes of two protocols and a default route, the socket holds ours and the default."""
    foreign = Route(IPv4Network("10.70.0.0/16"), "v0", protocol=4)
    default = Route(IPv4Network("0.0.0.0/0"), "v0", protocol=4)
    with Kernel() as other, closing(subscribe((), 102, 1 << 20)) as netlink:
        names = device_names(other)
        apply(other, Difference(frozenset((foreign,))))
        apply(other, Difference(frozenset((default,))))
        apply(other, Difference(frozenset((OURS,))))
        seen: list[Route | None] = []
        while OURS not in seen:
            seen += [parse(m.body, names) for m in split(memoryview(netlink.socket.recv(65536))) if m.kind == RTM_NEWROUTE]
    assert seen == [default, OURS]


def test_what_our_own_socket_does_is_not_told_but_the_same_by_another_is(ns: Namespace) -> None:
    with Kernel() as ours, Kernel() as other, listening(own_ports=ours.ports) as heard:
        apply(ours, Difference(frozenset((OURS,))))
        assert told_by(ns, heard, "true") == []
        apply(other, Difference(remove=frozenset((OURS,))))
        heard.until(lambda events: RouteChanged(OURS, 102, True) in events)


def test_the_burst_of_a_removed_device_is_told_without_repetition(ns: Namespace) -> None:
    indexes = {name: socket.if_nametoindex(name) for name in ("v0", "v1")}
    with listening() as heard:
        told = told_by(ns, heard, "ip link del v0")
    assert len(told) == len(set(told))
    assert {LinkChanged(0, "v0", False, 1500, True), LinkChanged(0, "v1", False, 1500, True)} <= set(told)
    assert heard.indexes.items() >= indexes.items()


def test_a_flood_of_our_routes_becomes_one_overrun_and_a_new_look_repairs_it(ns: Namespace) -> None:
    wanted = frozenset(Route(IPv4Network((0x0A800000 + (i << 8), 24)), "flannel0") for i in range(3000))
    with Kernel() as ours, listening(own_ports=ours.ports) as heard:
        apply(ours, Difference(wanted))
        ns.script("ip route flush proto 102")
        events = heard.until(lambda events: any(isinstance(event, Overrun) for event in events))
        assert len(events) < 1000
        apply(ours, diff(wanted, list_routes(ours)))
        assert list_routes(ours) == wanted


def test_an_overrun_of_the_socket_is_told_and_the_monitor_goes_on(ns: Namespace) -> None:
    """The sink is held, the buffer is as small as the kernel allows, and more is written than it takes."""
    with Kernel() as other, listening(buffer_bytes=2048) as heard:
        heard.gate.clear()
        ns.script("ip link set v0 mtu 1400")
        heard.until(lambda events: len(events) == 1)
        apply(other, Difference(frozenset(Route(IPv4Network((0x0A800000 + (i << 8), 24)), "flannel0") for i in range(500))))
        heard.gate.set()
        heard.until(lambda events: Overrun("the kernel dropped notifications") in events)
        ns.script("ip link set v0 mtu 1300")
        heard.until(lambda events: LinkChanged(0, "v0", True, 1300, False) in events)


def test_nothing_that_happens_after_the_constructor_is_missed(ns: Namespace) -> None:
    with Kernel() as other:
        for turn in range(20):
            there = frozenset((OURS,))
            with listening() as heard:
                apply(other, Difference(there) if turn % 2 == 0 else Difference(remove=there))
                heard.until(lambda events, gone=turn % 2 == 1: RouteChanged(OURS, 102, gone) in events)


def test_it_closes_at_once_also_under_a_flood(ns: Namespace) -> None:
    stop = threading.Event()

    def flood() -> None:
        with Kernel() as other:
            while not stop.is_set():
                apply(other, Difference(frozenset((OURS,))))
                apply(other, Difference(remove=frozenset((OURS,))))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        monitor = Monitor(lambda event: None)
        started = time.monotonic()
        monitor.close()
        assert time.monotonic() - started < 2, "not when the flood ends"
        monitor.close()
    finally:
        stop.set()
        thread.join()


def test_opening_and_closing_leaks_neither_descriptor_nor_thread(ns: Namespace) -> None:
    Monitor(lambda event: None).close()
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())  # noqa: PTH208
    for _ in range(20):
        Monitor(lambda event: None).close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before  # noqa: PTH208


def test_watching_needs_no_capability(ns: Namespace) -> None:
    with without_net_admin(), listening() as heard:
        thread = next(thread for thread in threading.enumerate() if thread.name == "kernel-monitor")
        assert thread.is_alive()
    assert heard.events == []
