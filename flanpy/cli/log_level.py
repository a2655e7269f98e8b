"""``flanpy log-level``: what the running agent logs, until it is restarted."""

from __future__ import annotations

import argparse

from flanpy.cli.output import add_agent_arguments, ask_agent, show, show_json

LEVELS = ("debug", "info", "warning", "error")
EPILOG = """\
examples:
  flanpy log-level            which one it is
  flanpy log-level debug

exit status: 0 done, 2 no such level, 10 no agent answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The level and the flags."""
    parser.description = "Show or set the least level that the running agent logs; a restart goes back to --log-level."
    parser.epilog = EPILOG
    parser.add_argument("level", nargs="?", choices=LEVELS, metavar="LEVEL", help=", ".join(LEVELS))
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = ask_agent(arguments, "log-level", {"level": arguments.level})
    if arguments.output == "json":
        show_json(answer)
    else:
        show([answer["level"] if arguments.level is None else f"{answer['level']} (was {answer['before']})"])
    return 0
