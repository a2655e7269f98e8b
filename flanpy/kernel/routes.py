"""Routes of the kernel: list those of a protocol number, and write a difference; never touches a route of another protocol.

How a difference is applied, so that no destination is without a route at any moment:

    1  add      exclusively, so that a foreign route to that destination is met and not shadowed; where a route of ours is
                replaced, the new one is appended behind it (IPv4)
    2  look     what stands where the kernel said "exists": the same route (well), an older one of ours (replace it), a
                foreign one (that route fails)
    3  remove   what is to go, and what has been replaced

What is there already, or gone already, is no failure. A failure concerns its route alone.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6

from flanpy.core.reconcile import Difference
from flanpy.kernel.devices import device_names
from flanpy.kernel.messages import APPEND, CREATE, EXCLUSIVE, REPLACE
from flanpy.kernel.netlink import Kernel, explained, explained_errno, settled
from flanpy.kernel.route_codec import (
    MAIN_TABLE,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    delete_body,
    dump_body,
    is_default,
    new_body,
    parse,
    protocol_of,
)
from flanpy.model import ROUTE_PROTOCOL, Network, Route

_PROTOCOLS = {2: "kernel", 3: "boot", 4: "static", 9: "ra", 12: "bird", 16: "dhcp", 186: "bgp", 188: "ospf"}
_BY_HAND = (3, 4, 16)
"""boot (``ip route add``), static, dhcp."""
_GONE = frozenset((errno.ESRCH, errno.ENODEV, errno.ENOENT))

Place = tuple[Network, int, int]
"""Destination, metric and table: where the kernel keeps one route, unless somebody appends another."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done: ``failed`` names each route that could not be added or removed, and why."""

    added: tuple[Route, ...] = ()
    removed: tuple[Route, ...] = ()
    failed: tuple[tuple[Route, str], ...] = ()


def list_routes(kernel: Kernel, protocol: int = ROUTE_PROTOCOL) -> frozenset[Route]:
    """All routes of both families and of all tables with this protocol number."""
    names = device_names(kernel)
    return frozenset(route for family in (AF_INET, AF_INET6) for route in _read(kernel, names, family, protocol=protocol))


def default_routes(kernel: Kernel, family: int = AF_INET) -> tuple[Route, ...]:
    """The default routes of a family in the main table, whoever made them; a default that refuses (unreachable) is none."""
    request, names = dump_body(family, table=MAIN_TABLE), device_names(kernel)
    found = settled(
        "list the default routes",
        lambda: [parse(body, names) for _, body in kernel.dump(RTM_GETROUTE, request) if is_default(body)],
    )
    return tuple(route for route in found if route is not None and route.device)


def on_link_routes(kernel: Kernel) -> tuple[Route, ...]:
    """Routes of the main table, of both families, by which an operator or DHCP says that somebody is on a device's link: no gateway.

    Default routes are none of them. The kernel's own, which come with addresses, are not listed.
    """
    names = device_names(kernel)
    found = [
        route
        for protocol in _BY_HAND
        for family in (AF_INET, AF_INET6)
        for route in _read(kernel, names, family, protocol=protocol, table=MAIN_TABLE)
    ]
    return tuple(
        route
        for route in found
        if route.gateway is None and route.kind == "unicast" and route.device and route.destination.prefixlen
    )


def apply(kernel: Kernel, difference: Difference[Route]) -> Applied:
    """Make the kernel's routes what the difference says; idempotent.

    What is to go goes even when its successor could not be written: a route to where a peer was is worse than none.
    """
    return _Pass(kernel, device_names(kernel)).run(difference)


def _read(
    kernel: Kernel,
    names: Mapping[int, str],
    family: int,
    *,
    protocol: int = 0,
    table: int = 0,
    at: Container[Place] | None = None,
) -> list[Route]:
    """Routes of a family; protocol, table 0: any; ``at``: only those at these places."""

    def matching() -> Iterator[Route]:
        found = _dump(kernel, dump_body(family, protocol, table), protocol, names)
        return found if at is None else (route for route in found if _place(route) in at)

    return settled("list the routes", matching)


def _dump(kernel: Kernel, request: bytes, protocol: int, names: Mapping[int, str]) -> Iterator[Route]:
    for kind, body in kernel.dump(RTM_GETROUTE, request):
        if kind == RTM_NEWROUTE and protocol in (0, protocol_of(body)):
            route = parse(body, names)
            if route is not None:
                yield route


def _place(route: Route) -> Place:
    return route.destination, route.metric, route.table


