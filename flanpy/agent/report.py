"""Answers of the loop to the control socket and the health server: plain JSON values made from the state, changing nothing.

    health   for probes            status   one screen; {"brief": true} leaves out the lists, which grow with the cluster
    peers    who is who            routes   the datapath's table and the kernel's routes of ours, wanted and there
    pods     the pod route table

Names and units in these answers are what scripts and metrics are built on: add, never rename.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from flanpy import __version__
from flanpy.agent.machine import Machine
from flanpy.agent.passes import BUCKETS_S, Passes
from flanpy.agent.peer_paths import PeerPaths
from flanpy.agent.pods_report import pods_answer, pods_counts
from flanpy.agent.readiness import Readiness
from flanpy.agent.report_peers import grace_warnings, peers_answer, routes_answer, status_lists
from flanpy.agent.said import counted, shortened
from flanpy.agent.underlay import Underlay
from flanpy.model import Lease, NetworkConfig

if TYPE_CHECKING:
    from flanpy.agent.state import State

OWN_TOLD, REFUSED_TOLD = 30, 30
"""An answer is for people and probes: of a flood of problems the first ones, and how many more there are."""
QUESTIONS = ("status", "peers", "routes", "pods", "health")


def answer(
    command: str,
    arguments: Mapping[str, Any],
    state: State,
    machine: Machine,
    underlay: Underlay,
    readiness: Readiness,
    paths: PeerPaths,
    started_s: float,
) -> dict[str, Any]:
    """The answer to one question of ``QUESTIONS``; anything else is refused by name."""
    match command:
        case "status":
            lists = {} if arguments.get("brief") else status_lists(state, machine)
            return {
                "ok": True,
                **_status(state, machine, underlay, readiness, started_s),
                **_paths(state, machine, paths),
                **lists,
            }
        case "peers":
            return {"ok": True, **peers_answer(state, machine, paths.report(), time.monotonic())}
        case "routes":
            return routes_answer(state, machine)
        case "pods":
            return {"ok": True, **pods_answer(state)}
        case "health":
            return {
                "ok": True,
                "alive": True,
                "ready": _ready(state, readiness),
                "problems": problems(state, readiness, underlay),
            }
    return {
        "ok": False,
        "error": f"unknown command {command[:40]!r}; there are: {', '.join(QUESTIONS)}, log-level, options, reload",
    }


def summary(state: State, machine: Machine, underlay: Underlay, readiness: Readiness) -> str:
    """How we are in one line, for the service manager; changes only when something has."""
    found = _own_problems(state, readiness, underlay)
    held = state.lease.held if state.lease else None
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{_word(state, readiness, underlay)}: {' '.join(found[0].split())}{more}"
    peers = len(state.plan.view.peers) if state.plan else 0
    kind = machine.choice.kind if machine.choice else "kernel"
    return f"ready: subnet {held.subnets if held else 'none'}, {counted(peers, 'peer')}, datapath {kind}"


def _ready(state: State, readiness: Readiness) -> bool:
    synced = state.outcome is not None and state.outcome.usable
    return readiness.ready and synced and state.lease is not None and state.lease.held is not None


def _word(state: State, readiness: Readiness, underlay: Underlay) -> str:
    """``degraded``: packets are carried, and something is wrong; refused leases of others do not make a node degraded."""
    if not _ready(state, readiness):
        return "not ready"
    return "degraded" if _own_problems(state, readiness, underlay) else "ready"


def problems(state: State, readiness: Readiness, underlay: Underlay) -> list[str]:
    """What is wrong now, the worst first; empty when all is well."""
    first = list(islice(state.refused.reasons.items(), REFUSED_TOLD))
    refused = [shortened(f"lease {shortened(key)} refused: {reason}") for key, reason in sorted(first)]
    more = len(state.refused.reasons) - len(first)
    rest = [f"{counted(more, 'more lease')} refused: `flanpy peers` lists them"] if more else []
    return [*_own_problems(state, readiness, underlay), *refused, *rest]


def _own_problems(state: State, readiness: Readiness, underlay: Underlay) -> list[str]:
    """What is wrong with this node, without the leases of others that were refused."""
    found = [
        state.config_problem,
        f"underlay: {underlay.problem}" if underlay.problem else None,
        state.lease.problem if state.lease else None,
        *(state.outcome.problems if state.outcome else ()),
        readiness.problem if state.plan else None,
        state.store_fault.message if state.store_fault else None,
        state.pods.problem if state.pods else None,
        state.defect,
    ]
    told = [shortened(item) for item in dict.fromkeys(item for item in found if item)]
    more = len(told) - OWN_TOLD
    return [*told[:OWN_TOLD], f"and {more} more"] if more > 1 else told


# ------------------------------------------------------------------------------------------------ status


def _status(state: State, machine: Machine, underlay: Underlay, readiness: Readiness, started_s: float) -> dict[str, Any]:
    now_s = time.monotonic()
    uplink = underlay.uplink
    desired = state.plan.desired if state.plan else None
    view = state.plan.view if state.plan else None
    return {
        "version": __version__,
        "pid": os.getpid(),
        "node": state.lease.identity.node_id if state.lease else None,
        "uptime_s": round(now_s - started_s, 3),
        "ready": _ready(state, readiness),
        "state": _word(state, readiness, underlay),
        "problems": problems(state, readiness, underlay),
        "uplink": {"name": uplink.name, "address": str(uplink.underlay), "mtu_bytes": uplink.mtu_bytes},
        "devices": [link.name for link in (desired.tunnel, *desired.links) if link is not None] if desired else [],
        "mtu_bytes": desired.mtu_bytes if desired else None,
        "lease": _own_lease(state, now_s),
        "etcd": _etcd(state, now_s),
        "network": _network(state.config) if state.config else None,
        "backend": state.config.backend.type if state.config else None,
        "port": state.config.backend.options.get("Port") if state.config else None,
        "counts": {
            "peers": len(view.peers) if view else 0,
            "kept": sum(peer.kept is not None for peer in view.peers) if view else 0,
            "foreign": len(view.foreign) if view else 0,
            "refused": len(view.refusals) if view else 0,
        },
        "pods": pods_counts(state),
        "datapath": _datapath(machine) or _kernel_datapath(state),
        "rules": _rules(machine),
        "reconcile": _reconcile(state.passes),
    }


def _paths(state: State, machine: Machine, paths: PeerPaths) -> dict[str, Any]:
    """What the probes of the paths say, and warnings: what the datapath does without, peers without a lease, paths that are down."""
    found = paths.report()
    peers = state.plan.view.peers if state.plan else ()
    warnings = [*machine.degraded, *grace_warnings(state, time.monotonic()), *(found.warnings(peers) if found else ())]
    return {"warnings": warnings, "paths": None if found is None else found.summary()}


def _network(config: NetworkConfig) -> str:
    return " ".join(str(network) for network in (config.network, config.ipv6_network) if network is not None)


def _own_lease(state: State, now_s: float) -> dict[str, Any] | None:
    held = state.lease.held if state.lease else None
    if state.lease is None or held is None:
        return None
    ends_s = state.lease.expires_s
    return {**_lease(held), "seconds_left": None if ends_s is None else max(0, round(ends_s - now_s))}


def _lease(lease: Lease) -> dict[str, Any]:
    return {
        "subnets": str(lease.subnets),
        "public_ip": str(lease.attributes.address),
        "reservation": lease.is_reservation,
        "mod_revision": lease.mod_revision,
    }


def _etcd(state: State, now_s: float) -> dict[str, Any]:
    fault = state.store_fault
    return {
        "state": "ok" if fault is None else "denied" if fault.denied else "degraded",
        "problem": None if fault is None else fault.message,
        "last_word_s_ago": round(now_s - state.last_store_word_s, 3) if state.last_store_word_s else None,
    }


def _rules(machine: Machine) -> dict[str, str | None] | None:
    """Which tool keeps masquerade and forward rules; None before that has been decided."""
    placement = machine.firewall.placement
    return None if placement is None else {"masquerade": placement.masquerade, "forward": placement.forward}


def _datapath(machine: Machine) -> dict[str, Any] | None:
    choice, stats, process = machine.choice, machine.stats(), machine.process
    if choice is None or stats is None:
        return None
    return {
        "kind": choice.kind,
        "reason": choice.reason,
        "degraded": list(machine.degraded),
        "process": None if process is None else {"pid": process.pid, "adopted": process.adopted, "restarts": process.restarts},
        "table_generation": stats.generation,
        "verdicts": {name: {"packets": count.packets, "bytes": count.bytes} for name, count in stats.verdicts.items()},
        "counters": stats.counters,
    }


def _kernel_datapath(state: State) -> dict[str, Any] | None:
    """Backends without a table of ours: the kernel forwards by routes and devices, and counts nothing for us."""
    if state.plan is None or state.config is None or state.plan.desired.table is not None:
        return None
    reason = f"backend {state.config.backend.type}: the kernel carries the packets"
    return {
        "kind": "kernel",
        "reason": reason,
        "degraded": [],
        "process": None,
        "table_generation": 0,
        "verdicts": {},
        "counters": {},
    }


def _reconcile(passes: Passes) -> dict[str, Any]:
    return {
        "passes": passes.count,
        "failed": passes.failed,
        "seconds": round(passes.seconds, 6),
        "buckets": {f"{bound:g}": count for bound, count in zip(BUCKETS_S, passes.buckets, strict=True)},
    }
