"""``flanpy routes``: the datapath's table, and the kernel's routes of ours, wanted and there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from flanpy.cli.output import Paint, add_agent_arguments, ask_and_show, table

EPILOG = """\
state of a kernel route: ok, missing (wanted, not there: the agent is about to set it), stale (there, not wanted: about to go)

exit status: 0 done, 10 no agent answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description = "Which node has which prefix, as the datapath forwards, and the kernel's routes that the agent keeps."
    parser.epilog = EPILOG
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    return ask_and_show(arguments, "routes", render)


def render(answer: Mapping[str, Any], colours: Paint) -> list[str]:
    """The tables, line by line."""
    entries = [
        *((prefix, "this node") for prefix in answer["local"]),
        *((each["prefix"], each["hop"]) for each in answer["table"]),
    ]
    lines = (
        table((f"TABLE {answer['table_generation']}", "HOP"), entries, colours) if entries else ["no table: the kernel forwards"]
    )
    routes = ((each["destination"], _way(each), each["state"]) for each in answer["kernel"])
    return [*lines, "", *table(("KERNEL ROUTE", "BY", "STATE"), routes, colours)]


def _way(route: Mapping[str, Any]) -> str:
    if route["kind"] != "unicast":
        return str(route["kind"])
    return f"{route['gateway'] + ' ' if route['gateway'] else ''}dev {route['device']}"
