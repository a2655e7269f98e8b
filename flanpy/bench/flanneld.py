"""A real flanneld in a bed: an etcd in host a, and a flanneld with its udp backend on both hosts."""

from __future__ import annotations

import time
from pathlib import Path

from flanpy.bench import topology
from flanpy.bench.bed_etcd import etcd_url, start_etcd
from flanpy.bench.beds import READY_TIMEOUT_S, Bed
from flanpy.bench.topology import Side
from flanpy.errors import LabError, UsageError
from flanpy.lab.cluster import IMPORT_PATH


def start_flanneld(bed: Bed, here: Side, there: Side) -> None:
    """Start the flanneld of one host, and the etcd with the first; returns when its subnet file is there."""
    if bed.flanneld is None or not Path(bed.flanneld).is_file():
        raise UsageError(f"--flanneld {bed.flanneld}: no such file; name flanneld's binary")
    if here == bed.a:
        start_etcd(bed, {"Type": "udp", "Port": topology.PORT})
    subnet_file = Path("/run") / f"{here.host}.env"
    argv = [bed.flanneld, f"-etcd-endpoints={etcd_url(bed)}", f"-iface={topology.UPLINK}", f"-subnet-file={subnet_file}"]
    start_daemon(bed, here, argv, subnet_file)


def start_daemon(bed: Bed, here: Side, argv: list[str], subnet_file: Path) -> None:
    """Start flanneld, or an agent, and wait for its subnet file."""
    # Its log is long: where nobody reads, a full pipe would stop it.
    log = bed.sandbox.path("/run") / f"{here.host}.log"
    with log.open("w") as output:
        process = bed.sandbox.popen(here.host, argv, env=IMPORT_PATH, stdout=output, stderr=output)
    bed.carriers.append(process)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not bed.sandbox.path(subnet_file).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"{bed.setup}: {here.host} wrote no subnet file; its log ends: {log.read_text()[-2000:]}")
        time.sleep(0.05)
