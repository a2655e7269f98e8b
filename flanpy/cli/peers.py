"""``flanpy peers``: the other nodes as this node sees them, and the leases that it does not use, with the reason."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from flanpy.cli.output import Paint, add_agent_arguments, ask_and_show, printable, table

EPILOG = """\
examples:
  flanpy peers
  flanpy peers --output json | jq -r '.peers[] | "\\(.subnets) \\(.hop)"'

exit status: 0 done, 10 no agent answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description = (
        "Peers with subnet and endpoint; then leases of another backend and leases that were refused, with the reason."
    )
    parser.epilog = EPILOG
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    return ask_and_show(arguments, "peers", render)


def render(answer: Mapping[str, Any], colours: Paint) -> list[str]:
    """The tables, line by line."""
    lines = peer_table(answer["peers"], colours) if answer["peers"] else ["no peers"]
    if answer["foreign"]:
        lines += ["", *foreign_table(answer["foreign"], colours)]
    if answer["refused"]:
        lines += [
            "",
            colours.warn("refused"),
            *(f"  {printable(item['key'])}: {printable(item['reason'])}" for item in answer["refused"]),
        ]
    return lines


def peer_table(peers: list[Mapping[str, Any]], colours: Paint) -> list[str]:
    """Who packets are sent to; a node without an id runs flanneld, or has a reservation and is not there."""
    rows = (
        (peer["subnets"], peer["hop"], peer["backend"], peer["node"] or "-", " ".join(peer["features"]) or "-") for peer in peers
    )
    return table(("SUBNET", "ENDPOINT", "BACKEND", "NODE", "FEATURES"), rows, colours)


def foreign_table(foreign: list[Mapping[str, Any]], colours: Paint) -> list[str]:
    """Who packets are not sent to, for its backend is another."""
    rows = ((lease["subnets"], lease["public_ip"], lease["reason"]) for lease in foreign)
    return table(("FOREIGN", "PUBLIC IP", "NOT USED BECAUSE"), rows, colours)
