"""The ``flanpy`` command: finds the subcommand's module and gives it the arguments; knows nothing of what they do.

Each command is one module in this package with ``add_arguments(parser)`` and ``run(arguments) -> int``; it is imported only
when it is asked for, so that ``flanpy status`` does not pay for scapy, grpc or pyroute2. Nor does it for what this module needs
for help and errors alone: Python starts in the time that its imports take.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
from itertools import groupby
from typing import Any

from flanpy import __version__
from flanpy.errors import AgentAbsent, FlanpyError, PlatformError, UsageError

COMMANDS = {
    "agent": "run the agent of this node",
    "status": "how the agent of this host is, on one screen",
    "peers": "the other nodes, and leases that are not used, with the reason",
    "routes": "the datapath's table and the kernel's routes",
    "pods": "which pod is on which node, and the way there",
    "top": "packets and work per second, live",
    "ping": "round trips to a node or pod through the overlay, with the way and the largest packet",
    "trace": "the way from one pod to another, step by step",
    "capture": "inner and outer packets as they pass, as text or for Wireshark",
    "doctor": "check this host, with a cure for what is wrong",
    "leases": "who has which subnet, from etcd",
    "reserve": "keep a subnet for one node",
    "release": "give a subnet back",
    "reload": "let the running agent read its options again",
    "log-level": "what the running agent logs",
    "docker-opts": "write dockerd's options for this node's subnet",
    "bugreport": "one archive of what others need to understand a problem, secrets removed",
    "cleanup": "remove from this host what flanpy has left there",
    "network": "read, write and check the cluster's network config in etcd",
    "cni": "install the CNI plugin, or be it",
    "lab": "an overlay of several hosts on this machine, in namespaces of its own",
    "datapath": "what the ebpf datapath needs here, probe by probe",
    "bench": "measure the overlay beside its alternatives",
    "completion": "complete commands and flags in bash, zsh or fish",
}
"""Name of each command (its module is flanpy.cli.<name>) and its line in ``flanpy --help``, in the order shown there."""

EPILOG = """\
start here:
  flanpy lab demo                 see an overlay of three hosts work on this machine
  flanpy network check FILE       check a network config before it goes to etcd
  flanpy status                   see how the agent of this host is
  flanpy agent --help             what to run on each host, beside flanneld or instead of it
"""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Why standard output takes no more: a full disk, a quota, a limit on the size of files."""


def _terminal_width() -> int:
    """As shutil.get_terminal_size says, which argparse would import with all that packs archives, for each flag that is added."""
    with contextlib.suppress(ValueError):
        if (columns := int(os.environ.get("COLUMNS", "0"))) > 0:
            return columns
    try:
        return os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns or 80
    except (OSError, ValueError):
        return 80


class Texts(argparse.RawDescriptionHelpFormatter):
    """Wraps prose at the terminal's width; lines that are indented (examples, tables) stay as they are."""

    def __init__(self, prog: str, indent_increment: int = 2, max_help_position: int = 24, width: int | None = None) -> None:
        super().__init__(prog, indent_increment, max_help_position, _terminal_width() - 2 if width is None else width)

    def add_argument(self, action: argparse.Action) -> None:
        """Commands are indented once more, which argparse forgets when it makes room for the longest."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += 2

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks: list[str] = []
        for prose, group in groupby(text.rstrip().splitlines(), lambda line: bool(line) and not line.startswith(" ")):
            lines = list(group)
            if prose:
                import textwrap

                lines = textwrap.wrap(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
            blocks += lines
        return "\n".join(indent + line for line in blocks)


class Parser(argparse.ArgumentParser):
    """A parser whose subcommands refuse what they do not know themselves: with their own usage, and the nearest word."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Texts, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; whatever this parser does not know is an error here, and not in the parser above it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            from flanpy.config.flags import did_you_mean

            flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(flag, list(self._option_string_actions))}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A command, or the value of a flag, that is none of those that there are."""
        if action.choices is None or value in action.choices:
            return
        from flanpy.config.flags import did_you_mean

        known = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            listed = f"; `{self.prog} --help` lists them"
            self.error(
                f"no such {'action' if action.metavar == 'ACTION' else 'command'}: {value}{did_you_mean(value, known) or listed}"
            )
        raise argparse.ArgumentError(action, f"{value!r} is not one of {', '.join(known)}")


def module_name(command: str) -> str:
    """Where a command is: ``log-level`` in ``flanpy.cli.log_level``."""
    return f"flanpy.cli.{command.replace('-', '_')}"


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line; imports only the module of the command that is named in it."""
    parser = Parser(
        prog="flanpy", description="A flannel-compatible overlay network agent with a fast C datapath.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"flanpy {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in argv if not word.startswith("-")), None)
    for name, help_text in COMMANDS.items():
        child = commands.add_parser(name, help=help_text)
        if name == wanted:
            module = importlib.import_module(module_name(name))
            module.add_arguments(child)
            child.set_defaults(run=module.run)
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(UsageError.exit_code)
    return parser.parse_args(argv)


def _write_no_more() -> None:
    """What is still buffered would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_what_goes_on(arguments: argparse.Namespace) -> None:
    """Who is told that no agent answers asks next whether packets do."""
    from flanpy.cli.left import left_behind
    from flanpy.cli.output import run_dir

    if told := left_behind(run_dir(arguments)):
        print(told, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status that ``flanpy.errors`` documents."""
    if sys.stdout is None:  # closed by whoever started us: Python's own word for it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the process ends
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except FlanpyError as error:
        print(f"flanpy: {error}", file=sys.stderr)
        if isinstance(error, AgentAbsent):
            _say_what_goes_on(arguments)
        return error.exit_code
    except BrokenPipeError:
        _write_no_more()
        return 141
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _write_no_more()
        print(f"flanpy: cannot write: {error.strerror}", file=sys.stderr)
        return PlatformError.exit_code
    except KeyboardInterrupt:
        return 130
