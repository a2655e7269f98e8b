"""The state of a lab as values, read from what is really there: processes, devices, rules, and the agents themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flanpy.agent.control import ask
from flanpy.errors import FlanpyError
from flanpy.lab.cluster import HostLease, Lab
from flanpy.lab.plan import BRIDGE, PodPlan
from flanpy.lab.topology6 import pod_address

ASK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class PodStatus:
    """A pod and its addresses; ``address6`` None in a network without IPv6."""

    name: str
    address: str
    address6: str | None = None


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A host. ``agent``: ``stopped``, ``no answer``, or the agent's own word: ``ready``, ``degraded`` (with ``problems``),
    ``not ready``.
    """

    name: str
    underlay: str
    cable: str
    loss_percent: float
    rate_mbit: float
    subnet: str | None
    agent: str
    agent_pid: int | None
    datapath: str | None
    peers: int | None
    problems: tuple[str, ...]
    pods: tuple[PodStatus, ...]
    subnet6: str | None = None


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A whole lab; ``agent_pid`` and ``etcd_pid`` are numbers inside it, ``holder`` is the process that keeps it."""

    name: str
    holder: int
    etcd: str
    etcd_pid: int | None
    mode: str
    logs: str
    hosts: tuple[HostStatus, ...]


def read_status(lab: Lab) -> LabStatus:
    """Look at everything once."""
    cables, rates, losses = _cables(lab), _rates(lab), _losses(lab)
    segment = lab.segment()
    hosts = []
    for host in lab.plan.hosts:
        lease = lab.lease(host.name)
        agent, answer = _agent(lab, host.name)
        hosts.append(
            HostStatus(
                name=host.name,
                underlay=str(host.address),
                cable=cables.get(host.port, "missing"),
                loss_percent=losses.get(host.port, 0.0),
                rate_mbit=rates.get(host.port, 0.0),
                subnet=str(lease.subnet) if lease else None,
                agent=agent,
                agent_pid=lab.agent_pid(host.name),
                datapath=(answer.get("datapath") or {}).get("kind"),
                peers=len(answer["peers"]) if "peers" in answer else None,
                problems=tuple(answer.get("problems", ())),
                pods=tuple(_pod(pod, lease) for pod in segment.pods_of(host.name)),
                subnet6=str(lease.subnet6) if lease and lease.subnet6 else None,
            )
        )
    pid = lab.etcd_pid()
    etcd = "stopped" if pid is None else lab.etcd_url
    return LabStatus(lab.spec.name, lab.sandbox.pid, etcd, pid, lab.spec.mode, str(lab.logs), tuple(hosts))


def _pod(pod: PodPlan, lease: HostLease | None) -> PodStatus:
    address6 = str(pod_address(pod, lease.subnet6)) if lease and lease.subnet6 else None
    return PodStatus(pod.name, str(pod.address.ip), address6)


def agent_status(lab: Lab, host: str) -> dict[str, Any]:
    """The answer of a host's agent to ``status`` on its control socket; raises FlanpyError when it gives none."""
    return ask(lab.host_path(host, "run"), "status", ASK_TIMEOUT_S)


def _agent(lab: Lab, host: str) -> tuple[str, Mapping[str, Any]]:
    if lab.agent_pid(host) is None:
        return "stopped", {}
    try:
        answer = agent_status(lab, host)
    except FlanpyError:
        return "no answer", {}
    return str(answer["state"]), answer


def _cables(lab: Lab) -> dict[str, str]:
    links = json.loads(lab.sandbox.run(None, ["ip", "-j", "link", "show", "master", BRIDGE]).stdout or "[]")
    return {link["ifname"]: "plugged" if "UP" in link["flags"] else "cut" for link in links}


def _rates(lab: Lab) -> dict[str, float]:
    disciplines = json.loads(lab.sandbox.run(None, ["tc", "-j", "qdisc", "show"]).stdout or "[]")
    return {item["dev"]: item["options"]["rate"] * 8 / 1e6 for item in disciplines if item["kind"] == "tbf"}


def _losses(lab: Lab) -> dict[str, float]:
    rules = lab.sandbox.run(None, ["nft", "list", "ruleset", "netdev"]).stdout
    pattern = r'chain ingress \{\s+type filter hook ingress device "([^"]+)".*\s+numgen random mod 10000 <= (\d+)'
    return {device: (int(last) + 1) / 100 for device, last in re.findall(pattern, rules)}
