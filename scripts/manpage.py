"""Writes docs/man/flanpy.1 from the parsers: commands with their texts and flags, exit codes, environment, files.

    python scripts/manpage.py           write it
    python scripts/manpage.py --check   say whether it is up to date (exit status 1: it is not)

man(7): lines that begin with a dot are requests, ``\\fB`` begins bold, ``\\-`` is a hyphen that can be searched for and copied.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from flanpy import errors
from flanpy.cli.main import COMMANDS, Parser, module_name

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "man" / "flanpy.1"

INTRODUCTION = """\
flanpy gives every pod of a cluster an address of its own and carries packets between the nodes, with flannel's keys, packets, files and
flags. The agent runs on each node; the other commands ask it, look at the host, or work on etcd.
"""
FILES = (
    ("/run/flanpy/control.sock", "the agent's control socket (--run-dir)"),
    ("/run/flannel/subnet.env", "the node's subnet and MTU, written when it is ready (--subnet-file)"),
    ("/var/lib/flanpy", "node id, keys, embedded etcd (--state-dir)"),
    ("/etc/flanpy/agent.toml", "options file of the systemd unit (--config)"),
)
LINKS = "etcd(1), ip(8), nft(8), systemd.service(5), pcap\\-filter(7)"


def page() -> str:
    """The whole page."""
    return "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    yield '.\\" Written by `make reference` from the code; do not edit.'
    yield '.TH FLANPY 1 "" "flanpy" "User Commands"'
    yield ".SH NAME"
    yield "flanpy \\- a flannel\\-compatible overlay network agent"
    yield ".SH SYNOPSIS"
    yield "\\fBflanpy\\fR \\fICOMMAND\\fR [\\fIOPTION\\fR]..."
    yield ".SH DESCRIPTION"
    yield from _prose(INTRODUCTION)
    yield ".SH COMMANDS"
    for name, purpose in COMMANDS.items():
        yield f".SS {_bold('flanpy ' + name)} \\- {_plain(purpose)}"
        parser = Parser(prog=f"flanpy {name}")
        importlib.import_module(module_name(name)).add_arguments(parser)
        yield from _command(parser)
    yield ".SH EXIT STATUS"
    yield from _exit_codes()
    yield ".SH ENVIRONMENT"
    yield from _prose(
        "Every flag of the agent is read from FLANPY_ and its name in capitals; those that flanneld has, from FLANNELD_ too."
    )
    yield ".SH FILES"
    for path, text in FILES:
        yield from (".TP", f"\\fI{_plain(path)}\\fR", _plain(text))
    yield ".SH SEE ALSO"
    yield LINKS


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from _prose(parser.description or "")
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in parser._actions:
        if action.help not in (None, argparse.SUPPRESS) and not isinstance(
            action, argparse._HelpAction | argparse._SubParsersAction
        ):
            yield from _argument(action)
    for child in children:
        purposes = {choice.dest: choice.help or "" for choice in child._choices_actions}
        for name, inner in child.choices.items():
            yield ".TP"
            yield _bold(f"{parser.prog} {name}")
            yield _plain(purposes.get(name, ""))
            yield ".RS"
            yield from _command(inner)
            yield ".RE"
    yield from _prose(parser.epilog or "")


def _argument(action: argparse.Action) -> Iterator[str]:
    yield ".TP"
    value = _value(action)
    if action.option_strings:
        yield ", ".join(f"{_bold(option)}{value}" for option in action.option_strings)
    else:
        yield value.strip() or f"\\fI{_plain(action.dest)}\\fR"
    text = str(action.help)
    shown = text % {"default": action.default, "prog": "flanpy"} if "%(" in text else text.replace("%%", "%")
    yield _plain(" ".join(shown.split()))


def _value(action: argparse.Action) -> str:
    """What follows the flag: `` FILE``, `` a|b``; nothing for a switch."""
    if action.nargs == 0:
        return ""
    names = action.metavar if isinstance(action.metavar, str) else "|".join(map(str, action.choices or ())) or action.dest.upper()
    shown = f"\\fI{_plain(names)}\\fR"
    return f" [{shown}]" if action.nargs == "?" else f" {shown}"


def _exit_codes() -> Iterator[str]:
    """From the tree in errors.py; commands that mean something else by one say so."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FlanpyError)]
    codes = {kind.exit_code: (kind.__doc__ or "").splitlines()[0] for kind in reversed(kinds) if kind.exit_code != 1}
    for code, meaning in sorted({0: "success", 1: "anything else, or what the command says", **codes}.items()):
        yield from (".TP", _bold(str(code)), _plain(meaning))


def _prose(text: str) -> Iterator[str]:
    """Paragraphs are filled; indented lines (examples, tables) stay as they are."""
    for kind, group in groupby(
        text.splitlines(), lambda line: "blank" if not line.strip() else "fixed" if line[:1] == " " else "prose"
    ):
        lines = list(group)
        if kind == "prose":
            yield ".PP"
            yield from map(_plain, lines)
        elif kind == "fixed":
            yield from (".PP", ".nf", *map(_plain, lines), ".fi")


def _bold(text: str) -> str:
    return f"\\fB{_plain(text)}\\fR"


def _plain(text: str) -> str:
    """Nothing in it is a request or an escape."""
    shown = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{shown}" if shown[:1] in (".", "'") else shown


def main() -> int:
    """Write or check."""
    text = page()
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET.relative_to(ROOT)} is not what the code says; run: make reference", file=sys.stderr)
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
