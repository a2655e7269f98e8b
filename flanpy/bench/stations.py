"""The near end of the stations in the pods: gives orders, waits for a bounded time, returns typed answers."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from typing import Any

from flanpy.bench.beds import READY_TIMEOUT_S, Bed
from flanpy.bench.native import Answers, Histogram, Received, Sent
from flanpy.errors import LabError
from flanpy.lab.cluster import IMPORT_PATH

QUIET_S = 0.1
"""After the last packet was sent, a receiver ends when nothing has come for so long."""


FLAT_OUT_PPS = 20_000_000
"""More than the generator can send."""


class Station:
    """One station process; orders are given one at a time."""

    def __init__(self, bed: Bed, place: str) -> None:
        self._bed = bed
        self._place = place
        argv = [sys.executable, "-m", "flanpy.bench.station"]
        self._process = bed.sandbox.popen(place, argv, env=IMPORT_PATH, stdin=subprocess.PIPE)
        bed.helpers.append(self._process)
        self._expect_line("ready", READY_TIMEOUT_S)

    def order(self, do: str, **arguments: Any) -> None:
        """Give an order; ``done`` waits for its end."""
        self._write(json.dumps({"do": do, **arguments}))

    def stop(self) -> None:
        """Tell a receiver that everything has been sent."""
        self._write("")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def ready(self) -> None:
        """Wait until the order's socket takes packets."""
        self._expect_line('{"ready": true}', READY_TIMEOUT_S)

    def done(self, within_s: float) -> dict[str, Any]:
        """The answer to the order; LabError when it takes longer than it can."""
        answer: dict[str, Any] = json.loads(self._line(within_s))["done"]
        return answer

    def _expect_line(self, wanted: str, within_s: float) -> None:
        line = self._line(within_s)
        if line != wanted:
            raise LabError(f"station in {self._place}: said {line!r}, not {wanted!r}")

    def _line(self, within_s: float) -> str:
        # One answer at a time is on its way, so nothing can wait unseen in the stream's own buffer.
        assert self._process.stdout is not None
        deadline = time.monotonic() + within_s
        while not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if time.monotonic() >= deadline:
                raise LabError(f"station in {self._place}: no answer within {within_s:.1f} s")
        line = self._process.stdout.readline().strip()
        if not line:
            raise self._ended()
        return line

    def _ended(self) -> LabError:
        error = self._process.stderr.read() if self._process.stderr else ""
        return LabError(f"station in {self._place}: has ended: {error.strip()[-2000:]}")


def stations(bed: Bed) -> tuple[Station, Station]:
    """The stations of pod a and pod b, started at the first call."""
    if bed.stations is None:
        bed.stations = (Station(bed, bed.a.pod), Station(bed, bed.b.pod))
    return bed.stations


def send_and_count(
    bed: Bed, *, payload_bytes: int, rate_pps: int, seconds: float, train: int, flows: int, packets: int = 1 << 31
) -> tuple[Sent, Received]:
    """Send probes from pod a to pod b and count what arrives."""
    sender, receiver = stations(bed)
    bed.magic += 1
    what = {"magic": bed.magic, "flows": flows}
    flow_packets = min(packets, int((rate_pps or FLAT_OUT_PPS) * seconds * 1.2)) + train
    receiver.order("receive", **what, flow_packets=flow_packets, quiet_s=QUIET_S, deadline_s=seconds + READY_TIMEOUT_S)
    receiver.ready()
    sending = {"payload_bytes": payload_bytes, "train": train, "rate_pps": rate_pps, "seconds": seconds, "packets": packets}
    sender.order("generate", **what, **sending, to=str(bed.b.pod_address))
    sent = Sent(**sender.done(seconds + READY_TIMEOUT_S))
    receiver.stop()
    received = receiver.done(seconds + READY_TIMEOUT_S)
    return sent, Received(**{**received, "delay": histogram(received["delay"])})


def ask(bed: Bed, *, payload_bytes: int, interval_s: float, seconds: float) -> Answers:
    """Requests from pod a, answers from pod b."""
    asker, _ = stations(bed)
    what = {"payload_bytes": payload_bytes, "interval_s": interval_s, "seconds": seconds}
    asker.order("ask", **what, timeout_s=0.5, requests=1 << 31, to=str(bed.b.pod_address))
    answers = asker.done(seconds + READY_TIMEOUT_S)
    return Answers(**{**answers, "round_trip": histogram(answers["round_trip"])})


def histogram(raw: dict[str, Any]) -> Histogram:
    """A histogram out of JSON."""
    return Histogram(**{**raw, "buckets": tuple((floor_ns, count) for floor_ns, count in raw["buckets"])})
