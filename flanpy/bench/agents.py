"""What the agent costs and how fast it is: a lab of three hosts with a real etcd, measured from outside.

agent_ready            process started -> subnet.env written          agent_join   ... -> a packet from another host arrives
agent_convergence_p50  lease acknowledged by etcd -> the first packet for it leaves another host, 1,000 leases known
agent_churn_loss       packets lost between two pods while 100 leases a second come and go
agent_restart_loss     packets lost between two pods while the agent of one of them stops and starts
agent_memory           resident, three hosts; with 65,536 routes        agent_idle_cpu    of one CPU, all threads

Memory and CPU time are the agent's and its datapath process's together. All is measured with userspace; starts, and what an agent takes
at rest, again with ebpf in a lab of its own.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from pathlib import Path

from flanpy.agent.loop import RESYNC_S
from flanpy.bench.agent_process import idle_percent, resident_mb
from flanpy.bench.beds import Bed
from flanpy.bench.convergence import FirstPacket
from flanpy.bench.etcd_gateway import EtcdGateway, LeaseChanges, free_subnets
from flanpy.bench.runner import Progress, Recorder
from flanpy.bench.samples import NO_MODE, Figure, Settings
from flanpy.bench.stations import send_and_count
from flanpy.bench.tasks import Value
from flanpy.bench.topology import Side
from flanpy.lab import topology
from flanpy.lab.cluster import Lab
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox

NETWORK = IPv4Network("10.0.0.0/8")
CONFIG = json.dumps({"Network": str(NETWORK), "SubnetLen": 24, "Backend": {"Type": "udp"}})
HOSTS = 3
CHURN_PPS = 20_000
RESTART_S = 2.0
"""Traffic lasts at least so long when an agent stops and starts in it."""
REST_S = RESYNC_S
"""Of one sample of CPU time: what an agent does only every so often is in it once."""
SETUP, EBPF = "agent", "ebpf"
SETTLE_S = 12.0
"""With ebpf: after the packets by which a join is timed the paths are probed for ten seconds more."""

FIGURES = (
    Figure("agent_ready", "agent: process started -> ready (subnet.env written), etcd up", "s", higher_is_better=False),
    Figure("agent_join", "agent: process started -> first packet from another host", "s", higher_is_better=False),
    Figure("agent_restart", "agent: stopped and started again -> ready", "s", higher_is_better=False),
    Figure("agent_convergence_p50", "agent: lease in etcd -> first packet, p50", "ms", higher_is_better=False),
    Figure("agent_convergence_p99", "agent: lease in etcd -> first packet, p99", "ms", higher_is_better=False),
    Figure("agent_steady_loss", "agent: packets lost between pods, nothing changes", "%", higher_is_better=False),
    Figure("agent_churn_loss", "agent: packets lost between pods, 100 lease changes a second", "%", higher_is_better=False),
    Figure("agent_restart_loss", "agent: packets lost between pods while an agent restarts", "%", higher_is_better=False),
    Figure("agent_idle_cpu", "agent: CPU time while nothing happens", "%", higher_is_better=False),
    Figure("agent_memory", "agent: resident memory, 3 hosts", "MB", higher_is_better=False),
    Figure("agent_memory_65536", "agent: resident memory, 65,536 routes", "MB", higher_is_better=False),
    Figure("agent_sync_65536", "agent: last of 65,536 leases in etcd -> first packet for it", "s", higher_is_better=False),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done: leases that are known while convergence is timed, how often it is, and leases for the last figures."""

    known: int = 1_000
    convergences: int = 40
    many: int = 65_536


FULL_SCALE = Scale()


