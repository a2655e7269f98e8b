"""The pod route table as an answer to the control socket: plain JSON values made from the state, changing nothing.

    route   local      attached here               subnet     by the subnet of its node
            own entry  its address alone leads to its node, for it lies outside of that node's subnet
            guest      attached here, its address lies outside of our subnet

Names in these answers are what scripts are built on: add, never rename.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flanpy.agent.said import shortened
from flanpy.core.pods import PodPlace

if TYPE_CHECKING:
    from flanpy.agent.state import State

REFUSED_LISTED = 1000


def pods_answer(state: State) -> dict[str, Any]:
    """All pods that are known, by address, and what was refused; ``on`` false: this agent keeps no registry."""
    keeper = state.pods
    if keeper is None or not keeper.on:
        return {"on": False, "pods": [], "refused": []}
    places = sorted(
        keeper.plan.view.places.values(), key=lambda place: (place.entry.pod.address.version, place.entry.pod.address.packed)
    )
    own = state.lease.identity.node_id if state.lease else None
    attributes = state.lease.held.attributes if state.lease and state.lease.held else None
    return {
        "on": True,
        "pods": [_row(place, own, str(attributes.public_ip) if attributes else None) for place in places],
        "refused": [
            {"key": shortened(refusal.key), "reason": shortened(refusal.reason)}
            for refusal in keeper.plan.refusals[:REFUSED_LISTED]
        ],
    }


def pods_counts(state: State) -> dict[str, int] | None:
    """How many pods are known, have an entry of their own, and were refused; None without a registry."""
    keeper = state.pods
    if keeper is None or not keeper.on:
        return None
    places = keeper.plan.view.places.values()
    return {
        "known": len(places),
        "here": len(keeper.plan.claims.here),
        "own_entries": sum(place.moved for place in places),
        "refused": len(keeper.plan.refusals),
    }


def _row(place: PodPlace, own: str | None, own_ip: str | None) -> dict[str, Any]:
    pod, peer = place.entry.pod, place.peer
    return {
        "address": str(pod.address),
        "namespace": pod.namespace,
        "pod": pod.name or pod.container,
        "container": pod.container,
        "node": pod.node or own,
        "public_ip": str(peer.attributes.public_ip) if peer else own_ip,
        "hop": str(peer.hop) if peer else None,
        "route": _route(place),
    }


def _route(place: PodPlace) -> str:
    if place.peer is None:
        return "guest" if place.moved else "local"
    return "own entry" if place.moved else "subnet"
