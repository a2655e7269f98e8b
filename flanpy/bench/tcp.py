"""TCP from pod to pod by iperf3: throughput after the warm-up, retransmits, and the whole machine's CPU time for it.

What counts is what the receiver took in each tenth of a second, without the first ones: iperf3's own totals include
slow start and, at the sender, what only stands in a buffer.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flanpy.bench import machine
from flanpy.bench.beds import IPERF_PORT, Bed
from flanpy.errors import LabError
from flanpy.lab.process import Entered

INTERVAL_S = 0.1
WARM_UP_S = 0.5
DIRECTIONS = {"forward": (), "reverse": ("--reverse",), "both": ("--bidir",)}


@dataclass(frozen=True, slots=True)
class TcpRun:
    """One run of iperf3."""

    gbit_s: float
    """Both directions added, after the warm-up."""
    retransmits: int
    gigabytes: float
    """Payload received over the whole run, warm-up included: what the CPU time was for."""
    busy_s: float
    stolen_s: float

    @property
    def busy_s_per_gb(self) -> float:
        """CPU seconds of the whole machine for each gigabyte (10^9 bytes) that arrived."""
        return self.busy_s / self.gigabytes if self.gigabytes else float("inf")


def run_tcp(bed: Bed, *, streams: int, seconds: float, direction: str = "forward", congestion: str = "cubic") -> TcpRun:
    """Run iperf3 once from pod a to pod b; LabError with its own words when it fails. iperf3 takes whole seconds only."""
    whole_s = max(1, round(seconds))
    argv = ["iperf3", "--client", str(bed.b.pod_address), "--port", str(IPERF_PORT), "--time", str(whole_s)]
    argv += ["--interval", str(INTERVAL_S), "--parallel", str(streams), "--congestion", congestion]
    argv += ["--json", "--get-server-output", *DIRECTIONS[direction]]
    before = machine.cpu_time()
    done = bed.sandbox.run(bed.a.pod, argv, check=False, timeout_s=whole_s + 20)
    spent = machine.cpu_time().since(before)
    report = _document(bed, done.stdout or done.stderr)
    return TcpRun(
        gbit_s=received_gbit_s(report, WARM_UP_S),
        retransmits=_retransmits(report),
        gigabytes=received_gigabytes(report),
        busy_s=spent.busy_s,
        stolen_s=spent.stolen_s,
    )


def _document(bed: Bed, text: str) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise LabError(f"{bed.setup}: iperf3 printed no JSON: {text.strip()[:500]!r}") from error
    if "error" in report:
        bed.check()
        raise LabError(f"{bed.setup}: iperf3: {report['error']}")
    if not isinstance(report.get("server_output_json"), dict):
        raise LabError(f"{bed.setup}: iperf3's server sent no JSON report (iperf3 3.1 or newer is needed at both ends)")
    return report


def _receiving(report: dict[str, Any]) -> Sequence[Sequence[dict[str, Any]]]:
    """For each direction that was used, its receiver's intervals: the server receives forward, the client backward."""
    series = []
    for document in (report["server_output_json"], report):
        for key in ("sum", "sum_bidir_reverse"):
            intervals = [each[key] for each in document["intervals"] if key in each and not each[key]["sender"]]
            if intervals:
                series.append(intervals)
    return series


def received_gbit_s(report: dict[str, Any], warm_up_s: float) -> float:
    """Rate at the receivers from ``warm_up_s`` on, all directions added."""
    rate = 0.0
    for intervals in _receiving(report):
        kept = [each for each in intervals if each["start"] >= warm_up_s - INTERVAL_S / 2 and each["seconds"] > INTERVAL_S / 2]
        span_s = sum(each["seconds"] for each in kept)
        rate += sum(each["bytes"] for each in kept) * 8 / span_s / 1e9 if span_s else 0.0
    return rate


def received_gigabytes(report: dict[str, Any]) -> float:
    """Payload received in all, 10^9 bytes."""
    return float(sum(each["bytes"] for intervals in _receiving(report) for each in intervals)) / 1e9


def _retransmits(report: dict[str, Any]) -> int:
    sums = (report["end"].get(key, {}) for key in ("sum_sent", "sum_sent_bidir_reverse"))
    return sum(int(each.get("retransmits", 0)) for each in sums)


def start_load(bed: Bed, seconds: float) -> Entered:
    """One TCP stream from pod a to pod b in the background, for at most so long."""
    argv = ["iperf3", "--client", str(bed.b.pod_address), "--port", str(IPERF_PORT), "--time", str(math.ceil(seconds))]
    return bed.sandbox.popen(bed.a.pod, argv, stdout=subprocess.DEVNULL)


def await_load(bed: Bed, load: Entered, warm_up_s: float) -> None:
    """Let the stream get up to speed; LabError when it has ended."""
    try:
        load.wait(warm_up_s)
    except subprocess.TimeoutExpired:
        return
    error = load.stderr.read() if load.stderr else ""
    raise LabError(f"{bed.setup}: iperf3 ended before the load began: {error.strip()[-500:]}")


def stop_load(load: Entered) -> None:
    """End the stream, if it runs still; its server is ready for the next one when this returns."""
    load.send_signal(signal.SIGINT)
    try:
        load.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        load.kill()
        load.communicate()
