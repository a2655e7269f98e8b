"""A real flanneld in a bed: an etcd in host a, and a flanneld with its udp backend on both hosts.

The leases of both hosts are written beforehand, so that each flanneld finds its own by its public address and takes the subnet that the
bed's pods have already (flannel: a lease with my PublicIP is reused).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from flanpy.bench import topology
from flanpy.bench.beds import READY_TIMEOUT_S, Bed
from flanpy.bench.topology import Side
from flanpy.core.codec import encode_attributes, key_of
from flanpy.errors import LabError, UsageError
from flanpy.lab import etcd_put
from flanpy.model import DEFAULT_PREFIX, NodeAttributes, Subnets

ETCD_PORT = 2379
CONFIG = json.dumps({"Network": str(topology.OVERLAY), "Backend": {"Type": "udp", "Port": topology.PORT}})


def start_flanneld(bed: Bed, here: Side, there: Side) -> None:
    """Start the flanneld of one host, and the etcd with the first; returns when its subnet file is there."""
    if bed.flanneld is None or not Path(bed.flanneld).is_file():
        raise UsageError(f"--flanneld {bed.flanneld}: no such file; name flanneld's binary")
    if here == bed.a:
        _start_etcd(bed, (here, there))
    subnet_file = Path("/run") / f"{here.host}.env"
    argv = [bed.flanneld, f"-etcd-endpoints={_etcd_url(bed)}", f"-iface={topology.UPLINK}", f"-subnet-file={subnet_file}"]
    # Its log is long: where nobody reads, a full pipe would stop it.
    log = bed.sandbox.path("/run") / f"{here.host}.log"
    with log.open("w") as output:
        process = bed.sandbox.popen(here.host, argv, stdout=output, stderr=output)
    bed.carriers.append(process)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not bed.sandbox.path(subnet_file).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"{bed.flanneld}: wrote no subnet file; its log ends: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def _etcd_url(bed: Bed) -> str:
    return f"http://{bed.a.underlay}:{ETCD_PORT}"


def _start_etcd(bed: Bed, sides: tuple[Side, Side]) -> None:
    argv = ["etcd", "--data-dir=/run/flanneld-etcd", f"--listen-client-urls={_etcd_url(bed)}"]
    argv += [f"--advertise-client-urls={_etcd_url(bed)}", "--listen-peer-urls=http://127.0.0.1:2380"]
    bed.sandbox.start(bed.a.host, argv, "/run/flanneld-etcd.log")
    values = {"config": CONFIG}
    for side in sides:
        values[key_of(Subnets(side.subnet))] = encode_attributes(NodeAttributes(side.underlay)).decode()
    for key, value in values.items():
        script = [sys.executable, "-I", "-S", etcd_put.__file__, _etcd_url(bed), f"{DEFAULT_PREFIX}/{key}", value]
        bed.sandbox.run(bed.a.host, [*script, f"{READY_TIMEOUT_S:g}"], timeout_s=READY_TIMEOUT_S + 10)
