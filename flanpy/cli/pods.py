"""``flanpy pods``: the pod route table, which pod is on which node and how packets get there."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from flanpy.cli.output import Paint, add_agent_arguments, ask_agent, paint, printable, show, show_json, table

EPILOG = """\
route: local (attached here), subnet (by the subnet of its node), own entry (its address alone leads there: it has kept it when it
moved), guest (attached here with an address of another node's subnet)

exit status: 0 done, 1 the agent keeps no pod registry, 10 no agent answers
"""
OFF = "this agent keeps no pod registry; start it with --pod-registry (docs/pods.md)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description = "Every pod that is registered in the cluster: its address, its node, and the way there from this node."
    parser.epilog = EPILOG
    parser.add_argument("--namespace", metavar="NAME", help="only pods of this namespace")
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = ask_agent(arguments, "pods")
    if arguments.namespace is not None:
        answer["pods"] = [row for row in answer["pods"] if row["namespace"] == arguments.namespace]
    if arguments.output == "json":
        show_json(answer)
    else:
        show(render(answer, paint()))
    return 0 if answer["on"] else 1


def render(answer: Mapping[str, Any], colours: Paint) -> list[str]:
    """The tables, line by line."""
    if not answer["on"]:
        return [OFF]
    rows = ((row["address"], _name(row), str(row["node"])[:8], row["hop"] or "-", row["route"]) for row in answer["pods"])
    lines = table(("ADDRESS", "POD", "NODE", "NEXT HOP", "ROUTE"), rows, colours) if answer["pods"] else ["no pods"]
    return [*lines, *_refused(answer["refused"], colours)]


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['namespace']}/{row['pod']}" if row["namespace"] else str(row["pod"])[:24]


def _refused(rows: Iterable[Mapping[str, Any]], colours: Paint) -> list[str]:
    lines = [f" - {printable(row['key'])}: {printable(row['reason'])}" for row in rows]
    return ["", colours.warn("not used"), *lines] if lines else []
