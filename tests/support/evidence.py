"""Where packets of a lab end: what a test that waits in vain for them shows instead of a bare "not within 10 s".

every host and pod   link states, routes, neighbours; which counters of devices and of the IP stack move in WATCHED_S, and by how much
every host           what the agent says (state, problems, peers), which verdicts move, the end of its log
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

from flanpy.agent.client import ask
from flanpy.errors import FlanpyError
from tests.support.clusters import Cluster

WATCHED_S = 0.5
VIEWS = (["ip", "-br", "link"], ["ip", "route"], ["ip", "neigh"])


def evidence(cluster: Cluster) -> str:
    """A page of text; what cannot be had says why in its place, for this must not hide the failure that it explains."""
    hosts = [host.name for host in cluster.lab.plan.hosts]
    places = [*hosts, *(pod.name for pod in cluster.lab.segment().pods)]
    before = _reading(cluster, places, hosts)
    time.sleep(WATCHED_S)  # what moves meanwhile tells how far packets come
    after = _reading(cluster, places, [host for host in hosts if isinstance(before[f"{host}, verdicts"], dict)])
    lines = [f"{name}, in {WATCHED_S:g} s: {_moved(first, after.get(name))}" for name, first in before.items()]
    for place in places:
        lines += [f"{place}: {' '.join(view)}\n{_tried(_run, cluster, place, view)}" for view in VIEWS]
    lines += [f"{host}: {_tried(_agent, cluster, host)}" for host in hosts if f"{host}, verdicts" in after]
    lines += [f"{name}: {_tried(cluster.lab.log_tail, name)}" for name in (*hosts, "etcd")]
    return "\n".join(lines)


def counters(text: str) -> dict[str, int]:
    """The figures of /proc/net/dev (received and sent packets, errors, drops) and of /proc/net/snmp and netstat, by name."""
    found: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for line in text.splitlines():
        head, _, rest = line.partition(":")
        values = rest.split()
        if not values or "|" in line:
            continue
        if not values[0].lstrip("-").isdecimal():
            names[head] = values
        elif head in names:
            found |= {f"{head}{name}": int(value) for name, value in zip(names.pop(head), values, strict=True)}
        else:
            kinds = ("rx", "rx_errors", "rx_dropped", "tx", "tx_errors", "tx_dropped")
            found |= {f"{head.strip()}.{kind}": int(values[at]) for kind, at in zip(kinds, (1, 2, 3, 9, 10, 11), strict=True)}
    return found


def _reading(cluster: Cluster, places: list[str], hosts: list[str]) -> dict[str, object]:
    read: dict[str, object] = {place: _tried(_counters_at, cluster, place) for place in places}
    return read | {f"{host}, verdicts": _tried(_verdicts, cluster, host) for host in hosts}


def _counters_at(cluster: Cluster, place: str) -> dict[str, int]:
    return counters(_run(cluster, place, ["cat", "/proc/net/dev", "/proc/net/snmp", "/proc/net/netstat"]))


def _run(cluster: Cluster, place: str, argv: list[str]) -> str:
    return cluster.sandbox.run(place, argv, check=False).stdout.rstrip()


def _status(cluster: Cluster, host: str) -> dict[str, Any]:
    run_dir = cluster.sandbox.path(cluster.lab.agent_settings(host)["FLANPY_RUN_DIR"])
    return ask(run_dir, "status", timeout_s=1)


def _verdicts(cluster: Cluster, host: str) -> dict[str, int]:
    counts = _status(cluster, host)["datapath"]["verdicts"]
    return {name: count["packets"] for name, count in counts.items()}


def _agent(cluster: Cluster, host: str) -> str:
    said = _status(cluster, host)
    return f"{said['state']}, problems {said['problems']}, peers {said.get('peers')}, datapath {said['datapath']}"


def _moved(before: object, after: object) -> str:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return str(after if isinstance(before, dict) else before)
    moved = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    return ", ".join(f"{name} {by:+}" for name, by in moved.items()) or "nothing moves"


def _tried(read: Callable[..., object], *arguments: object) -> object:
    try:
        return read(*arguments)
    except (FlanpyError, OSError, LookupError, ValueError, AssertionError, subprocess.SubprocessError) as error:
        return f"not to be had: {error!r}"