class AgentRun:
    """One lab and what is measured in it, in an order that builds up: starts, rest, 1,000 leases, 65,536 leases."""

    def __init__(
        self, lab: Lab, settings: Settings, recorder: Recorder, progress: Progress, scale: Scale, setup: str = SETUP
    ) -> None:
        self._lab = lab
        self._setup = setup
        self._settings = settings
        self._recorder = recorder
        self._progress = progress
        self._scale = scale
        self._sink = lab.plan.services_address
        """Peers that do not exist are reached here: outside of all hosts, where a socket waits for their packets."""

    def everything(self) -> None:
        """All figures, one after the other."""
        self.start()
        self.rest()
        self.starts_again()
        with EtcdGateway(self._lab) as etcd:
            self.convergence(etcd)
            bed = _pods_as_bed(self._lab, *self._hosts()[:2])
            self.churn(etcd, bed)
            self.restarts(bed)
            self.many(etcd)

    def _add(self, figure: str, number: int, value: float, **detail: object) -> None:
        self._recorder.add(Value(figure, value, detail), self._setup, NO_MODE, number)

    def _hosts(self) -> Sequence[str]:
        return [host.name for host in self._lab.plan.hosts]

    def _subnets(self) -> list[IPv4Network]:
        leases = [self._lab.lease(host) for host in self._hosts()]
        return [lease.subnet for lease in leases if lease is not None]

    # ------------------------------------------------------------------------------------------------ starts

    def start(self) -> None:
        """Start etcd and, one by one, the agents; from the second on a packet from the first tells when the host has joined."""
        lab = self._lab
        self._progress.step("agents: start and join")
        lab.sandbox.script(topology.underlay_script(lab.plan))
        lab.start_etcd()
        lab.put_network_config(CONFIG)
        first, *others = self._hosts()
        self._add("agent_ready", 0, _timed_start(lab, first))
        for number, host in enumerate(others, 1):
            with FirstPacket.to_tunnel(lab, first, host) as prober:
                begin = time.monotonic()
                self._add("agent_ready", number, _timed_start(lab, host))
                lease = lab.lease(host)
                assert lease is not None
                prober.await_first(lease.subnet[2])
                self._add("agent_join", number, time.monotonic() - begin)
        lab.attach_pods()

    def rest(self) -> None:
        """Memory and CPU time of agents that have nothing to do."""
        for number, host in enumerate(self._hosts()):
            self._add("agent_memory", number, resident_mb(self._lab, host))
        self._progress.step("agents: idle")
        for number, percent in enumerate(idle_percent(self._lab, self._hosts(), seconds=REST_S)):
            self._add("agent_idle_cpu", number, percent)

    def starts_again(self) -> None:
        """An agent is stopped and started again."""
        for number in range(self._settings.rounds):
            self._progress.step("agents: restart")
            self._add("agent_restart", number, self._restart(self._hosts()[-1]))

    # ------------------------------------------------------------------------------------------------ changes

    def _fill(self, etcd: EtcdGateway, leases: int) -> list[IPv4Network]:
        """Bring the cluster to so many leases; returns the subnets that are still free."""
        free = free_subnets(NETWORK, self._subnets())
        new = list(islice(free, leases - HOSTS))
        etcd.put_leases([(subnet, self._sink) for subnet in new])
        with FirstPacket.to_underlay(self._lab, self._hosts()[0]) as prober:
            prober.await_first(new[-1][2], within_s=120.0)
        return list(free)

    def convergence(self, etcd: EtcdGateway) -> None:
        """A lease is written, and from then on packets for it are sent from a host every half millisecond until one leaves."""
        spare = self._fill(etcd, self._scale.known)[0]
        with FirstPacket.to_underlay(self._lab, self._hosts()[0]) as prober:
            for number in range(self._settings.rounds):
                self._progress.step("agents: convergence")
                times_ms = sorted(_converge_ms(etcd, prober, spare, self._sink) for _ in range(self._scale.convergences))
                self._add("agent_convergence_p50", number, times_ms[len(times_ms) // 2])
                self._add("agent_convergence_p99", number, times_ms[int(len(times_ms) * 0.99)], longest_ms=times_ms[-1])

    def churn(self, etcd: EtcdGateway, bed: Bed) -> None:
        """Traffic between two pods, at rest and while leases come and go."""
        spare = list(islice(free_subnets(NETWORK, self._subnets()), self._scale.known, self._scale.known + 100))
        for number in range(self._settings.rounds):
            self._progress.step("agents: loss while leases change")
            for figure, leases in (("agent_steady_loss", []), ("agent_churn_loss", spare)):
                with LeaseChanges(etcd, leases, self._sink) as changes:
                    sent, lost = _traffic(bed, self._settings.seconds)
                self._add(figure, number, 100 * lost / sent, sent=sent, lost=lost, changes=changes.done)

    def restarts(self, bed: Bed) -> None:
        """Traffic between two pods while the agent of the one that receives stops and starts again."""
        receiver = self._hosts()[1]
        with ThreadPoolExecutor(1) as executor:
            for number in range(self._settings.rounds):
                self._progress.step("agents: loss while one restarts")
                restart = executor.submit(self._restart, receiver)
                sent, lost = _traffic(bed, max(self._settings.seconds, RESTART_S))
                self._add("agent_restart_loss", number, 100 * lost / sent, sent=sent, lost=lost, ready_s=restart.result())

    def _restart(self, host: str) -> float:
        """Stop an agent and start it again; how long the start took, seconds."""
        self._lab.stop_agent(host)
        return _timed_start(self._lab, host)

    def many(self, etcd: EtcdGateway) -> None:
        """65,536 routes: how long the last one takes, and what the agents hold."""
        self._progress.step(f"agents: {self._scale.many:,} leases")
        free = list(islice(free_subnets(NETWORK, self._subnets()), self._scale.many - HOSTS - 1))
        etcd.put_leases([(subnet, self._sink) for subnet in free[:-1]])
        begin = time.monotonic()
        etcd.put_lease(free[-1], self._sink)
        with FirstPacket.to_underlay(self._lab, self._hosts()[0]) as prober:
            prober.await_first(free[-1][2], within_s=120.0)
        self._add("agent_sync_65536", 0, time.monotonic() - begin)
        for number, host in enumerate(self._hosts()):
            self._add("agent_memory_65536", number, resident_mb(self._lab, host))


def _timed_start(lab: Lab, host: str) -> float:
    begin = time.monotonic()
    lab.start_agents([host])
    return time.monotonic() - begin


def _traffic(bed: Bed, seconds: float) -> tuple[int, int]:
    """Packets sent from pod a to pod b, and those of them that were lost."""
    sent, received = send_and_count(bed, payload_bytes=64, rate_pps=CHURN_PPS, seconds=seconds, train=1, flows=4)
    return sent.packets, sent.packets - received.packets


def _converge_ms(etcd: EtcdGateway, prober: FirstPacket, subnet: IPv4Network, sink: IPv4Address) -> float:
    """Write a lease, wait for its first packet, delete it and wait until packets cease."""
    etcd.put_lease(subnet, sink)
    begin = time.monotonic()
    prober.await_first(subnet[2])
    taken_ms = (time.monotonic() - begin) * 1000
    etcd.delete_lease(subnet)
    prober.await_none(subnet[2])
    return taken_ms


def _pods_as_bed(lab: Lab, host_a: str, host_b: str) -> Bed:
    """The first pods of two hosts as the two ends of a bed, for senders and receivers."""

    def side(host: str) -> Side:
        lease = lab.lease(host)
        assert lease is not None
        pod = lab.segment().pods_of(host)[0]
        number = int(pod.address.ip) - int(lease.subnet.network_address)
        return Side(host, pod.name, lab.plan.host(host).address, lease.subnet, number)

    return Bed(SETUP, lab.sandbox, side(host_a), side(host_b), lab.segment().mtu_bytes)


def steps(settings: Settings) -> int:
    """Steps of the progress display."""
    return 5 + 4 * settings.rounds


def run_agents(
    settings: Settings, recorder: Recorder, progress: Progress, scale: Scale = FULL_SCALE, *, without_ebpf: str | None = None
) -> None:
    """Build a lab, measure, end it; and again with ebpf, unless there is a reason why it cannot run here."""
    with _lab("userspace") as lab:
        AgentRun(lab, settings, recorder, progress, scale).everything()
    if without_ebpf is not None:
        progress.note(f"agents with ebpf are left out: {without_ebpf}")
        return
    with _lab("ebpf") as lab:
        run = AgentRun(lab, settings, recorder, progress, scale, EBPF)
        run.start()
        time.sleep(SETTLE_S)
        run.rest()


@contextmanager
def _lab(datapath: str) -> Iterator[Lab]:
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flanpy-bench-")))
        sandbox = stack.enter_context(Sandbox.create())
        yield Lab(LabSpec("bench", HOSTS, 1, CONFIG, datapath=datapath), sandbox, logs)
