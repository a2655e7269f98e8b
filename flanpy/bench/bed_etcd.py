"""An etcd in host a of a bed, with a network config and the leases of both hosts.

The leases are written beforehand, so that each agent or flanneld finds its own by its public address and takes the subnet that the
bed's pods have already (flannel: a lease with my PublicIP is reused).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from flanpy.bench import topology
from flanpy.bench.beds import READY_TIMEOUT_S, Bed
from flanpy.core.codec import encode_attributes, key_of
from flanpy.lab import etcd_put
from flanpy.model import DEFAULT_PREFIX, NodeAttributes, Subnets
from flanpy.stores.server import ALONE

ETCD_PORT = 2379


def etcd_url(bed: Bed) -> str:
    """Where both hosts reach it."""
    return f"http://{bed.a.underlay}:{ETCD_PORT}"


def start_etcd(bed: Bed, backend: Mapping[str, object]) -> None:
    """Start etcd and write config and leases; ``backend`` is the network config's Backend."""
    argv = ["etcd", f"--data-dir=/run/{bed.setup}-etcd", f"--listen-client-urls={etcd_url(bed)}"]
    argv += [f"--advertise-client-urls={etcd_url(bed)}", "--listen-peer-urls=http://127.0.0.1:2380", *ALONE]
    bed.sandbox.start(bed.a.host, argv, f"/run/{bed.setup}-etcd.log")
    values = {"config": json.dumps({"Network": str(topology.OVERLAY), "Backend": dict(backend)})}
    kind = str(backend["Type"])
    for side in (bed.a, bed.b):
        attributes = NodeAttributes(side.underlay, backend_type="" if kind == "udp" else kind)
        values[key_of(Subnets(side.subnet))] = encode_attributes(attributes).decode()
    for key, value in values.items():
        script = [sys.executable, "-I", "-S", etcd_put.__file__, etcd_url(bed), f"{DEFAULT_PREFIX}/{key}", value]
        bed.sandbox.run(bed.a.host, [*script, f"{READY_TIMEOUT_S:g}"], timeout_s=READY_TIMEOUT_S + 10)
