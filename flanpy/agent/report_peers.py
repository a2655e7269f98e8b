"""Peers and routes as answers to the control socket: plain JSON values made from the state, changing nothing.

Names and units in these answers are what scripts and metrics are built on: add, never rename.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from flanpy.agent.machine import Machine
from flanpy.agent.peer_paths import Report
from flanpy.agent.peer_traffic import NOT_YET, PeerTraffic, as_json
from flanpy.agent.said import counted, shortened
from flanpy.errors import FlanpyError
from flanpy.model import ForeignLease, KeptLease, NodeAttributes, Peer, Refusal, Route

if TYPE_CHECKING:
    from flanpy.agent.state import State

REFUSED_LISTED = 1000
"""Of a flood of refused keys as many are listed."""


def status_lists(state: State, machine: Machine) -> dict[str, Any]:
    """What `status` says of each peer and each foreign node; left out of a brief answer."""
    traffic = _traffic(state, machine)
    view = state.plan.view if state.plan else None
    return {
        "peers": [
            {
                "subnets": str(peer.subnets),
                "hop": str(peer.hop),
                "public_ip": str(peer.lease.attributes.address),
                "traffic": as_json(traffic.by_peer.get(peer.attributes.address)),
            }
            for peer in (view.peers if view else ())
        ],
        "foreign": [str(lease.subnets) for lease in (view.foreign if view else ())],
    }


def peers_answer(state: State, machine: Machine, paths: Report | None, now_s: float) -> dict[str, Any]:
    """Who is who: all peers with what is known of their paths and traffic, nodes of another backend, and what was refused."""
    traffic = _traffic(state, machine)
    view = state.plan.view if state.plan else None
    backend = state.config.backend.type if state.config else ""
    refusals: Iterable[Refusal] = view.refusals if view else ()
    return {
        "peers": [
            {**_peer(peer, paths, now_s), "traffic": as_json(traffic.by_peer.get(peer.attributes.address))}
            for peer in (view.peers if view else ())
        ],
        "traffic_reason": traffic.reason,
        "foreign": [_foreign(lease, backend) for lease in (view.foreign if view else ())],
        "refused": [{"key": shortened(it.key), "reason": shortened(it.reason)} for it in islice(refusals, REFUSED_LISTED)],
        "refused_count": len(view.refusals) if view else 0,
    }


def _traffic(state: State, machine: Machine) -> PeerTraffic:
    if state.plan is None or state.config is None:
        return NOT_YET
    peers = [peer.attributes.address for peer in state.plan.view.peers]
    return machine.peer_traffic(state.plan.desired, state.config.backend.type, peers)


def _peer(peer: Peer, paths: Report | None, now_s: float) -> dict[str, Any]:
    """``grace``: None, or why the peer is kept though its lease has vanished, and for how many seconds still; ``path``: of the probes."""
    kept = peer.kept and {"cause": peer.kept.cause, "seconds_left": _left(peer.kept, now_s)}
    path = None if paths is None else paths.of(peer)
    return {**_node(peer.attributes), "subnets": str(peer.subnets), "hop": str(peer.hop), "grace": kept, "path": path}


def _left(kept: KeptLease, now_s: float) -> float:
    return round(max(0.0, kept.until_s - now_s), 1)


def grace_warnings(state: State, now_s: float) -> list[str]:
    """One line for all peers that are kept without a lease."""
    kept = [peer.kept for peer in (state.plan.view.peers if state.plan else ()) if peer.kept]
    if not kept:
        return []
    why = "etcd has lost their leases" if any(each.cause == "lost" for each in kept) else "their leases have vanished"
    return [f"{counted(len(kept), 'peer')} kept for at most another {max(_left(each, now_s) for each in kept):.0f} s: {why}"]


def _foreign(lease: ForeignLease, backend: str) -> dict[str, Any]:
    node = _node(lease.attributes)
    return {**node, "subnets": str(lease.subnets), "reason": f"its backend is {node['backend']}, ours is {backend}"}


def _node(attributes: NodeAttributes) -> dict[str, Any]:
    """A node as its lease describes it; ``node`` None: it is flanneld's, which has no id."""
    info = attributes.flanpy
    return {
        "node": info.node if info else None,
        "public_ip": str(attributes.address),
        "backend": attributes.backend_type.lower() or "udp",
        "features": sorted(info.features) if info else [],
    }


def routes_answer(state: State, machine: Machine) -> dict[str, Any]:
    """The datapath's table, and each route of ours that is wanted or there, with ``state`` ok, missing or stale."""
    try:
        there = machine.routes()
    except FlanpyError as error:
        return {"ok": False, "error": f"the routes of this machine cannot be read: {error}"}
    desired = state.plan.desired if state.plan else None
    wanted = desired.routes if desired else frozenset()
    table = desired.table if desired else None
    return {
        "ok": True,
        "table_generation": table.generation if table else 0,
        "local": [str(prefix) for prefix in (table.local if table else ())],
        "table": [{"prefix": str(entry.prefix), "hop": str(entry.hop)} for entry in (table.entries if table else ())],
        "kernel": [_route(route, wanted, there) for route in sorted(wanted | there, key=str)],
    }


def _route(route: Route, wanted: frozenset[Route], there: frozenset[Route]) -> dict[str, Any]:
    state = "ok" if route in wanted and route in there else "missing" if route in wanted else "stale"
    gateway = str(route.gateway) if route.gateway else None
    return {"destination": str(route.destination), "device": route.device, "gateway": gateway, "kind": route.kind, "state": state}
