"""The backends that the kernel carries, each as ``flanpy agent`` sets it up: a real etcd in host a, a real agent on both hosts.

Beside ``vxlan``, where the bed's script makes the device, these show what the agent's own set-up costs: nothing, if it is right.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from flanpy.bench import topology
from flanpy.bench.bed_etcd import etcd_url, start_etcd
from flanpy.bench.beds import Bed
from flanpy.bench.flanneld import start_daemon
from flanpy.bench.topology import Side
from flanpy.errors import LabError
from flanpy.lab.process import environment, require_tool

BACKENDS: Mapping[str, str] = MappingProxyType(
    {"vxlan-agent": "vxlan", "host-gw": "host-gw", "ipip": "ipip", "wireguard": "wireguard"}
)
"""The backend type of each setup."""
_NEEDS = MappingProxyType(
    {
        "ipip": (("ipip", "local", "192.0.2.1"), "this kernel has no IP-in-IP tunnels (option CONFIG_NET_IPIP, module ipip)"),
        "wireguard": (("wireguard",), "this kernel has no WireGuard (option CONFIG_WIREGUARD, module wireguard)"),
    }
)


def lack(setup: str) -> str | None:
    """What this machine lacks for one of these setups; a device is made in a namespace of its own to see, which needs root."""
    try:
        require_tool("etcd", "etcd-server")
    except LabError as error:
        return str(error)
    if setup not in _NEEDS:
        return None
    if os.geteuid() != 0:
        return "needs root"
    words, reason = _NEEDS[setup]
    argv = ["unshare", "--net", "ip", "link", "add", "probe", "type", *words]
    return (
        None if subprocess.run(argv, env=environment(), capture_output=True, timeout=30, check=False).returncode == 0 else reason
    )


def start_agent(bed: Bed, here: Side, there: Side) -> None:
    """Start the agent of one host, and the etcd with the first; returns when its subnet file is there."""
    if here == bed.a:
        start_etcd(bed, {"Type": BACKENDS[bed.setup]})
    files = Path("/run") / f"{here.host}-agent"
    subnet_file = files / "subnet.env"
    argv = [sys.executable, "-m", "flanpy", "agent", f"--iface={topology.UPLINK}", f"--etcd-endpoints={etcd_url(bed)}"]
    argv += [f"--subnet-file={subnet_file}", f"--state-dir={files}/state", f"--run-dir={files}/run"]
    start_daemon(bed, here, argv, subnet_file)
