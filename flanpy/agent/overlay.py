"""Makes devices, neighbours, forwarding entries and routes of this machine what the desired state says, in an order that loses nothing.

    links -> FDB entries, neighbours that are missing -> routes -> neighbours, FDB entries that are stale

A peer's route comes when what it leads to is there, and what it led to goes when the route has gone. What fails concerns its item
alone and is tried again by the next pass. Called by ``Machine``; holds no state.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from flanpy.agent.logs import event
from flanpy.core.reconcile import Difference, diff
from flanpy.errors import FlanpyError
from flanpy.kernel import ipip, neighbours, routes, vxlan
from flanpy.kernel.links import Ensured
from flanpy.kernel.neighbours import Entry, Failed
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.wireguard import WireguardDevices
from flanpy.model import (
    FLANNEL_ROUTE_PROTOCOL,
    DesiredState,
    FdbEntry,
    IpipLink,
    Link,
    Neighbour,
    Route,
    VxlanLink,
    WireguardLink,
)

log = logging.getLogger(__name__)


def vxlan_macs(kernel: Kernel) -> Mapping[str, str]:
    """The MAC of each VXLAN device that is there, by name."""
    return MappingProxyType({name: found.mac for name, found in vxlan.list_vxlan(kernel).items()})


def ensure_links(kernel: Kernel, desired: DesiredState, wireguard: WireguardDevices, problems: list[str]) -> int:
    """Each device as it should be; one that cannot be had is said and does not keep the others waiting."""
    count = 0
    for link in desired.links:
        try:
            changed = _ensure(kernel, link, wireguard).changed
        except FlanpyError as error:
            problems.append(str(error))
            continue
        if changed:
            log.info("%s: %s", link.name, ", ".join(changed), extra=event("link_changed", device=link.name, changes=changed))
        count += len(changed)
    return count


def _ensure(kernel: Kernel, link: Link, wireguard: WireguardDevices) -> Ensured:
    match link:
        case VxlanLink():
            return vxlan.ensure_vxlan(kernel, link)
        case IpipLink():
            return ipip.ensure_ipip(kernel, link)
        case WireguardLink():
            return wireguard.ensure(kernel, link)


def converge_routes(kernel: Kernel, desired: DesiredState, problems: list[str], peer_problems: list[str]) -> int:
    """Routes, and the entries that they lead through; returns how much was done.

    What fails for a single peer (a route by a gateway, an entry) is told apart from what concerns them all.
    """
    entries = _entry_difference(kernel, desired)
    own_devices = {"", *(link.name for link in (desired.tunnel, *desired.links) if link is not None)}
    failed = neighbours.write_entries(kernel, entries.add)
    routing = diff(desired.routes, routes.list_routes(kernel) | _adoptable(kernel, desired))
    applied = routes.apply(kernel, routing)
    failed += neighbours.remove_entries(kernel, _removable(entries))
    for route, reason in applied.failed:
        concerned = problems if route.gateway is None and route.device in own_devices else peer_problems
        concerned.append(f"route {route.destination} dev {route.device}: {reason}")
    peer_problems += [_told(failure) for failure in failed]
    return len(applied.added) + len(applied.removed) + len(entries.add) + len(entries.remove) - len(failed)


def _entry_difference(kernel: Kernel, desired: DesiredState) -> Difference[Entry]:
    names = [link.name for link in desired.links if isinstance(link, VxlanLink)]
    if not names:
        return Difference()
    wanted: frozenset[Entry] = frozenset((*desired.neighbours, *desired.fdb))
    return diff(wanted, neighbours.list_entries(kernel, names))


def _removable(entries: Difference[Entry]) -> list[Entry]:
    """What is to go and has not been replaced in its place by what was written."""
    replaced = {_place(entry) for entry in entries.add}
    return [entry for entry in entries.remove if _place(entry) not in replaced]


def _place(entry: Entry) -> tuple[str, object]:
    return entry.device, entry.address if isinstance(entry, Neighbour) else entry.mac


def _adoptable(kernel: Kernel, desired: DesiredState) -> frozenset[Route]:
    """Routes that flanneld has written: those on our overlay devices, those that are ours but for the protocol number, its blackholes."""
    if not (desired.superseded or desired.links or desired.routes):
        return frozenset()
    theirs = routes.list_routes(kernel, FLANNEL_ROUTE_PROTOCOL)
    names = {link.name for link in desired.links}
    on_ours = (route for route in theirs if route.device in names and route.gateway is not None)
    return frozenset(on_ours) | (theirs & (desired.superseded | frozenset(_as_theirs(desired.routes))))


def _as_theirs(ours: Iterable[Route]) -> Iterable[Route]:
    return (replace(route, protocol=FLANNEL_ROUTE_PROTOCOL) for route in ours)


def _told(failure: Failed) -> str:
    entry, reason = failure
    if isinstance(entry, FdbEntry):
        return f"FDB entry {entry.mac} to {entry.destination} dev {entry.device}: {reason}"
    return f"neighbour {entry.address} {entry.mac} dev {entry.device}: {reason}"
