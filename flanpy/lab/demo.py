"""``flanpy lab demo``: three hosts, real agents, real etcd; shows that the overlay works, proves it by counters, removes it.

Every step either shows what it promises or raises LabError that names the agent's log to read. Nothing is left behind but, after
a failure, the logs.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from flanpy.errors import LabError
from flanpy.lab import compare, lifecycle, topology
from flanpy.lab.cluster import Lab
from flanpy.lab.dissect import capture, layers
from flanpy.lab.plan import PodPlan
from flanpy.lab.preflight import check_machine
from flanpy.lab.process import has_ended
from flanpy.lab.registry import LabSpec, directory, free_name
from flanpy.lab.screen import Screen
from flanpy.lab.status import read_status
from flanpy.lab.traffic import PingResult, TunnelCount, ping_all, tunnel_counts, wait_for_ping

NETWORK = "10.5.0.0/16"
PORT = 8285
PINGS = 3
ROUNDS = 3
RETURN_LIMIT_S = 20.0
QUIET = ("--peer-probe-interval=0",)
"""No probes between the agents: the counters below are those of the pings alone."""


def run_demo(datapath: str) -> None:
    """Run the whole demo; LabError when a step does not show what it should."""
    check_machine(datapath, further=(("iperf3", "iperf3"),))
    began_s = time.monotonic()
    config = json.dumps({"Network": NETWORK, "Backend": {"Type": "udp", "Port": PORT}})
    spec = LabSpec(free_name("demo"), hosts=3, pods=2, network_config=config, datapath=datapath, agent_flags=QUIET)
    with Screen() as screen, _terminated_like_interrupted():
        screen.title("Three hosts join an overlay")
        with lifecycle.temporary(spec, screen.working) as lab:
            screen.done()
            for step in STEPS:
                step(lab, screen)
            holder = lab.sandbox.pid
            screen.title("Everything is removed again")
        _check_gone(spec.name, holder)
        screen.say(f"The lab was held by process {holder}; it has ended, and with it all namespaces, devices and processes.")
        screen.say(f"The demo took {time.monotonic() - began_s:.0f} s.")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that nothing stays behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show_leases(lab: Lab, screen: Screen) -> None:
    """Every host has a subnet of its own and an agent that knows all the others."""
    status = read_status(lab)
    screen.say(f"Each agent has leased a subnet of {NETWORK} from etcd at {status.etcd} and knows the others:")
    columns = ("host", "underlay", "subnet", "agent", "datapath", "peers")
    rows = [(h.name, h.underlay, h.subnet or "-", h.agent, h.datapath or "-", str(h.peers)) for h in status.hosts]
    screen.table(columns, rows, right=("peers",))
    for host in status.hosts:
        if host.agent != "ready" or host.peers != len(status.hosts) - 1:
            words = "; ".join(host.problems) or f"{host.agent}, {host.peers} peers"
            raise LabError(
                f"{host.name}: its agent should be ready with {len(status.hosts) - 1} peers: {words}; {lab.log_tail(host.name)}"
            )
    if len({host.subnet for host in status.hosts}) != len(status.hosts):
        raise LabError("two hosts have leased the same subnet")


def _show_matrix(lab: Lab, screen: Screen) -> None:
    pods = lab.segment().pods
    screen.title("Every pod pings every other pod")
    lab.sandbox.script(topology.count_script(lab.plan, PORT))
    before = tunnel_counts(lab)
    screen.working("pods of the same host")
    same = ping_all(lab.sandbox, [(a, b) for a in pods for b in pods if a != b and a.host == b.host], PINGS)
    between = tunnel_counts(lab)
    screen.working("pods of different hosts")
    across = ping_all(lab.sandbox, [(a, b) for a in pods for b in pods if a.host != b.host], PINGS)
    after = tunnel_counts(lab)
    screen.table(("ms", *(pod.name for pod in pods)), _matrix_rows(pods, [*same, *across]), gap=1)
    check_answers(lab, [*same, *across])
    bridged = {host: between[host].since(before[host]) for host in before}
    crossed = {host: after[host].since(between[host]) for host in before}
    _show_counters(screen, bridged, crossed)
    check_counters(lab, bridged, crossed, _expected(lab, across))


def _matrix_rows(pods: tuple[PodPlan, ...], results: list[PingResult]) -> list[tuple[str, ...]]:
    by_pair = {(result.source.name, result.target.name): result for result in results}

    def cell(source: PodPlan, target: PodPlan) -> str:
        result = by_pair.get((source.name, target.name))
        if result is None:
            return "·"
        return f"{result.rtt_ms:.2f}" if result.rtt_ms is not None and result.received == result.sent else "LOST"

    return [(source.name, *(cell(source, target) for target in pods)) for source in pods]


def check_answers(lab: Lab, results: list[PingResult]) -> None:
    """Raise LabError when a ping had no answer."""
    for result in results:
        if result.received != result.sent:
            lost = result.sent - result.received
            tails = "\n".join(f"{host}: {lab.log_tail(host)}" for host in dict.fromkeys((result.source.host, result.target.host)))
            raise LabError(f"{result.source.name} to {result.target.name}: {lost} of {result.sent} pings had no answer\n{tails}")


def _expected(lab: Lab, across: list[PingResult]) -> dict[str, int]:
    """Packets that must have left each host through its tunnel: its pods' requests, and their answers to the others'."""
    ends = [host for result in across for host in (result.source.host, result.target.host) for _ in range(result.sent)]
    return {host.name: ends.count(host.name) for host in lab.plan.hosts}


def _show_counters(screen: Screen, bridged: dict[str, TunnelCount], crossed: dict[str, TunnelCount]) -> None:
    screen.say("")
    screen.say(
        f"Packets to UDP port {PORT} on each host's cable, as nftables counts them (several may travel as one), and those that"
    )
    screen.say("its agent has encapsulated and decapsulated. Pods of one host meet on the bridge: 0. Others cross the overlay.")
    rows = []
    for host, on_bridge in bridged.items():
        for what, count in (("the same host", on_bridge), ("different hosts", crossed[host])):
            rows.append((host, what, str(count.on_cable), str(count.encapsulated), str(count.decapsulated)))
    columns = ("on the cable", "encapsulated", "decapsulated")
    screen.table(("host", "pings between pods of", *columns), rows, right=columns)


def check_counters(lab: Lab, bridged: dict[str, TunnelCount], crossed: dict[str, TunnelCount], expected: dict[str, int]) -> None:
    """Raise LabError unless pods of one host stayed off the tunnel and all other pings and answers went through it."""
    for host, on_bridge in bridged.items():
        if on_bridge != TunnelCount(0, 0, 0):
            raise LabError(f"{host}: pings between its own pods touched the tunnel: {on_bridge}; {lab.log_tail(host)}")
        count = crossed[host]
        if count.on_cable == 0 or min(count.encapsulated, count.decapsulated) < expected[host]:
            raise LabError(
                f"{host}: {expected[host]} pings and answers should have crossed the tunnel each way, and these did: {count}; "
                f"{lab.log_tail(host)}"
            )


def _show_packet(lab: Lab, screen: Screen) -> None:
    pods = lab.segment().pods
    source, target = pods[0], pods[-1]
    screen.title(f"One ping from {source.name} to {target.name}, as it leaves {source.host}")
    found = layers(capture(lab, source, target, PORT))
    screen.table(("at", "bytes", "layer", "fields"), [(str(x.offset), str(x.header_bytes), x.name, x.fields) for x in found])
    names = [layer.name for layer in found]
    if names[:5] != ["Ethernet", "IP", "UDP", "IP", "ICMP"]:
        raise LabError(f"expected Ethernet, IP, UDP, IP, ICMP on the underlay and found {', '.join(names)}")
    screen.say(
        f"The UDP payload is the pod's own packet with nothing before it: 28 bytes a packet, port {PORT}, as flannel's udp."
    )


def _show_throughput(lab: Lab, screen: Screen) -> None:
    screen.title("TCP pod to pod, one stream, beside its alternatives")
    results = compare.compare(lab, compare.add_ways(lab), ("superpacket", "wire"), ROUNDS, screen.working)
    rows = []
    for result in results:
        for way in result.gbit:
            spread = f"{min(result.gbit[way]):.1f} to {max(result.gbit[way]):.1f}"
            ratios = (_ratio(result, way, compare.ROUTED), _ratio(result, way, compare.VXLAN))
            rows.append((result.mode, way, f"{result.median(way):.1f}", spread, *ratios))
    columns = ("Gbit/s", "spread", "× plain routing", "× kernel VXLAN")
    screen.table(("underlay", "way", *columns), rows, right=columns)
    screen.say(
        f"Medians of {ROUNDS} interleaved rounds of {compare.SAMPLE_S} s on {os.cpu_count()} CPUs that also run iperf3's both ends."
    )
    screen.say("Ratios are medians of the ratios of each round.")
    for result in results:
        if result.noisy():
            screen.say(f"{result.mode}: rounds differ by more than {compare.NOISE_LIMIT:g} times: too noisy to compare here.")
    screen.say("superpacket: the underlay carries whole 64 KB packets; wire: every packet fits 1500 bytes, as on a real wire.")


def _ratio(result: compare.Comparison, way: str, base: str) -> str:
    ratios = result.ratios(way, base)
    return f"{ratios[len(ratios) // 2]:.2f}"


def _show_return(lab: Lab, screen: Screen) -> None:
    pods = lab.segment().pods
    source, target = pods[0], pods[-1]
    host = target.host
    subnet = lab.lease(host)
    screen.title(f"{host} leaves and comes back")
    screen.working("its agent is stopped, its cable pulled, subnet.env removed")
    lab.stop_agent(host)
    lab.cut(host)
    lab.host_path(host, "subnet.env").unlink()
    if ping_all(lab.sandbox, [(source, target)], 1)[0].received:
        raise LabError(f"{target.name} still answers although the cable of {host} is pulled")
    screen.done()
    screen.say(f"{target.name} does not answer {source.name}, as it must be")
    screen.working("its cable is plugged in again, its agent started")
    lab.join(host)
    lab.start_agents([host])
    again = lab.lease(host)
    if again != subnet:
        raise LabError(f"{host} came back with {again} in place of {subnet}; {lab.log_tail(host)}")
    waited_s = wait_for_ping(lab.sandbox, source, target, RETURN_LIMIT_S)
    if waited_s is None:
        raise LabError(f"{target.name} does not answer {RETURN_LIMIT_S:g} s after {host} came back; {lab.log_tail(host)}")
    screen.done()
    screen.say(f"{host} has its own subnet {again.subnet if again else '-'} again, and {target.name} answers")


def _check_gone(name: str, holder: int) -> None:
    if directory(name).exists():
        raise LabError(f"{directory(name)} is still there")
    if not has_ended(holder):
        raise LabError(f"process {holder}, the holder of the lab, still lives")


STEPS: tuple[Callable[[Lab, Screen], None], ...] = (show_leases, _show_matrix, _show_packet, _show_throughput, _show_return)
