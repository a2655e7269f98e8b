"""Single addresses beside subnets: a backend's desired state, with the pods that have kept their address on another node; no I/O.

    at another node's  the datapath's table: an entry of its own; kernel routes: as its node's subnet, by that address;
                       WireGuard: in the allowed addresses of its node
    was ours           the same, and a route that wins over the pod bridge's; the bridge answers for the address (stand-in)
    is here            a route to the pod bridge, which answers for the pod's gateway; the datapath takes packets for it

Longest prefix wins everywhere, so nothing of the subnets changes. Backends whose routes are not ours (alloc, extension) get none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from flanpy.core.attached import AttachedPod
from flanpy.core.pods import PodPlace
from flanpy.model import (
    Address,
    DesiredState,
    Link,
    Neighbour,
    Network,
    NetworkConfig,
    Peer,
    Route,
    StandIns,
    Subnets,
    TableEntry,
    WireguardLink,
)


@dataclass(frozen=True, slots=True)
class Moved:
    """``away``: pods of other nodes outside of those nodes' subnets; ``guests``: pods ``here`` outside of ours."""

    away: tuple[PodPlace, ...] = ()
    guests: tuple[AttachedPod, ...] = ()
    here: tuple[AttachedPod, ...] = ()
    looked_after: bool = False
    """Whether this node looks after single pods at all."""


def with_moved(desired: DesiredState, moved: Moved, own: Subnets, config: NetworkConfig) -> DesiredState:
    """The desired state with these pods."""
    if not moved.looked_after:
        return desired
    away = [(prefix_of(place.entry.pod.address), place.peer) for place in moved.away if place.peer is not None]
    guests = [(prefix_of(pod.address), pod.bridge) for pod in moved.guests]
    ours = frozenset(prefix.network_address for prefix, _ in away if _is_ours(prefix, own))
    routes = [route for prefix, peer in away for route in _routes(desired, prefix, peer, prefix.network_address in ours)]
    routes += (Route(prefix, bridge) for prefix, bridge in guests if bridge)
    gateways = frozenset((pod.bridge, _gateway(pod.address, own)) for pod in moved.guests if pod.bridge)
    residents = frozenset(Neighbour(pod.bridge, pod.address, pod.mac) for pod in moved.here if pod.bridge and pod.mac)
    table = desired.table
    if table is not None:
        sent_to = {entry.prefix for entry in table.entries}  # a peer may be sent one family only
        entries = (TableEntry(prefix, peer.hop) for prefix, peer in away if _subnet(peer, prefix) in sent_to)
        local = (prefix for prefix, _ in guests)
        table = replace(table, entries=(*table.entries, *entries), local=(*table.local, *local))
    return replace(
        desired,
        routes=desired.routes | frozenset(routes),
        table=table,
        links=tuple(_with_allowed(link, away) for link in desired.links),
        stand_ins=StandIns(
            ours, gateways, residents, _present(own.ipv4, own.ipv6), _present(config.network, config.ipv6_network)
        ),
    )


def _gateway(address: Address, own: Subnets) -> Address:
    """The first address of the subnet that a guest is of, taken to be as long as ours, as the plugin takes it."""
    subnet = own.ipv4 if address.version == 4 else own.ipv6
    return address if subnet is None else ip_network((address, subnet.prefixlen), strict=False)[1]


def _present(*networks: Network | None) -> tuple[Network, ...]:
    return tuple(network for network in networks if network is not None)


def prefix_of(address: Address) -> Network:
    """The prefix that is this address alone."""
    return ip_network(address)


def _routes(desired: DesiredState, prefix: Network, peer: Peer, ours: bool) -> Iterator[Route]:
    """As the routes of the backend lead to the peer's subnet; one for the whole network is enough unless it was our own address."""
    subnet = _subnet(peer, prefix)
    for route in desired.routes:
        destination = route.destination
        if destination == subnet or (ours and destination.version == prefix.version and _covers(destination, prefix)):
            yield replace(route, destination=prefix)
            return


def _subnet(peer: Peer, prefix: Network) -> Network | None:
    return peer.subnets.ipv4 if prefix.version == 4 else peer.subnets.ipv6


def _covers(destination: Network, prefix: Network) -> bool:
    return destination.prefixlen < prefix.prefixlen and prefix.network_address in destination


def _is_ours(prefix: Network, own: Subnets) -> bool:
    subnet = own.ipv4 if prefix.version == 4 else own.ipv6
    return subnet is not None and prefix.network_address in subnet


def _with_allowed(link: Link, away: Iterable[tuple[Network, Peer]]) -> Link:
    if not isinstance(link, WireguardLink):
        return link
    more: dict[Network, list[Network]] = {}
    for prefix, peer in away:
        subnet = _subnet(peer, prefix)
        if subnet is not None:
            more.setdefault(subnet, []).append(prefix)
    peers = (
        replace(peer, allowed=(*peer.allowed, *(prefix for subnet in peer.allowed for prefix in more.get(subnet, ()))))
        for peer in link.peers
    )
    return replace(link, peers=tuple(peers))
