"""What ``flanpy doctor`` says of this host: facts in, checks with reason and cure out. Pure; ``doctor`` gathers the facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flanpy.agent.firewall_check import Chain, forward_problem, port_problem
from flanpy.agent.path_mtu import PathMtu
from flanpy.agent.said import counted
from flanpy.kernel.platform import Finding

Level = Literal["ok", "warning", "error"]
CONNTRACK_FULL = 0.9
VXLAN_PORT = 8472
"""What the kernel takes where the network config says 0."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what it was about, how it went, why, and what to do about it (empty when it is well)."""

    name: str
    level: Level
    reason: str
    cure: str = ""


def platform_check(name: str, finding: Finding | None, good: str) -> Check:
    """One of ``kernel.platform``'s findings, or that there is none."""
    return Check(name, "ok", good) if finding is None else Check(name, finding.level, finding.what, finding.cure)


def agent_checks(status: Mapping[str, Any]) -> list[Check]:
    """What the agent says of itself."""
    found = [Check("agent", "error", problem, "see the agent's log; it tries again by itself") for problem in status["problems"]]
    if not found:
        found = [Check("agent", "ok", f"{status['state']}, process {status['pid']}")]
    datapath = status["datapath"]
    if datapath is None:
        return [*found, Check("datapath", "error", "none runs", "see the problems of the agent")]
    lacks = [Check("datapath", "warning", line, _cure(line)) for line in datapath["degraded"]]
    return [*found, *(lacks or [Check("datapath", "ok", f"{datapath['kind']}: {datapath['reason']}")])]


def _cure(line: str) -> str:
    if line.startswith("datapath process:"):
        return "packets go on; SECURITY.md says what this is for"
    if named := re.search(r"(mount -o|sysctl -w) [^;]+", line):
        return named[0]
    if line.startswith("CAP_"):
        return "config/flanpy.service gives it"
    return "a newer kernel has it; it works without, slower"


def absent_check(problem: str, silent: int | None, *, etcd_known: bool) -> Check:
    """That no agent answers; ``silent`` is the process that has the run directory's lock; ``etcd_known`` by the environment."""
    if silent is None:
        endpoints = "" if etcd_known else " --etcd-endpoints http://ADDRESS-OF-ETCD:2379"
        return Check("agent", "error", problem, f"systemctl start flanpy, or: flanpy agent{endpoints}")
    reason = f"process {silent} is the agent and does not answer: it hangs or was halted"
    return Check("agent", "error", reason, f"systemctl restart flanpy, or: kill -9 {silent} and start it again; packets go on")


def others_check(others: Mapping[int, str]) -> Check:
    """Processes of flanneld and other agents in this network namespace, by id."""
    if not others:
        return Check("other agents", "ok", "none in this network namespace")
    shown = ", ".join(f"{name} (process {pid})" for pid, name in sorted(others.items()))
    return Check("other agents", "error", f"{shown} runs here too: two agents undo each other's work", "stop one of them")


def udp_port(status: Mapping[str, Any]) -> int | None:
    """The port that encapsulated packets come in by; None when the backend has none."""
    match status["backend"]:
        case "udp":
            return int(status["port"])
        case "vxlan":
            return int(status["port"] or VXLAN_PORT)
    return None


def port_check(port: int, bound: bool, *, agent_runs: bool, process: int | None = None) -> Check:
    """Whether the socket of the udp backend is there, or, without an agent, its place free or held by the process that one has left."""
    name = f"UDP port {port}"
    if agent_runs:
        return Check(name, "ok", "bound") if bound else Check(name, "error", "nobody listens", "restart the agent")
    if bound and process is not None:
        return Check(name, "ok", f"held by the datapath process {process}, which carries on without an agent")
    if bound:
        return Check(name, "warning", "taken though no agent answers", f"ss -ulpn sport = :{port} shows by whom")
    if process is not None:
        return Check(name, "ok", f"free; the datapath process {process} carries on without an agent, by another port")
    return Check(name, "ok", "free")


def rp_filter_check(device: str, everywhere: str, own: str, sources: Mapping[str, str], expected: str) -> Check:
    """The reverse path filter of the underlay: strict is right as long as every peer is reached by the underlay interface."""
    name = f"rp_filter {device}"
    mode = max((text for text in (everywhere.strip(), own.strip()) if text in ("0", "1", "2")), default="0")
    astray = sorted(peer for peer, source in sources.items() if source != expected)
    if not astray:
        return Check(name, "ok", {"0": "off", "1": "strict; all peers are reached by this interface", "2": "loose"}[mode])
    reason = f"packets to {', '.join(astray[:3])} leave from {sources[astray[0]]}, not from {expected}"
    if mode == "1":
        return Check(
            name,
            "error",
            f"{reason}, and strict reverse path filtering drops the answers",
            f"sysctl net.ipv4.conf.{device}.rp_filter=2",
        )
    return Check(name, "warning", f"{reason}: peers with --source-check drop them", "mend the routes, or --iface and --public-ip")


def routes_check(answer: Mapping[str, Any]) -> Check:
    """Whether the kernel has the routes that the agent wants."""
    wrong = [f"{route['destination']} is {route['state']}" for route in answer["kernel"] if route["state"] != "ok"]
    if wrong:
        return Check(
            "routes", "error", ", ".join(wrong[:5]), "something on this host changes routes with protocol 102; find and stop it"
        )
    return Check("routes", "ok", f"{len(answer['kernel'])} in place")


