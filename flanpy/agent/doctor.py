"""Gathers what ``flanpy doctor`` judges: /proc, the packet filter, the running agent, pings to peers. Changes nothing.

Runs in the operator's process, in the network namespace it was started in; the agent is only asked.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from flanpy.agent import host_checks as judge
from flanpy.agent.control import ask
from flanpy.agent.datapaths import running_process
from flanpy.agent.files import LOCK_FILE
from flanpy.agent.firewall_check import Chain, from_iptables, from_nft
from flanpy.agent.host_checks import Check
from flanpy.agent.path_mtu import PathMtu, measure_all
from flanpy.errors import AgentAbsent
from flanpy.kernel import host_facts, platform
from flanpy.kernel.address_probe import other_holder
from flanpy.model import Address

PEERS_PINGED = 32
"""Paths that are measured; in a larger cluster the first ones stand for the rest."""
TOOL_TIMEOUT_S = 10.0
UDP_PORT = 8285


def examine(run_dir: Path) -> Iterator[Check]:
    """Every check, in an order in which the first that fails explains those after it."""
    yield from _platform()
    try:
        status = ask(run_dir, "status", arguments={"brief": True})
    except AgentAbsent as error:
        others = _others(None)
        silent = _silent(run_dir, others)
        yield judge.absent_check(str(error), silent, etcd_known=_etcd_known(os.environ))
        yield judge.others_check({pid: name for pid, name in others.items() if pid != silent})
        yield judge.port_check(UDP_PORT, _udp_bound(UDP_PORT), agent_runs=False, process=running_process(run_dir))
        yield _ebpf()
        return
    yield from judge.agent_checks(status)
    yield judge.others_check(_others(status["pid"]))
    yield from _datapath(status)
    yield judge.routes_check(ask(run_dir, "routes"))
    yield from judge.firewall_checks(_chains(), judge.udp_port(status), _networks(status), status["devices"])
    yield from _host(status, ask(run_dir, "options")["options"])
    yield from _paths(status, ask(run_dir, "peers"))


def _platform() -> Iterator[Check]:
    release = os.uname().release
    yield judge.platform_check("kernel", platform.kernel_finding(release), f"Linux {release}")
    yield judge.platform_check("capabilities", platform.capability_finding(_read("/proc/thread-self/status")), "CAP_NET_ADMIN")
    yield judge.platform_check("tun", platform.tun_finding("/dev/net/tun"), "/dev/net/tun can be opened")
    forward = platform.forward_finding(_read("/proc/sys/net/ipv4/ip_forward"))
    yield judge.platform_check("ip_forward", forward, "packets are forwarded")


def _datapath(status: dict[str, Any]) -> Iterator[Check]:
    if status["backend"] == "udp":
        yield judge.port_check(status["port"], _udp_bound(status["port"]), agent_runs=True)
        yield _ebpf(str(status["uplink"]["name"]))


def _ebpf(underlay: str | None = None) -> Check:
    """That ebpf cannot run is no fault: userspace runs everywhere."""
    from flanpy.datapath.ebpf_probe import first_problem, probe_all

    problem = first_problem(probe_all(underlay))
    return Check("ebpf", "ok", "can run here" if problem is None else f"cannot run here, userspace can ({problem})")


def _host(status: dict[str, Any], options: dict[str, Any]) -> Iterator[Check]:
    """What may be wrong with this host though nothing of ours is."""
    uplink, counts = str(status["uplink"]["name"]), "/proc/sys/net/netfilter/nf_conntrack_{}"
    yield from judge.forward6_check(_networks(status), _read("/proc/sys/net/ipv6/conf/all/forwarding"))
    yield from _address(uplink, ip_address(status["uplink"]["address"]))
    yield judge.offload_check(uplink, host_facts.large_receive_offload(uplink))
    yield from judge.conntrack_check(_read(counts.format("count")), _read(counts.format("max")))
    yield judge.clock_check(host_facts.clock_synchronised(), options["etcd-endpoints"])


def _address(uplink: str, address: Address) -> Iterator[Check]:
    """Nothing where it cannot be asked: IPv6 asks by itself, and without CAP_NET_RAW nobody can."""
    if address.version == 4:
        with suppress(OSError):
            yield judge.address_check(str(address), other_holder(uplink, address))


def _networks(status: dict[str, Any]) -> list[str]:
    return str(status["network"]).split() if status["network"] else []


def _paths(status: dict[str, Any], answer: dict[str, Any]) -> Iterator[Check]:
    uplink = status["uplink"]
    addresses = list(dict.fromkeys(ip_address(peer["public_ip"]) for peer in answer["peers"]))[:PEERS_PINGED]
    sources = {str(address): _source_towards(address) for address in addresses}
    settings = "/proc/sys/net/ipv4/conf/{}/rp_filter"
    everywhere, own = _read(settings.format("all")), _read(settings.format(uplink["name"]))
    yield judge.rp_filter_check(uplink["name"], everywhere, own, sources, uplink["address"])
    measured = measure_all(addresses, uplink["mtu_bytes"])
    for address, found in measured.items():
        yield judge.path_check(str(address), found, uplink["mtu_bytes"])
    yield from _overlay(status, answer["peers"][:PEERS_PINGED], measured)


def _overlay(status: dict[str, Any], peers: Sequence[dict[str, Any]], underlay: dict[Address, PathMtu]) -> Iterator[Check]:
    """The way through the tunnel to each peer, where there is a tunnel: every node has its subnet's first address on it."""
    if not status["devices"]:
        return
    ours = {ip_network(subnet).version for subnet in status["lease"]["subnets"].split()} if status["lease"] else set()
    nodes = {}
    for peer in peers:
        subnets = [ip_network(subnet) for subnet in peer["subnets"].split()]
        address = next((subnet.network_address for subnet in subnets if subnet.version in ours), None)
        if address is not None:
            nodes[address] = ip_address(peer["public_ip"])
    for address, found in measure_all(list(nodes), status["mtu_bytes"]).items():
        node = nodes[address]
        yield judge.overlay_check(str(node), found, underlay.get(node), status["mtu_bytes"], judge.udp_port(status))


