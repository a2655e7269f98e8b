"""Routes in a real network namespace: what is written is there, what is foreign stays, what is done is not done again.

    namespace   flannel0 (tun, up)   v0 10.9.0.1/24 == v1 (both here, up)

``ip -j route`` is the second opinion throughout.
"""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanpy.core.reconcile import Difference, diff
from flanpy.errors import PlatformError
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.routes import Applied, apply, default_routes, list_routes
from flanpy.model import Route
from tests.support.namespaces import Namespace, inside, namespace, without_net_admin

pytestmark = pytest.mark.root

SETUP = """
tuntap add flannel0 mode tun
link set flannel0 up
link add v0 type veth peer name v1
link set v0 up
link set v1 up
addr add 10.9.0.1/24 dev v0
addr add fd09::1/64 dev v0 nodad
"""

ONLINK = Route(IPv4Network("10.5.0.0/16"), "flannel0")
GATEWAY = Route(IPv4Network("10.6.1.0/24"), "v0", gateway=IPv4Address("10.9.0.2"), source=IPv4Address("10.9.0.1"), metric=50)
OTHER_TABLE = Route(IPv4Network("10.6.2.0/24"), "v0", gateway=IPv4Address("172.16.0.1"), table=1000, onlink=True)
ONLINK6 = Route(IPv6Network("fd05::/48"), "flannel0")
GATEWAY6 = Route(IPv6Network("fd06::/64"), "v0", gateway=IPv6Address("fd09::2"), metric=7)
ALL = frozenset((ONLINK, GATEWAY, OTHER_TABLE, ONLINK6, GATEWAY6))


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made, inside(made):
        made.ip(SETUP)
        yield made


@pytest.fixture
def kernel(ns: Namespace) -> Iterator[Kernel]:
    with Kernel() as opened:
        yield opened


def add(*routes: Route) -> Difference[Route]:
    return Difference(frozenset(routes))


def shown(ns: Namespace) -> list[tuple[object, ...]]:
    """Every route of every table but the kernel's own, as iproute2 sees them."""
    found = [
        route
        for family in ("-4", "-6")
        for route in json.loads(ns.run("ip", "-N", "-j", family, "route", "show", "table", "all") or "[]")
        if route["protocol"] != "2"
    ]
    keys = ("dst", "dev", "gateway", "prefsrc", "metric", "table", "protocol")
    return sorted((tuple(route.get(key) for key in keys) for route in found), key=str)


def flags_of(ns: Namespace, destination: str, *table: str) -> list[str]:
    (route,) = json.loads(ns.run("ip", "-j", "route", "show", destination, *table))
    return [flag for flag in route["flags"] if flag != "linkdown"]


def test_routes_of_every_shape_are_written_as_they_are_meant(ns: Namespace, kernel: Kernel) -> None:
    assert apply(kernel, Difference(ALL)) == Applied(added=tuple(ALL))
    assert list_routes(kernel) == ALL
    assert shown(ns) == [
        ("10.5.0.0/16", "flannel0", None, None, None, None, "102"),
        ("10.6.1.0/24", "v0", "10.9.0.2", "10.9.0.1", 50, None, "102"),
        ("10.6.2.0/24", "v0", "172.16.0.1", None, None, "1000", "102"),
        ("fd05::/48", "flannel0", None, None, 1024, None, "102"),
        ("fd06::/64", "v0", "fd09::2", None, 7, None, "102"),
    ]
    assert flags_of(ns, "10.6.2.0/24", "table", "1000") == ["onlink"]
    assert flags_of(ns, "10.6.1.0/24") == []


def test_the_second_application_changes_nothing(ns: Namespace, kernel: Kernel) -> None:
    apply(kernel, Difference(ALL))
    before = shown(ns)
    assert apply(kernel, Difference(ALL)) == Applied()
    assert diff(ALL, list_routes(kernel)) == Difference()
    assert shown(ns) == before


def test_what_is_gone_already_is_removed_without_complaint(ns: Namespace, kernel: Kernel) -> None:
    apply(kernel, Difference(ALL))
    ns.script("ip route del 10.5.0.0/16")
    done = apply(kernel, Difference(remove=ALL))
    assert (set(done.removed), done.failed) == (ALL - {ONLINK}, ())
    assert apply(kernel, Difference(remove=ALL)) == Applied()
    assert (list_routes(kernel), shown(ns)) == (frozenset(), [])


def test_foreign_routes_are_neither_listed_nor_touched(ns: Namespace, kernel: Kernel) -> None:
    ns.script("ip route add 10.77.0.0/16 dev v0 proto static; ip -6 route add fd77::/64 dev v0 proto static")
    foreign = shown(ns)
    apply(kernel, Difference(ALL))
    assert list_routes(kernel) == ALL
    apply(kernel, Difference(remove=ALL))
    apply(kernel, Difference(remove=frozenset((Route(IPv4Network("10.77.0.0/16"), "v0"), Route(IPv6Network("fd77::/64"), "v0")))))
    assert shown(ns) == foreign