@dataclass(slots=True)
class _Pass:
    """One application of a difference: what it has found and done so far."""

    kernel: Kernel
    names: Mapping[int, str]
    added: list[Route] = field(default_factory=list)
    removed: list[Route] = field(default_factory=list)
    failed: list[tuple[Route, str]] = field(default_factory=list)

    def run(self, difference: Difference[Route]) -> Applied:
        replaced = {_place(route) for route in difference.remove if route.destination.version == 4}
        behind = [route for route in difference.add if replaced and _place(route) in replaced]
        fresh = difference.add.difference(behind) if behind else difference.add
        self._add(behind, APPEND)
        stale = self._settle(self._add(fresh, EXCLUSIVE), difference.remove)
        self._remove(difference.remove | stale)
        return Applied(tuple(self.added), tuple(self.removed), tuple(self.failed))

    def _add(self, routes: Iterable[Route], how: int) -> list[Route]:
        """Write routes; returns those of which the kernel says that something is there already."""
        indexes = {"": 0} | {name: index for index, name in self.names.items()}
        known = [route for route in routes if self._has_device(route, indexes)]
        requests = ((RTM_NEWROUTE, CREATE | how, new_body(route, indexes[route.device])) for route in known)
        with explained("write routes"):
            failures = self.kernel.execute(requests)
        existing = []
        for position, route in enumerate(known):
            if (failure := failures.get(position)) is None:
                self.added.append(route)
            elif failure[0] == errno.EEXIST:
                existing.append(route)
            else:
                self.failed.append((route, explained_errno(*failure)))
        return existing

    def _has_device(self, route: Route, indexes: Mapping[str, int]) -> bool:
        if route.device in indexes and (route.device or route.kind != "unicast"):
            return True
        self.failed.append((route, f"there is no device {route.device}"))
        return False

    def _settle(self, existing: list[Route], going: frozenset[Route]) -> frozenset[Route]:
        """Decide about routes whose place is taken; returns routes of ours that the new ones take the place of.

        A route that is to be removed may be replaced, whoever made it.
        """
        standing = self._standing(existing)
        behind: list[Route] = []
        instead: list[Route] = []
        stale: set[Route] = set()
        for route in existing:
            there = standing.get(_place(route), [])
            ours = [other for other in there if other.protocol == route.protocol or other in going]
            if route in there:
                continue
            if not ours:
                self.failed.append((route, _conflict(there)))
            elif route.destination.version == 4:
                behind.append(route)
                stale.update(ours)
            else:
                instead.append(route)
        self._add(behind, APPEND)
        self._add(instead, REPLACE)
        return frozenset(stale)

    def _standing(self, routes: list[Route]) -> dict[Place, list[Route]]:
        """What is at the places of these routes, whoever made it."""
        at = {_place(route) for route in routes}
        standing: dict[Place, list[Route]] = {}
        for version, table in {(route.destination.version, route.table) for route in routes}:
            for route in _read(self.kernel, self.names, AF_INET if version == 4 else AF_INET6, table=table, at=at):
                standing.setdefault(_place(route), []).append(route)
        return standing

    def _remove(self, routes: Iterable[Route]) -> None:
        """Remove routes; those that went with their device, or were taken away by somebody else, are not counted."""
        indexes = {"": 0} | {name: index for index, name in self.names.items()}
        fresh6 = {_place(route) for route in self.added if route.destination.version == 6}
        known = []
        for route in routes:
            if route.destination.version == 6 and _place(route) in fresh6:
                self.removed.append(route)  # replaced in its place; deleting it by these words could meet its successor
            elif route.device.split("/")[0] in indexes:
                known.append(route)
        requests = ((RTM_DELROUTE, 0, delete_body(route, indexes[route.device.split("/")[0]])) for route in known)
        with explained("remove routes"):
            failures = self.kernel.execute(requests)
        for position, route in enumerate(known):
            if (failure := failures.get(position)) is None:
                self.removed.append(route)
            elif failure[0] not in _GONE:
                self.failed.append((route, explained_errno(*failure)))


def _conflict(there: list[Route]) -> str:
    if not there:
        return "something else took its place while it was written; it is tried again"
    other = there[0]
    proto = _PROTOCOLS.get(other.protocol, str(other.protocol))
    via = f" via {other.gateway}" if other.gateway is not None else ""
    return (
        f"a route that is not ours is there: {other.destination}{via} dev {other.device} proto {proto} metric {other.metric}; "
        "remove it, or give the cluster another Network"
    )
