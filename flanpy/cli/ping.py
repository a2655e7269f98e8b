"""``flanpy ping``: round trips through the overlay, the way there, and the largest packet. Prints; ``agent.overlay_ping`` sends."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from flanpy.cli.numbers import decimal, whole
from flanpy.cli.output import Paint, add_agent_arguments, paint, printable, run_dir, show, show_json
from flanpy.cli.trace import render as render_steps
from flanpy.errors import UsageError

if TYPE_CHECKING:
    from flanpy.agent.overlay_ping import Plan

DESCRIPTION = """\
Ping a node or a pod from this node through the overlay: the way, round trips, and how large a packet gets there whole.

TARGET is an address, a subnet, the beginning of a node's id, a node's public address, a pod by its name, or the
name of a host (hosts file, DNS).
"""
EPILOG = """\
examples:
  flanpy ping 10.244.9.3            a pod
  flanpy ping 10.0.0.2              the node with this public address, through the tunnel
  flanpy ping 1b9d --count 100 --interval 0.01
  flanpy ping web-0 --output json | jq .rtt_ms

exit status: 0 all were answered and packets of full size get there, 1 not so, 2 no such target, 5 no permission or no way,
10 no agent answers
"""
COUNT_MAX = 100_000
NOTHING_BACK = (
    "nothing came back: `flanpy peers` tells whether the path to that node lives, `flanpy doctor` on both nodes what closes it"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The target and the flags."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("target", metavar="TARGET", help="an address, subnet, node, pod or host name")
    parser.add_argument("--count", type=whole, default=5, metavar="N", help="pings (default: %(default)s)")
    parser.add_argument("--interval", type=decimal, default=0.2, metavar="SECONDS", help="between them (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=decimal, default=1.0, metavar="SECONDS", help="wait for an answer (default: %(default)s)"
    )
    parser.add_argument("--no-mtu", action="store_true", help="do not measure the largest packet")
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Find the way, ping, measure, print."""
    from flanpy.agent import overlay_ping

    _check(arguments)
    plan = overlay_ping.plan(run_dir(arguments), arguments.target)
    rtts = list(overlay_ping.ping(plan.address, arguments.count, arguments.interval, arguments.timeout))
    answered = [rtt for rtt in rtts if rtt is not None]
    measured = not arguments.no_mtu and bool(answered)
    mtu_bytes = overlay_ping.largest(plan.address, plan.mtu_bytes) if measured else None
    if arguments.output == "json":
        show_json({**_json(plan, rtts), "mtu_bytes": mtu_bytes})
    else:
        show(render(plan, rtts, mtu_bytes, measured, paint()))
    whole = not measured or mtu_bytes == plan.mtu_bytes
    return 0 if len(answered) == len(rtts) and whole else 1


def _check(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.count <= COUNT_MAX:
        raise UsageError(f"--count: {arguments.count} is out of range (1 to {COUNT_MAX})")
    if not 0.001 <= arguments.interval <= 3600:
        raise UsageError(f"--interval: {arguments.interval:g} is out of range (0.001 to 3600 seconds)")
    if not 0.001 <= arguments.timeout <= 60:
        raise UsageError(f"--timeout: {arguments.timeout:g} is out of range (0.001 to 60 seconds)")


def _json(plan: Plan, rtts: Sequence[float | None]) -> dict[str, object]:
    answered = [1e3 * rtt for rtt in rtts if rtt is not None]
    statistics = (
        {"least": round(min(answered), 4), "mean": round(sum(answered) / len(answered), 4), "most": round(max(answered), 4)}
        if answered
        else None
    )
    return {
        "target": plan.target.name,
        "address": str(plan.address),
        "way": [asdict(step) for step in plan.steps],
        "sent": len(rtts),
        "received": len(answered),
        "rtt_ms": statistics,
        "mtu_wanted_bytes": plan.mtu_bytes,
    }


def render(plan: Plan, rtts: Sequence[float | None], mtu_bytes: int | None, measured: bool, colours: Paint) -> list[str]:
    """The screen, line by line."""
    answered = [1e3 * rtt for rtt in rtts if rtt is not None]
    word = colours.good if len(answered) == len(rtts) else colours.bad
    lines = [f"ping {printable(plan.target.name)}: {plan.address}", *render_steps(plan.steps, colours)]
    text = f"{len(answered)} of {len(rtts)} answered"
    if answered:
        text += f", {min(answered):.3f} / {sum(answered) / len(answered):.3f} / {max(answered):.3f} ms (least, mean, most)"
    lines.append(word(text))
    remote = plan.target.node is not None and not plan.target.node.own
    if not answered and remote and not any(step.stops for step in plan.steps):
        lines.append(NOTHING_BACK)
    if measured and mtu_bytes == plan.mtu_bytes:
        lines.append(f"packets of {mtu_bytes} bytes, the MTU of pods, get there whole")
    elif measured:
        largest = f"more than {mtu_bytes} bytes" if mtu_bytes is not None else "full size"
        lines.append(colours.bad(f"packets of {largest} do not get there; the MTU of pods is {plan.mtu_bytes}"))
    return lines