def firewall_checks(chains: Iterable[Chain], port: int | None, networks: Iterable[str], devices: Iterable[str]) -> list[Check]:
    """Rules that drop us, as far as rules can be read."""
    chains, devices = list(chains), list(devices)
    found = []
    if port is not None and (obstacle := port_problem(chains, port)):
        found.append(Check("firewall", "warning", obstacle.reason, obstacle.cure))
    for network in networks:
        if ":" not in network and (obstacle := forward_problem(chains, network, devices)):
            found.append(Check("firewall", "warning", obstacle.reason, obstacle.cure))
    return found or [Check("firewall", "ok", f"nothing drops us in {counted(len(chains), 'chain')}")]


def overlay_check(peer: str, through: PathMtu, underlay: PathMtu | None, mtu_bytes: int, port: int | None) -> Check:
    """The way through the tunnel and back, beside what the underlay alone carries: whether the port is open in both directions."""
    name = f"overlay to {peer}"
    if through.mtu_bytes == mtu_bytes:
        opened = "" if port is None else f"UDP port {port} is open both ways, "
        return Check(name, "ok", f"{opened}packets of {mtu_bytes} bytes, the MTU of pods, get there whole")
    if through.mtu_bytes is not None:
        cure = "see the path to this node; the tunnel adds its headers to each packet"
        return Check(name, "error", f"{through.reason}; the MTU of pods is {mtu_bytes}", cure)
    if underlay is None or underlay.mtu_bytes is None:
        return Check(name, "warning", "no answer, as on the underlay: the node may be down", "see the path to this node")
    opened = "" if port is None else f"is UDP port {port} open in both directions, "
    return Check(
        name,
        "error",
        "the node answers on the underlay, and not through the tunnel",
        f"on both nodes: {opened}does the agent run, what does `flanpy capture --peer` show?",
    )


def forward6_check(networks: Iterable[str], forwarding: str) -> list[Check]:
    """Where pods have IPv6, whether this host forwards it."""
    if not any(":" in network for network in networks):
        return []
    if forwarding.strip() == "1":
        return [Check("ipv6 forwarding", "ok", "IPv6 packets are forwarded")]
    reason = "net.ipv6.conf.all.forwarding is 0: no IPv6 packet goes from pods to the tunnel"
    return [Check("ipv6 forwarding", "warning", reason, "sysctl net.ipv6.conf.all.forwarding=1")]


def clock_check(synchronised: bool, endpoints: Iterable[str]) -> Check:
    """Leases are judged by revisions, never by this clock; certificates of etcd and times in logs are not."""
    if synchronised:
        return Check("clock", "ok", "synchronised")
    if any(endpoint.startswith("https://") for endpoint in endpoints):
        reason = "not synchronised: etcd's certificates are judged by it, and fail when it is far off"
        return Check("clock", "warning", reason, "timedatectl set-ntp true, or run chrony")
    return Check("clock", "ok", "not synchronised; only the times in logs depend on it here")


def address_check(address: str, other: str | None) -> Check:
    """Whether another machine on the link answers for our underlay address; ``other`` is its MAC."""
    name = f"address {address}"
    if other is None:
        return Check(name, "ok", "nobody else on the link answers for it")
    reason = f"{other} on the link answers for it too: other nodes reach one of the two machines"
    return Check(name, "error", reason, "give one of them another address")


def offload_check(device: str, lro: bool | None) -> Check:
    """Large receive offload merges packets so that they cannot be taken apart again: not for what is forwarded."""
    name = f"offloads {device}"
    if lro:
        reason = "large receive offload is on: it merges packets of pods for good, and they are too big for the way on"
        return Check(name, "warning", reason, f"ethtool -K {device} lro off")
    return Check(name, "ok", "no large receive offload" if lro is not None else "not told by the driver")


def conntrack_check(count: str, limit: str) -> list[Check]:
    """How full the table of connections is; nothing where the kernel has none."""
    if not count.strip().isdecimal() or not limit.strip().isdecimal() or int(limit) == 0:
        return []
    used = int(count) / int(limit)
    if used >= CONNTRACK_FULL:
        reason = f"{used:.0%} of {limit.strip()} connections are in use: new ones are dropped when it is full"
        return [Check("conntrack", "warning", reason, f"sysctl net.netfilter.nf_conntrack_max={2 * int(limit)}")]
    return [Check("conntrack", "ok", f"{used:.0%} of {limit.strip()} connections are in use")]


def path_check(peer: str, found: PathMtu, uplink_mtu_bytes: int) -> Check:
    """The path to one peer."""
    name = f"path to {peer}"
    if found.mtu_bytes is None:
        return Check(name, "warning", found.reason, "is the node up? does a firewall drop ICMP echo?")
    if found.mtu_bytes < uplink_mtu_bytes:
        cure = f"set the MTU of the underlay interface to {found.mtu_bytes} on every node, or mend the path"
        return Check(name, "error", f"{found.reason}; the underlay interface says {uplink_mtu_bytes}", cure)
    return Check(name, "ok", f"packets of {found.mtu_bytes} bytes get there whole")
