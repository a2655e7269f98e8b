"""``flanpy trace``: which way a packet goes from one address to another, step by step. Prints; ``agent.trace`` knows the rules."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from flanpy.cli.output import Paint, add_agent_arguments, paint, printable, run_dir, show, show_json

if TYPE_CHECKING:
    from flanpy.agent.trace import Step

DESCRIPTION = """\
Show the way from SOURCE to TARGET: bridge, port, route, table entry, next hop, underlay. Sends nothing.

Both are addresses, nodes or pods, as for `flanpy ping`. What happens on this node is asked of its kernel and its agent; what happens
on other nodes is told as far as their leases tell it, so run it on both nodes for the whole way.
"""
EPILOG = """\
examples:
  flanpy trace 10.244.7.2 10.244.9.3
  flanpy trace web-0 8.8.8.8

exit status: 0 the packet gets there as far as can be seen, 1 it stops on the way, 2 no such address, 10 no agent answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Both ends and the flags."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("source", metavar="SOURCE", help="an address, node, pod or host name")
    parser.add_argument("target", metavar="TARGET", help="an address, node, pod or host name")
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, look, print."""
    from flanpy.agent.inquiry import inquire, machine
    from flanpy.agent.trace import trace

    found = inquire(run_dir(arguments))
    source, target = found.find(arguments.source), found.find(arguments.target)
    with machine() as look:
        steps = trace(source.address, target.address, found.cluster, found.carrier, look)
    arrives = not any(step.stops for step in steps)
    if arguments.output == "json":
        show_json({"source": str(source.address), "target": str(target.address), "arrives": arrives, "steps": _json(steps)})
    else:
        show([f"{printable(source.name)} -> {printable(target.name)}", *render(steps, paint())])
    return 0 if arrives else 1


def _json(steps: Iterable[Step]) -> list[dict[str, object]]:
    return [asdict(step) for step in steps]


def render(steps: Iterable[Step], colours: Paint) -> list[str]:
    """One line a step; the one that stops the packet says so."""
    rows = list(steps)
    where = max((len(step.where) for step in rows), default=0)
    what = max((len(step.what) for step in rows), default=0)
    lines = []
    for number, step in enumerate(rows, 1):
        head = colours.faint(f"{number:2}  {printable(step.where):{where}}  {step.what:{what}}")
        text = printable(step.text)
        lines.append(f"{head}  {colours.bad('STOPS ') + text if step.stops else text}")
    return lines