@pytest.mark.parametrize("wanted", [ONLINK, ONLINK6], ids=["ipv4", "ipv6"])
def test_a_foreign_route_to_the_same_destination_fails_that_route_alone(ns: Namespace, kernel: Kernel, wanted: Route) -> None:
    ns.script(f"ip route add {wanted.destination} dev v0 proto static")
    foreign = shown(ns)
    done = apply(kernel, Difference(ALL))
    assert set(done.added) == ALL - {wanted}
    ((route, reason),) = done.failed
    assert route == wanted
    assert reason.startswith(f"a route that is not ours is there: {wanted.destination} dev v0 proto static")
    assert set(foreign) <= set(shown(ns))
    ns.script(f"ip route del {wanted.destination} proto static")
    assert apply(kernel, diff(ALL, list_routes(kernel))) == Applied(added=(wanted,))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ONLINK, Route(ONLINK.destination, "v0", gateway=IPv4Address("10.9.0.7"))),
        (GATEWAY, replace(GATEWAY, gateway=IPv4Address("10.9.0.3"))),
        (GATEWAY, replace(GATEWAY, source=None)),
        (replace(GATEWAY, source=None), GATEWAY),
        (GATEWAY, replace(GATEWAY, onlink=True)),
        (replace(GATEWAY, onlink=True), GATEWAY),
        (replace(GATEWAY, gateway=None), GATEWAY),
        (ONLINK6, Route(ONLINK6.destination, "v0", gateway=IPv6Address("fd09::7"))),
        (GATEWAY6, replace(GATEWAY6, gateway=IPv6Address("fd09::3"))),
        (GATEWAY6, replace(GATEWAY6, source=IPv6Address("fd09::1"))),
        (replace(GATEWAY6, source=IPv6Address("fd09::1")), GATEWAY6),
        (GATEWAY6, replace(GATEWAY6, gateway=None)),
        (GATEWAY6, replace(GATEWAY6, metric=8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("told", ["as a difference", "as an addition"])
def test_a_route_is_replaced_by_another_to_the_same_place(kernel: Kernel, old: Route, new: Route, told: str) -> None:
    apply(kernel, add(old))
    if told == "as a difference":
        done = apply(kernel, diff(frozenset((new,)), list_routes(kernel)))
        assert done == Applied(added=(new,), removed=(old,))
        assert list_routes(kernel) == {new}
    elif old.metric == new.metric:
        done = apply(kernel, add(new))
        assert (done.added, done.failed) == ((new,), ())
        assert list_routes(kernel) == {new}


@pytest.mark.parametrize(
    ("old", "new"),
    [(GATEWAY, replace(GATEWAY, gateway=IPv4Address("10.9.0.3"))), (GATEWAY6, replace(GATEWAY6, gateway=IPv6Address("fd09::3")))],
)
def test_a_replacement_leaves_no_moment_without_a_route(ns: Namespace, kernel: Kernel, old: Route, new: Route) -> None:
    """The kernel's own record of what happened: the new route comes before the old one goes, or in its place."""
    apply(kernel, add(old))
    with Kernel() as recorder:
        recorder.ip.bind(groups=0x40 | 0x400)
        for turn in range(10):
            there, wanted = (old, new) if turn % 2 == 0 else (new, old)
            assert apply(kernel, Difference(frozenset((wanted,)), frozenset((there,)))).failed == ()
        seen = 0
        alive = 1
        while seen < 10:
            for message in recorder.ip.get():
                if message["event"] == "RTM_NEWROUTE" and message["proto"] == 102:
                    seen += 1
                    alive += not message["header"]["flags"] & 0x100  # NLM_F_REPLACE
                elif message["event"] == "RTM_DELROUTE":
                    alive -= 1
                assert alive >= 1
    assert list_routes(kernel) == {old}


def test_a_failure_concerns_its_route_alone_and_carries_the_kernels_words(kernel: Kernel) -> None:
    unreachable = replace(GATEWAY, gateway=IPv4Address("172.31.0.1"))
    deviceless = replace(ONLINK, destination=IPv4Network("10.66.0.0/16"), device="flannel9")
    done = apply(kernel, add(ONLINK, unreachable, deviceless))
    assert done.added == (ONLINK,)
    assert dict(done.failed) == {
        unreachable: "Network is unreachable (Nexthop has invalid gateway)",
        deviceless: "there is no device flannel9",
    }
    assert list_routes(kernel) == {ONLINK}


def test_a_thousand_failures_are_all_told(kernel: Kernel) -> None:
    bad = frozenset(Route(IPv4Network((0x0B000000 + (i << 8), 24)), "v0", gateway=IPv4Address("172.31.0.1")) for i in range(1000))
    done = apply(kernel, Difference(bad | {ONLINK}))
    assert ({route for route, _ in done.failed}, done.added) == (bad, (ONLINK,))


def test_routes_that_went_with_their_device_are_no_failure(ns: Namespace, kernel: Kernel) -> None:
    apply(kernel, Difference(ALL))
    ns.script("ip link del v0")
    assert list_routes(kernel) == {ONLINK, ONLINK6}
    done = apply(kernel, Difference(remove=ALL))
    assert (set(done.removed), done.failed) == ({ONLINK, ONLINK6}, ())


def test_stale_routes_of_any_shape_are_swept(ns: Namespace, kernel: Kernel) -> None:
    ns.script(
        """
        ip route add blackhole 10.81.0.0/16 proto 102
        ip route add 10.82.0.0/16 proto 102 nexthop via 10.9.0.2 dev v0 nexthop dev flannel0
        ip -6 route add fd82::/64 proto 102 nexthop via fd09::2 dev v0 nexthop via fd09::3 dev v0
        ip route add unreachable 10.83.0.0/16 proto 102 metric 9
        ip route add 10.84.0.0/16 dev v0 proto 102 scope global table 77
        """
    )
    assert len(list_routes(kernel)) == 5
    done = apply(kernel, diff(frozenset((ONLINK,)), list_routes(kernel)))
    assert (len(done.removed), done.failed) == (5, ())
    assert shown(ns) == [("10.5.0.0/16", "flannel0", None, None, None, None, "102")]


def test_default_routes_are_listed_whoever_made_them_but_not_refusals(ns: Namespace, kernel: Kernel) -> None:
    assert default_routes(kernel) == ()
    ns.script("ip route add unreachable default metric 5; ip route add default via 10.9.0.2 metric 9 proto dhcp")
    assert default_routes(kernel) == (Route(IPv4Network("0.0.0.0/0"), "v0", IPv4Address("10.9.0.2"), None, 9, 254, 16),)


def test_a_fresh_namespace_without_any_table_has_no_routes() -> None:
    with namespace() as fresh, inside(fresh), Kernel() as kernel:
        assert (list_routes(kernel), default_routes(kernel)) == (frozenset(), ())


def test_65536_routes_are_written_and_listed_within_seconds(kernel: Kernel) -> None:
    routes = frozenset(Route(IPv4Network((0x0B000000 + (i << 8), 24)), "flannel0") for i in range(65536))
    started = time.monotonic()
    done = apply(kernel, Difference(routes))
    written = time.monotonic()
    listed = list_routes(kernel)
    read = time.monotonic()
    gone = apply(kernel, Difference(remove=routes))
    removed = time.monotonic()
    print(f"65,536 routes: written {written - started:.2f} s, listed {read - written:.2f} s, removed {removed - read:.2f} s")
    assert (len(done.added), done.failed, listed == routes) == (65536, (), True)
    assert (len(gone.removed), gone.failed, list_routes(kernel)) == (65536, (), frozenset())
    assert removed - started < 20


def test_a_list_is_whole_while_others_change_the_table(kernel: Kernel) -> None:
    routes = frozenset(Route(IPv4Network((0x0B000000 + (i << 8), 24)), "flannel0") for i in range(5000))
    apply(kernel, Difference(routes))
    stop = threading.Event()
    turns: list[int] = []

    def churn() -> None:
        foreign = frozenset(Route(IPv4Network((0x0A800000 + (i << 8), 24)), "flannel0", protocol=103) for i in range(100))
        with Kernel() as other:
            while not stop.is_set():
                turns.append(len(apply(other, Difference(foreign)).added) + len(apply(other, Difference(remove=foreign)).removed))

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        lists = [list_routes(kernel) for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    assert set(turns) == {200}
    assert lists == [routes] * 10


def test_without_the_right_to_write_the_cure_is_named(ns: Namespace, kernel: Kernel) -> None:
    with without_net_admin(), Kernel() as powerless:
        assert list_routes(powerless) == frozenset()
        with pytest.raises(PlatformError, match=r"Operation not permitted.*CAP_NET_ADMIN"):
            apply(powerless, add(ONLINK))
    assert apply(kernel, add(ONLINK)) == Applied(added=(ONLINK,))


BLACKHOLES = frozenset(
    Route(network, "", metric=4096, kind="blackhole") for network in (IPv4Network("10.7.1.0/24"), IPv6Network("fd07:1::/64"))
)


def test_a_blackhole_is_written_once_drops_what_no_better_route_takes_and_goes_again(ns: Namespace, kernel: Kernel) -> None:
    ns.ip("addr add 10.7.1.1/24 dev v0\naddr add fd07:1::1/64 dev v0 nodad")
    assert apply(kernel, Difference(BLACKHOLES)) == Applied(added=tuple(BLACKHOLES))
    assert list_routes(kernel) == BLACKHOLES
    assert apply(kernel, Difference(BLACKHOLES)).failed == ()
    assert "dev v0" in ns.run("ip", "route", "get", "10.7.1.9"), "the connected route has the better metric"
    ns.ip("addr del 10.7.1.1/24 dev v0")
    assert "blackhole 10.7.1.0/24 proto 102 metric 4096" in ns.run("ip", "route")
    with pytest.raises(AssertionError, match="Invalid argument"):
        ns.run("ip", "route", "get", "10.7.1.9")
    assert set(apply(kernel, diff(frozenset(), list_routes(kernel))).removed) == BLACKHOLES
    assert list_routes(kernel) == frozenset()
