"""Beds: two hosts and two pods for each setup, all alive side by side in one sandbox, so that rounds can be interleaved.

A bed is made once and kept for the whole run; a sample asks it for a mode and then sends traffic from pod to pod. Nothing is
cleaned up here: with the sandbox everything in it ends.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from flanpy.bench import topology
from flanpy.bench.topology import Side
from flanpy.errors import LabError
from flanpy.lab.cluster import IMPORT_PATH
from flanpy.lab.process import Entered
from flanpy.lab.sandbox import Sandbox

if TYPE_CHECKING:
    from flanpy.bench.stations import Station

READY_TIMEOUT_S = 15.0
IPERF_PORT = 5201


@dataclass(slots=True)
class Bed:
    """A living bed. ``carriers`` carry its packets: when one has ended the bed is of no use any more. ``helpers`` make traffic.

    ``reporters`` are the carriers that answer a line on standard input with their counters.
    """

    setup: str
    sandbox: Sandbox
    a: Side
    b: Side
    mtu_bytes: int
    carriers: list[Entered] = field(default_factory=list)
    helpers: list[Entered] = field(default_factory=list)
    reporters: list[Entered] = field(default_factory=list)
    flanneld: str | None = None
    """Path of flanneld's binary, for the setup of that name."""
    mode: str | None = None
    stations: tuple[Station, Station] | None = None
    """Senders and receivers of probes in pod a and pod b, once somebody has asked for them."""
    trains: bool = True
    magic: int = 0
    """Number of the last train of probes, so that stragglers of an earlier one are told apart."""

    def set_mode(self, mode: str) -> None:
        """Switch the underlay, unless it is in this mode already."""
        if mode != self.mode:
            self.sandbox.script(topology.mode_script(self.setup, mode))
            self.mode = mode

    def set_trains(self, on: bool) -> None:
        """Let UDP trains leave pod a whole, or cut them there."""
        if on != self.trains:
            self.sandbox.script(topology.trains_script(self.setup, on))
            self.trains = on

    def check(self) -> None:
        """Raise LabError when a process of the bed has ended."""
        for process in (*self.carriers, *self.helpers):
            if process.poll() is not None:
                error = process.stderr.read().strip() if process.stderr else ""
                raise LabError(f"{self.setup}: a process of the bed has ended (status {process.returncode}): {error[-2000:]}")

    @property
    def carries(self) -> bool:
        """Whether every process that carries its packets is alive."""
        return all(process.poll() is None for process in self.carriers)

    def start_helpers(self) -> None:
        """Start what makes traffic anew: the iperf3 server in pod b; stations start when they are asked for."""
        for process in self.helpers:
            process.kill()
            process.communicate()
        self.stations = None
        serve = ["iperf3", "--server", "--json", "--interval", "0.1", "--port", str(IPERF_PORT)]
        self.helpers[:] = [self.sandbox.popen(self.b.pod, serve, stdout=subprocess.DEVNULL)]

    def counters(self) -> Counter[str]:
        """What the datapath has done so far, both hosts together; empty for setups that cannot tell."""
        total: Counter[str] = Counter()
        for process in self.reporters:
            total.update(_report(self, process))
        return total

    def ping(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the pods reach each other; LabError when they do not."""
        deadline = time.monotonic() + timeout_s
        argv = ["ping", "-c", "1", "-W", "1", "-i", "0.2", str(self.b.pod_address)]
        while self.sandbox.run(self.a.pod, argv, check=False).returncode != 0:
            self.check()
            if time.monotonic() > deadline:
                raise LabError(
                    f"{self.setup}: pod {self.b.pod_address} does not answer {self.a.pod_address} within {timeout_s:g} s"
                )


def make_bed(sandbox: Sandbox, setup: str, underlay_mtu_bytes: int, flanneld: str | None = None) -> Bed:
    """Make and start the bed of one setup, with an iperf3 server in pod b; returns when its pods reach each other."""
    a, b = topology.sides(setup)
    sandbox.script(topology.bed_script(setup, underlay_mtu_bytes))
    bed = Bed(setup, sandbox, a, b, topology.inner_mtu(setup, underlay_mtu_bytes), flanneld=flanneld)
    for here, there in ((a, b), (b, a)):
        STARTERS[setup](bed, here, there)
    bed.start_helpers()
    bed.ping()
    return bed


def start_process(bed: Bed, place: str, argv: list[str]) -> Entered:
    """Start a carrier, which says ``ready`` on its standard output; returns when it has."""
    process = bed.sandbox.popen(place, argv, env=IMPORT_PATH, stdin=subprocess.PIPE)
    bed.carriers.append(process)
    if _line(bed, process) != "ready":
        process.wait(READY_TIMEOUT_S)
        bed.check()
    return process


def _line(bed: Bed, process: Entered) -> str:
    """The next line that a process prints; empty when it has ended."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], READY_TIMEOUT_S)[0]:
        raise LabError(f"{bed.setup}: pid {process.pid} says nothing for {READY_TIMEOUT_S:g} s")
    return process.stdout.readline().strip()


def _report(bed: Bed, process: Entered) -> Counter[str]:
    """Ask a reporter for its counters: packets by verdict, and the others by their names."""
    assert process.stdin is not None
    try:
        process.stdin.write("\n")
        process.stdin.flush()
    except BrokenPipeError as error:
        raise LabError(f"{bed.setup}: a process of the bed has ended") from error
    line = _line(bed, process)
    if not line:
        raise LabError(f"{bed.setup}: a process of the bed has ended")
    stats = json.loads(line)
    return Counter({**{name: count["packets"] for name, count in stats["verdicts"].items()}, **stats["counters"]})


def _start_routed(bed: Bed, here: Side, there: Side) -> None:
    bed.sandbox.script(topology.routed_script(here, there))


def _start_vxlan(bed: Bed, here: Side, there: Side) -> None:
    bed.sandbox.script(topology.vxlan_script(here, there, bed.mtu_bytes))


def _start_carrier(module: str, *options: str, reports: bool = False) -> Callable[[Bed, Side, Side], None]:
    def start(bed: Bed, here: Side, there: Side) -> None:
        """Start a process that opens the TUN device, then set the device up."""
        argv = [sys.executable, "-m", module, "--address", str(here.underlay), "--port", str(topology.PORT)]
        argv += ["--device", topology.TUNNEL, "--mtu", str(bed.mtu_bytes)]
        argv += [word for side in (here, there) for word in ("--route", f"{side.subnet}={side.underlay}:{topology.PORT}")]
        process = start_process(bed, here.host, [*argv, *(option.format(host=here.host) for option in options)])
        if reports:
            bed.reporters.append(process)
        bed.sandbox.script(topology.tun_script(here, bed.mtu_bytes))

    return start


def _start_flanneld(bed: Bed, here: Side, there: Side) -> None:
    from flanpy.bench.flanneld import start_flanneld

    start_flanneld(bed, here, there)


def _start_agent(bed: Bed, here: Side, there: Side) -> None:
    from flanpy.bench.backend_agents import start_agent

    start_agent(bed, here, there)


_EBPF = ("--kind=ebpf", "--pins=/sys/fs/bpf/{host}")

STARTERS: Mapping[str, Callable[[Bed, Side, Side], None]] = MappingProxyType(
    {
        "routed": _start_routed,
        "vxlan": _start_vxlan,
        "proxy": _start_carrier("flanpy.bench.proxy_process"),
        "userspace": _start_carrier("flanpy.bench.datapath_process", reports=True),
        "ebpf": _start_carrier("flanpy.bench.datapath_process", *_EBPF, reports=True),
        "ebpf-bypass": _start_carrier("flanpy.bench.datapath_process", *_EBPF, "--bypass", reports=True),
        **dict.fromkeys(("vxlan-agent", "host-gw", "ipip", "wireguard"), _start_agent),
        "flanneld": _start_flanneld,
    }
)
