"""Traffic between pods of a lab: pings in a matrix, TCP by iperf3. Sends and measures; judges nothing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flanpy.errors import LabError
from flanpy.lab.cluster import Lab
from flanpy.lab.plan import PodPlan
from flanpy.lab.sandbox import Sandbox
from flanpy.lab.status import agent_status
from flanpy.lab.topology import COUNT_TABLE

PING_TIMEOUT_S = 30.0
SERVER_TIMEOUT_S = 5.0
IPERF_PORT = 5201


@dataclass(frozen=True, slots=True)
class PingResult:
    """Pings of one pod to another; ``rtt_ms`` is the mean, None when nothing came back."""

    source: PodPlan
    target: PodPlan
    sent: int
    received: int
    rtt_ms: float | None


def ping_all(sandbox: Sandbox, pairs: Sequence[tuple[PodPlan, PodPlan]], count: int) -> list[PingResult]:
    """Ping every pair, all sources at the same time, the targets of one source one after the other."""
    sources = {source.name: source for source, _ in pairs}
    targets = {name: [target for source, target in pairs if source.name == name] for name in sources}
    # Once it has an answer, ping waits for the others only as long as the interval: a short one calls late answers lost.
    command = 'for target in "$@"; do ping -n -q -c "$0" -i 0.2 -W 2 "$target" || true; done'
    running = {
        name: sandbox.popen(name, ["sh", "-c", command, str(count), *(str(pod.address.ip) for pod in targets[name])])
        for name in sources
    }
    results = []
    for name, process in running.items():
        output, errors = process.communicate(timeout=PING_TIMEOUT_S)
        reports = re.split(r"^PING ", output, flags=re.MULTILINE)[1:]
        if len(reports) != len(targets[name]):
            raise LabError(f"{name}: ping cannot run: {errors.strip() or output.strip()}")
        results += [_ping_result(sources[name], target, report) for target, report in zip(targets[name], reports, strict=True)]
    return results


def _ping_result(source: PodPlan, target: PodPlan, report: str) -> PingResult:
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", report)
    times = re.search(r"= [\d.]+/([\d.]+)/", report)
    if counts is None:
        raise LabError(f"{source.name}: cannot read what ping says: {report.strip()[:200]}")
    return PingResult(source, target, int(counts[1]), int(counts[2]), float(times[1]) if times else None)


def wait_for_ping(sandbox: Sandbox, source: PodPlan, target: PodPlan, timeout_s: float) -> float | None:
    """Seconds until the first ping came back; None when none did."""
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < timeout_s:
        argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", str(target.address.ip)]
        if sandbox.run(source.name, argv, check=False).returncode == 0:
            return time.monotonic() - begin_s
        time.sleep(0.02)
    return None


@contextmanager
def tcp_server(sandbox: Sandbox, pod: PodPlan) -> Iterator[None]:
    """An iperf3 server in a pod, for the length of the block."""
    process = sandbox.popen(pod.name, ["iperf3", "--server", "--port", str(IPERF_PORT)])
    try:
        deadline = time.monotonic() + SERVER_TIMEOUT_S
        while not _listens(sandbox, pod.name):
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"{pod.name}: iperf3 does not listen within {SERVER_TIMEOUT_S:g} s")
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.communicate()


def _listens(sandbox: Sandbox, place: str) -> bool:
    """Whether a socket listens (state 0A of proc_net_tcp.txt) on iperf3's port; connections of an earlier one linger on the same port."""
    lines = sandbox.run(place, ["cat", "/proc/net/tcp", "/proc/net/tcp6"], check=False).stdout.splitlines()
    sockets = [line.split()[:4] for line in lines]
    return any(words[1].endswith(f":{IPERF_PORT:04X}") and words[3] == "0A" for words in sockets if len(words) == 4)


def tcp_gbit(sandbox: Sandbox, source: PodPlan, target: PodPlan, seconds: int) -> float:
    """TCP throughput, one stream, Gbit/s as the receiver counted it; LabError when it could not be measured."""
    argv = ["iperf3", "--client", str(target.address.ip), "--port", str(IPERF_PORT), "--time", str(seconds), "--json"]
    done = sandbox.run(source.name, argv, check=False, timeout_s=seconds + 20)
    try:
        report = json.loads(done.stdout)
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (ValueError, KeyError, TypeError) as error:
        reason = done.stdout.strip()[-300:] or done.stderr.strip()
        raise LabError(f"{source.name} to {target.name}: iperf3 has measured nothing: {reason}") from error


@dataclass(frozen=True, slots=True)
class TunnelCount:
    """Packets of a host's tunnel: on its cable as nftables counts them there, and as the agent's datapath counts verdicts.

    On the cable several packets can travel as one (a GSO train); the agent counts every pod's packet.
    """

    on_cable: int
    encapsulated: int
    decapsulated: int

    def since(self, before: TunnelCount) -> TunnelCount:
        """The difference to an earlier count."""
        return TunnelCount(
            self.on_cable - before.on_cable, self.encapsulated - before.encapsulated, self.decapsulated - before.decapsulated
        )


def tunnel_counts(lab: Lab) -> dict[str, TunnelCount]:
    """The counters of every host; ``topology.count_script`` must have been run."""
    listed = json.loads(lab.sandbox.run(None, ["nft", "-j", "list", "counters", "table", "netdev", COUNT_TABLE]).stdout)
    cables = {item["counter"]["name"]: item["counter"]["packets"] for item in listed["nftables"] if "counter" in item}
    return {host.name: _tunnel_count(lab, host.name, cables[host.name]) for host in lab.plan.hosts}


def _tunnel_count(lab: Lab, host: str, on_cable: int) -> TunnelCount:
    datapath = agent_status(lab, host)["datapath"]
    if datapath is None:
        raise LabError(f"the agent of {host} has no datapath; {lab.log_tail(host)}")
    packets = {name: count["packets"] for name, count in datapath["verdicts"].items()}
    return TunnelCount(on_cable, packets["encapsulated"], packets["decapsulated"])