def _source_towards(address: Address) -> str:
    """The address that the kernel would send from; sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError as error:
            return f"nowhere ({error.strerror})"
        return str(probe.getsockname()[0])


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _udp_bound(port: int) -> bool:
    """Whether a UDP socket of this network namespace has the port (proc(5), /proc/net/udp: local address in hexadecimal)."""
    tables = _read("/proc/self/net/udp") + _read("/proc/self/net/udp6")
    return re.search(rf"^\s*\d+: [0-9A-F]{{8,32}}:{port:04X} ", tables, re.MULTILINE) is not None


def _others(own_pid: int | None) -> dict[int, str]:
    """Processes of flanneld and of other agents in our network namespace."""
    here = _namespace(Path("/proc/self"))
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) not in (own_pid, os.getpid()):
            words = _read(f"{folder}/cmdline").split("\0")
            name = _agent_name(words)
            if name and _namespace(folder) == here:
                found[int(folder.name)] = name
    return found


def _silent(run_dir: Path, others: Mapping[int, str]) -> int | None:
    """The agent of this run directory that is there though it does not answer; None where there is none."""
    holder = _read(f"{run_dir / LOCK_FILE}").strip()
    return int(holder) if holder.isdecimal() and int(holder) in others else None


def _etcd_known(environment: Mapping[str, str]) -> bool:
    """Whether `flanpy agent`, started here without flags, finds etcd."""
    return any(environment.get(f"{prefix}_ETCD_ENDPOINTS") for prefix in ("FLANPY", "FLANNELD"))


def _agent_name(words: Sequence[str]) -> str | None:
    names = [word.rsplit("/", 1)[-1] for word in words[:5]]
    if names[0] == "flanneld":
        return "flanneld"
    return "flanpy agent" if "agent" in names and names[names.index("agent") - 1] == "flanpy" else None


def _namespace(folder: Path) -> int | None:
    try:
        return (folder / "ns/net").stat().st_ino
    except OSError:
        return None


def _chains() -> list[Chain]:
    """The packet filter, as far as its tools are there."""
    chains = from_iptables(_output("iptables-save", "-t", "filter"))
    if _read("/proc/net/ip_tables_names").strip():
        chains += from_iptables(_output("iptables-legacy-save", "-t", "filter"), "iptables-legacy")
    text = _output("nft", "-j", "list", "ruleset")
    return chains + (from_nft(json.loads(text)) if text else [])


def _output(*command: str) -> str:
    """What a tool prints; "" when it is not there or fails."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
