"""Answers of the loop to the control socket and the health server: plain JSON values made from the state, changing nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flanpy import __version__
from flanpy.agent.machine import Machine
from flanpy.agent.readiness import Readiness
from flanpy.agent.underlay import Underlay
from flanpy.model import Lease

if TYPE_CHECKING:
    from flanpy.agent.loop import State


def answer(
    command: str, state: State, machine: Machine, underlay: Underlay, readiness: Readiness, started_s: float
) -> dict[str, Any]:
    """The answer to one command: ``status`` or ``health``; anything else is refused by name."""
    match command:
        case "status":
            return {"ok": True, **_status(state, machine, underlay, readiness, started_s)}
        case "health":
            return {
                "ok": True,
                "alive": True,
                "ready": _ready(state, readiness),
                "problems": problems(state, readiness, underlay),
            }
    return {"ok": False, "error": f"unknown command {command[:40]!r}; there are: status, health"}


def _ready(state: State, readiness: Readiness) -> bool:
    synced = state.outcome is not None and not state.outcome.problems
    return readiness.ready and synced and state.lease is not None and state.lease.held is not None


def problems(state: State, readiness: Readiness, underlay: Underlay) -> list[str]:
    """What is wrong now, the worst first; empty when all is well."""
    found = [
        state.config_problem,
        f"underlay: {underlay.problem}" if underlay.problem else None,
        state.lease.problem if state.lease else None,
        *(state.outcome.problems if state.outcome else ()),
        readiness.problem if state.plan else None,
        f"etcd: {state.store_problem}" if state.store_problem else None,
        *(f"lease {key} refused: {reason}" for key, reason in sorted(state.refused.items())),
    ]
    return list(dict.fromkeys(item for item in found if item))


def _status(state: State, machine: Machine, underlay: Underlay, readiness: Readiness, started_s: float) -> dict[str, Any]:
    now_s = time.monotonic()
    held = state.lease.held if state.lease else None
    uplink = underlay.uplink
    return {
        "version": __version__,
        "uptime_s": round(now_s - started_s, 3),
        "ready": _ready(state, readiness),
        "problems": problems(state, readiness, underlay),
        "uplink": {"name": uplink.name, "address": str(uplink.address), "mtu_bytes": uplink.mtu_bytes},
        "lease": _lease(held) if held else None,
        "etcd": {
            "state": "denied" if state.store_denied else "degraded" if state.store_problem else "ok",
            "problem": state.store_problem,
            "last_word_s_ago": round(now_s - state.last_store_word_s, 3) if state.last_store_word_s else None,
        },
        "network": str(state.config.network) if state.config else None,
        "backend": state.config.backend.type if state.config else None,
        "peers": [
            {"subnets": str(peer.subnets), "hop": str(peer.hop), "public_ip": str(peer.lease.attributes.public_ip)}
            for peer in (state.plan.view.peers if state.plan else ())
        ],
        "foreign": [str(lease.subnets) for lease in (state.plan.view.foreign if state.plan else ())],
        "datapath": _datapath(machine),
    }


def _lease(lease: Lease) -> dict[str, Any]:
    return {
        "subnets": str(lease.subnets),
        "public_ip": str(lease.attributes.public_ip),
        "reservation": lease.is_reservation,
        "mod_revision": lease.mod_revision,
    }


def _datapath(machine: Machine) -> dict[str, Any] | None:
    choice, stats = machine.choice, machine.stats()
    if choice is None or stats is None:
        return None
    return {
        "kind": choice.kind,
        "reason": choice.reason,
        "degraded": list(choice.degraded),
        "table_generation": stats.generation,
        "verdicts": {name: {"packets": count.packets, "bytes": count.bytes} for name, count in stats.verdicts.items()},
        "counters": stats.counters,
    }
