"""``flanpy bugreport``: one archive with what somebody elsewhere needs, secrets removed. Writes; ``agent.bugreport`` gathers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from flanpy.cli.output import add_agent_arguments, counted, run_dir, show, show_json
from flanpy.errors import PlatformError

DESCRIPTION = """\
Gather versions, options, status, peers, routes, the doctor's findings, devices, rules, kernel settings and logs into one archive.

Passwords, keys and tokens are removed, known ones wherever they stand and unknown ones by name and form. Addresses, host names and subnets
stay: they are what it is about. Look through it before you give it away. It works without an agent too. Changes nothing.
"""
EPILOG = """\
examples:
  flanpy bugreport
  flanpy bugreport --file /tmp/node7.tar.gz --log /var/log/flanpy.log

exit status: 0 written, 5 it cannot be written
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--file", metavar="FILE", help="where to write it (default: flanpy-report-HOST-TIME.tar.gz here)")
    parser.add_argument("--log", metavar="FILE", help="the agent's log, where it goes to a file and not to the journal")
    add_agent_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Gather and write."""
    from flanpy.agent.bugreport import folder_name, gather, pack

    folder = folder_name()
    parts = gather(run_dir(arguments), os.environ, Path(arguments.log) if arguments.log else None)
    path = Path(arguments.file or f"{folder}.tar.gz")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(pack(parts, folder))
    except OSError as error:
        raise PlatformError(f"{path}: cannot be written: {error.strerror}") from error
    missing = [{"name": part.name, "reason": part.problem} for part in parts if part.problem]
    if arguments.output == "json":
        show_json({"file": str(path), "parts": [part.name for part in parts if not part.problem], "missing": missing})
    else:
        show([f"{path}: {counted(len(parts) - len(missing), 'part')}, secrets removed; look through it before you give it away"])
        show(f"  {item['name']}: {item['reason']}" for item in missing)
    return 0
