"""``flanpy datapath probe``: whether the ebpf datapath can run here. Parses arguments and prints; datapath.ebpf_probe tries."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

EPILOG = """\
examples:
  flanpy datapath probe                  what the ebpf datapath needs, what is there, and the cure for what is not
  flanpy datapath probe --iface wg0      the same for this underlay interface; else it is the default route's
  flanpy datapath probe --output json | jq '.probes[] | select(.ok | not)'

exit status: 0 ebpf can run here, 1 it cannot (userspace runs everywhere)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand and its flag."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="datapath_command", metavar="probe", required=True)
    probe = commands.add_parser("probe", help="try everything that the ebpf datapath needs; changes nothing")
    probe.add_argument("--iface", metavar="NAME", help="the underlay interface (default: that of the default route)")
    probe.add_argument("--output", choices=("table", "json"), default="table", help="what to print (default: table)")


def run(arguments: argparse.Namespace) -> int:
    """Probe and print; 0 when all is there."""
    from flanpy.datapath.ebpf_probe import probe_all

    underlay = arguments.iface or _default_uplink()
    probes = probe_all(underlay)
    works = all(probe.ok for probe in probes)
    if arguments.output == "json":
        print(json.dumps({"ebpf": works, "probes": [asdict(probe) for probe in probes]}, indent=2))
        return 0 if works else 1
    width = max(len(probe.name) for probe in probes)
    for probe in probes:
        print(f"{'ok     ' if probe.ok else 'MISSING'}  {probe.name:{width}}  {probe.reason}")
        if not probe.ok:
            print(f"{'':{width + 11}}cure: {probe.cure}")
        if probe.log:
            print("\n".join(f"{'':{width + 11}}| {line}" for line in probe.log.splitlines()))
    if underlay is None:
        print("not looked at: the underlay interface (there is no default route; name it with --iface)")
    print("ebpf can run here" if works else "ebpf cannot run here; the userspace datapath can")
    return 0 if works else 1


def _default_uplink() -> str | None:
    """The interface that an agent without options would take, or None when there is none."""
    from flanpy.errors import FlanpyError
    from flanpy.kernel.netlink import Kernel
    from flanpy.kernel.uplink import UplinkSelection, find_uplink

    try:
        with Kernel() as kernel:
            return find_uplink(kernel, UplinkSelection()).name
    except FlanpyError:
        return None
