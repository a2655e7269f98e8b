"""Beds: two hosts and two pods for each setup, all alive side by side in one sandbox, so that rounds can be interleaved.

A bed is made once and kept for the whole run; a sample asks it for a mode and then sends traffic from pod to pod. Nothing is
cleaned up here: with the sandbox everything in it ends.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
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
    """A living bed. ``processes`` carry its packets; a dead one makes ``check`` fail."""

    setup: str
    sandbox: Sandbox
    a: Side
    b: Side
    mtu_bytes: int
    processes: list[Entered] = field(default_factory=list)
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
        for process in self.processes:
            if process.poll() is not None:
                error = process.stderr.read().strip() if process.stderr else ""
                raise LabError(f"{self.setup}: a process of the bed has ended (status {process.returncode}): {error[-2000:]}")

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
    serve = ["iperf3", "--server", "--json", "--interval", "0.1", "--port", str(IPERF_PORT)]
    bed.processes.append(sandbox.popen(b.pod, serve, stdout=subprocess.DEVNULL))
    bed.ping()
    return bed


def start_process(bed: Bed, place: str, argv: list[str]) -> Entered:
    """Start a process that says ``ready`` on its standard output; returns when it has."""
    process = bed.sandbox.popen(place, argv, env=IMPORT_PATH)
    bed.processes.append(process)
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], READY_TIMEOUT_S)[0]:
        raise LabError(f"{bed.setup}: {argv[2]} is not ready after {READY_TIMEOUT_S:g} s")
    if process.stdout.readline().strip() != "ready":
        process.wait(READY_TIMEOUT_S)
        bed.check()
    return process


def _start_routed(bed: Bed, here: Side, there: Side) -> None:
    bed.sandbox.script(topology.routed_script(here, there))


def _start_vxlan(bed: Bed, here: Side, there: Side) -> None:
    bed.sandbox.script(topology.vxlan_script(here, there, bed.mtu_bytes))


def _start_carrier(module: str, *options: str) -> Callable[[Bed, Side, Side], None]:
    def start(bed: Bed, here: Side, there: Side) -> None:
        """Start a process that opens the TUN device, then set the device up."""
        argv = [sys.executable, "-m", module, "--address", str(here.underlay), "--port", str(topology.PORT)]
        argv += ["--device", topology.TUNNEL, "--mtu", str(bed.mtu_bytes)]
        argv += [word for side in (here, there) for word in ("--route", f"{side.subnet}={side.underlay}:{topology.PORT}")]
        start_process(bed, here.host, [*argv, *(option.format(host=here.host) for option in options)])
        bed.sandbox.script(topology.tun_script(here, bed.mtu_bytes))

    return start


def _start_flanneld(bed: Bed, here: Side, there: Side) -> None:
    from flanpy.bench.flanneld import start_flanneld

    start_flanneld(bed, here, there)


STARTERS: Mapping[str, Callable[[Bed, Side, Side], None]] = MappingProxyType(
    {
        "routed": _start_routed,
        "vxlan": _start_vxlan,
        "proxy": _start_carrier("flanpy.bench.proxy_process"),
        "userspace": _start_carrier("flanpy.bench.datapath_process"),
        "ebpf": _start_carrier("flanpy.bench.datapath_process", "--kind=ebpf", "--pins=/sys/fs/bpf/{host}"),
        "flanneld": _start_flanneld,
    }
)
