"""A datapath of ours as a process of a bed: TUN device, sockets, one published table, no etcd and no agent.

What carries packets in userspace is flanpy-datapath, confined as an agent confines it, for that is what operators run; ``--in-process``
has the same threads here, so that the confinement can be measured. Says ``ready`` when the threads run; the device's address, MTU
and routes are the bed's to set. Each line on standard input is answered with the datapath's counters as a line of JSON; SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import select
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from flanpy.bench.proxy_process import parse_route, stop_at_sigterm
from flanpy.datapath import Datapath, DatapathSettings
from flanpy.datapath.process import ProcessDatapath, ProcessOptions
from flanpy.datapath.sockets import open_underlay
from flanpy.datapath.userspace import Tuning, UserspaceDatapath
from flanpy.kernel.tun import open_tun
from flanpy.model import ForwardTable, Hop, TableEntry


def parse_arguments() -> argparse.Namespace:
    """The command line; the first route is this node's own subnet."""
    parser = argparse.ArgumentParser(description="A datapath with a fixed table.")
    parser.add_argument("--kind", choices=("userspace", "ebpf"), default="userspace")
    parser.add_argument("--underlay", default="uplink", help="underlay device (ebpf)")
    parser.add_argument("--pins", type=Path, default=None, help="directory in bpffs for this host alone (ebpf)")
    parser.add_argument("--bypass", action="store_true", help="past the host's forwarding (ebpf)")
    parser.add_argument("--device", default="flannel0")
    parser.add_argument("--address", type=IPv4Address, required=True, help="underlay address to bind")
    parser.add_argument("--port", type=int, default=8285)
    parser.add_argument("--mtu", type=int, default=1472, help="largest inner packet")
    parser.add_argument("--route", type=parse_route, action="append", required=True, metavar="NETWORK=ADDRESS:PORT")
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--threads-per-queue", type=int, default=Tuning().threads_per_queue)
    parser.add_argument("--spin-us", type=int, default=None)
    parser.add_argument("--in-process", action="store_true", help="threads of this process, not flanpy-datapath")
    return parser.parse_args()


def table_of(arguments: argparse.Namespace) -> ForwardTable:
    """Every route but the first leads to a peer; the first is ours. Peers have a datapath of the same kind."""
    local: IPv4Network = arguments.route[0].network
    superpacket = arguments.kind == "ebpf"
    peers = [
        TableEntry(route.network, Hop(route.hop, route.port, ecn=True, superpacket=superpacket)) for route in arguments.route[1:]
    ]
    return ForwardTable(generation=1, entries=tuple(peers), local=(local,), mtu_bytes=arguments.mtu)


def open_datapath(arguments: argparse.Namespace, run_dir: Path) -> Datapath:
    """The datapath of the kind that is asked for; it owns everything below it. ``run_dir`` is for its process."""
    settings = DatapathSettings(
        device=arguments.device,
        tunnel_address=arguments.route[0].network.network_address,
        underlay_address=arguments.address,
        port=arguments.port,
        queues=arguments.queues,
    )
    if arguments.spin_us is not None:
        settings = dataclasses.replace(settings, spin_us=arguments.spin_us)
    underlay = open_underlay(arguments.address, arguments.port, arguments.queues)
    tun = open_tun(arguments.device, arguments.queues)
    tuning = Tuning(threads_per_queue=arguments.threads_per_queue)
    userspace: Datapath
    if arguments.in_process:
        userspace = UserspaceDatapath(settings, tun, underlay, tuning)
    else:
        userspace = ProcessDatapath(settings, tun, underlay, ProcessOptions(run_dir, tuning=tuning))
    if arguments.kind == "userspace":
        return userspace
    from flanpy.datapath.ebpf import EbpfDatapath, EbpfOptions
    from flanpy.datapath.ebpf_pins import BPFFS, mount_bpffs
    from flanpy.kernel.bpf_host import BpfHost
    from flanpy.kernel.netlink import Kernel

    mount_bpffs(BPFFS)
    pins = arguments.pins or BPFFS / "flanpy-bench"
    pins.mkdir(exist_ok=True)
    options = EbpfOptions(arguments.underlay, bypass=arguments.bypass, pin_root=pins)
    return EbpfDatapath(settings, options, userspace, BpfHost(Kernel()))


@contextmanager
def running(arguments: argparse.Namespace) -> Iterator[Datapath]:
    """The datapath until the block ends, and then nothing of it. /run is private to a bed's sandbox and ends with it."""
    with tempfile.TemporaryDirectory(prefix="flanpy-bench-", dir="/run") as run_dir:
        datapath = open_datapath(arguments, Path(run_dir))
        try:
            yield datapath
        finally:
            datapath.teardown()


def answer_until_stopped(datapath: Datapath, stop: int) -> None:
    """Counters for each line on standard input, until SIGTERM."""
    inputs = [stop, sys.stdin.fileno()]
    while True:
        readable, _, _ = select.select(inputs, [], [])
        if stop in readable:
            return
        if os.read(sys.stdin.fileno(), 4096):
            print(json.dumps(dataclasses.asdict(datapath.stats())), flush=True)
        else:
            inputs.remove(sys.stdin.fileno())


def main() -> None:
    """Run until SIGTERM."""
    arguments = parse_arguments()
    stop = stop_at_sigterm()
    with running(arguments) as datapath:
        datapath.publish(table_of(arguments))
        print("ready", flush=True)
        answer_until_stopped(datapath, stop)


if __name__ == "__main__":
    main()
