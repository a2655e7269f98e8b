"""``flanpy cleanup``: remove from this host what flanpy has left there. Parses arguments and prints; agent.cleanup finds and removes."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

from flanpy.cli.output import add_agent_arguments, run_dir, show, show_json, table
from flanpy.errors import ResourceBusy

DESCRIPTION = """\
End the datapath process that goes on without an agent, and remove every device, route, firewall rule, BPF program and file of the run
directory that flanpy has left on this host, and nothing else. Stop the agent first. Needs root, and neither an agent nor etcd: the
lease expires by itself (`flanpy release` gives it back).
Devices of the names that flannel gives them (flannel.1, flannel.ipip, ...) are also those of a flanneld on this host: stop it first.

With --for-flanneld the devices and routes that flanneld takes over as they are (vxlan, host-gw, ipip) stay, and packets go on. To switch
a node: stop the agent and start flanneld, then clean up; where flannel0 has stayed (udp, ebpf datapath), clean up before flanneld starts.
"""
EPILOG = """\
examples:
  flanpy cleanup --dry-run
  flanpy cleanup --state
  flanpy cleanup --for-flanneld

exit status: 0 nothing of ours is left (or --dry-run), 5 something could not be removed, 6 an agent runs here
"""
DEFAULT_STATE_DIR = "/var/lib/flanpy"
"""The agent's default of --state-dir."""
DEFAULT_SUBNET_FILE = "/run/flannel/subnet.env"
"""The agent's default of --subnet-file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_agent_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be removed, also while an agent runs; change nothing"
    )
    parser.add_argument("--for-flanneld", action="store_true", help="leave what a flanneld on this host takes over")
    parser.add_argument(
        "--state", action="store_true", help="also remove node id, WireGuard key and subnet.env: a new node after that"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help=f"the agent's state directory (FLANPY_STATE_DIR; default: {DEFAULT_STATE_DIR})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Look, remove, print."""
    from flanpy.agent import cleanup
    from flanpy.kernel.netlink import Kernel

    state_dir = Path(arguments.state_dir or os.environ.get("FLANPY_STATE_DIR") or DEFAULT_STATE_DIR)
    subnet_file = Path(os.environ.get("FLANPY_SUBNET_FILE") or DEFAULT_SUBNET_FILE)
    with ExitStack() as stack:
        agent = _look(stack, run_dir(arguments), dry_run=arguments.dry_run)
        kernel = stack.enter_context(Kernel())
        known = (state_dir, subnet_file) if arguments.state else (None, None)
        found = cleanup.find(kernel, run_dir(arguments), *known, for_flanneld=arguments.for_flanneld, only_look=arguments.dry_run)
        if not arguments.dry_run:
            for item in found:
                item.remove()
    if arguments.output == "json":
        items = [{"sort": item.sort, "name": item.name} for item in found]
        show_json({"dry_run": arguments.dry_run, "items": items, "hindrance": agent})
    elif not found:
        show(["nothing of flanpy is here"])
    else:
        headers = ("would remove" if arguments.dry_run else "removed", "")
        show(table(headers, [(item.sort, item.name) for item in found]))
    if agent and arguments.output != "json":
        show(["", f"but not now: {agent}"])
    return 0


def _look(stack: ExitStack, where: Path, *, dry_run: bool) -> str | None:
    """Nobody else of ours is at work until the stack ends; a dry run only says who is."""
    from flanpy.agent import cleanup

    try:
        stack.enter_context(cleanup.alone(where))
    except ResourceBusy as error:
        if not dry_run:
            raise
        return str(error)
    return None
