"""Random content over TCP from pod to pod, every byte compared: a datapath that cuts and merges must change nothing.

A difference fails the sample, and with it the run; the figure is the rate at which checked bytes arrived.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from flanpy.bench.beds import Bed
from flanpy.bench.samples import Figure
from flanpy.bench.tasks import Task, Value
from flanpy.errors import LabError
from flanpy.lab.cluster import IMPORT_PATH

KEY = "content"
LEAST_GBIT_S = 0.2
"""A stream slower than this is taken for broken."""
START_S = 20.0


def content_task(gigabytes: float) -> Task:
    """Send so much random content (10^9 bytes) and compare it."""
    total = int(gigabytes * 1e9)
    figure = Figure(KEY, f"TCP, {gigabytes:g} GB of random content compared byte by byte", "Gbit/s")

    def measure(bed: Bed) -> Sequence[Value]:
        bed.magic += 1
        found = _run(bed, total, seed=bed.magic)
        if found["differs_at"] is not None:
            raise LabError(f"{bed.setup}: the content differs from what was sent at byte {found['differs_at']:,}")
        return [Value(KEY, found["bytes"] * 8 / found["seconds"] / 1e9, found)]

    return Task(figure.title, (figure,), gigabytes * 3, measure)


def _run(bed: Bed, total: int, seed: int) -> dict[str, Any]:
    limit_s = START_S + total * 8 / (LEAST_GBIT_S * 1e9)
    program = [sys.executable, "-m", "flanpy.bench.content_process"]
    receiver = bed.sandbox.popen(bed.b.pod, [*program, "receive", str(total), str(seed)], env=IMPORT_PATH)
    try:
        assert receiver.stdout is not None
        if receiver.stdout.readline().strip() != "ready":
            raise LabError(
                f"{bed.setup}: the receiver of the content has not started: {receiver.communicate()[1].strip()[-500:]}"
            )
        argv = [*program, "send", str(bed.b.pod_address), str(total), str(seed)]
        started = time.monotonic()
        sent = bed.sandbox.run(bed.a.pod, argv, env=IMPORT_PATH, check=False, timeout_s=limit_s)
        said, error = receiver.communicate(timeout=max(1.0, limit_s - (time.monotonic() - started)))
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{bed.setup}: {total:,} B have not arrived within {limit_s:.0f} s") from error
    finally:
        if receiver.poll() is None:
            receiver.kill()
            receiver.communicate()
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError as bad:
        raise LabError(f"{bed.setup}: the content has not arrived: {(error or sent.stderr).strip()[-500:]}") from bad
    return answer
