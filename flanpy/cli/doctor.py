"""``flanpy doctor``: checks this host and says what to do about what is wrong. Prints; ``agent.doctor`` looks."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from flanpy.cli.output import Paint, add_agent_arguments, paint, printable, run_dir, show, show_json

if TYPE_CHECKING:
    from flanpy.agent.host_checks import Check

DESCRIPTION = """\
Check platform, agent, port, datapath, routes, packet filter, and the path to each peer with packets of full size.
Changes nothing.
"""
EPILOG = """\
examples:
  flanpy doctor
  flanpy doctor --output json | jq '.checks[] | select(.level != "ok")'

exit status: 0 all is well, 1 warnings, 11 errors (no agent among them)
"""
EXIT = {"ok": 0, "warning": 1, "error": 11}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look and print."""
    from flanpy.agent.doctor import examine

    checks = list(examine(run_dir(arguments)))
    if arguments.output == "json":
        show_json({"checks": [asdict(check) for check in checks]})
    else:
        show(render(checks, paint()))
    return exit_status(checks)


def exit_status(checks: Iterable[Check]) -> int:
    """By the worst of them."""
    return max((EXIT[check.level] for check in checks), default=0)


def render(checks: Iterable[Check], colours: Paint) -> list[str]:
    """A line for each check, and one for each cure."""
    checks = list(checks)
    width = max(len(check.name) for check in checks)
    mark = {"ok": colours.good("ok     "), "warning": colours.warn("warning"), "error": colours.bad("ERROR  ")}
    lines = []
    for check in checks:
        lines.append(f"{mark[check.level]}  {check.name:{width}}  {printable(check.reason)}")
        if check.cure:
            lines.append(f"{'':{width + 11}}cure: {printable(check.cure)}")
    return lines
