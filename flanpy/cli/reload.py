"""``flanpy reload``: the running agent reads its options file again. Asks and prints; ``agent.reload`` applies."""

from __future__ import annotations

import argparse

from flanpy.cli.output import add_agent_arguments, ask_agent, paint, printable, show, show_json

DESCRIPTION = """\
Let the running agent read its options again: environment and options file as it was started with them, as at SIGHUP.

What may change without a packet being lost is applied; the rest is named and waits for a restart. A file that is wrong changes nothing.
"""
EPILOG = """\
The environment of a running process does not change: what is to be changed later belongs into the options file (--config).
docs/reference.md marks the flags that are applied.

exit status: 0 all that has changed is applied, 1 something needs a restart or could not be applied, 2 the options are wrong,
10 no agent answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = ask_agent(arguments, "reload")
    applied, restart, problems = answer["applied"], answer["restart"], answer["problems"]
    if arguments.output == "json":
        show_json(answer)
    else:
        colours = paint()
        show([f"applied        {', '.join(applied) or 'nothing'}"])
        show([f"{colours.warn('needs restart')}  {', '.join(restart)}"] if restart else [])
        show(f"{colours.bad('not applied')}    {printable(problem)}" for problem in problems)
    if answer["refused"]:
        return 2
    return 1 if restart or problems else 0
