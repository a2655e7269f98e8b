"""Option tables: one list of flags that becomes a parser, environment variables, and the keys of an options file.

A value is looked for in this order: command line, ``FLANPY_<FLAG>``, ``FLANNELD_<FLAG>`` (where flanneld has the flag), options
file, default. Every problem is collected, so that an operator mends all of them at once. Reads the environment and files that it
is given; touches nothing else.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flanpy.errors import UsageError

UNSET: Any = None
"""What argparse leaves for a flag that was not given."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One option. ``parse`` turns text into the value and raises ValueError with what would be right.

    ``repeatable`` collects values (comma-separated in environment variables, a list in the file); ``boolean`` makes
    ``--flag`` mean true and takes ``--flag=false`` as Go's flag package does; ``const`` is what the flag means without a value, where it
    may stand without one; ``flannel`` says that flanneld has it too; ``live`` that a running agent applies a change (``flanpy reload``).
    """

    name: str
    help: str
    default: object
    parse: Callable[[str], object] = str
    metavar: str = "VALUE"
    group: str = "agent"
    repeatable: bool = False
    boolean: bool = False
    const: str | None = None
    flannel: bool = True
    secret: bool = False
    live: bool = False

    @property
    def key(self) -> str:
        """Name of the attribute in an argparse namespace and in the values."""
        return self.name.replace("-", "_")

    def environment(self) -> tuple[str, ...]:
        """Names of the environment variables that set it, the strongest first."""
        suffix = self.name.replace("-", "_").upper()
        return (f"FLANPY_{suffix}", f"FLANNELD_{suffix}") if self.flannel else (f"FLANPY_{suffix}",)


def parse_bool(text: str) -> bool:
    """The words that Go's strconv.ParseBool takes, so that flanneld's command lines work unchanged."""
    match text:
        case "1" | "t" | "T" | "true" | "TRUE" | "True":
            return True
        case "0" | "f" | "F" | "false" | "FALSE" | "False":
            return False
    raise ValueError(f"{text!r} is not true or false")


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag], titles: Mapping[str, str]) -> None:
    """Add every flag to the parser, in groups titled by ``titles`` (group name -> title)."""
    groups = {name: parser.add_argument_group(title) for name, title in titles.items()}
    for flag in flags:
        options: dict[str, Any] = {"dest": flag.key, "default": UNSET, "help": _help(flag)}
        if flag.boolean:
            options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        elif flag.const is not None:
            options |= {"nargs": "?", "const": flag.const, "metavar": flag.metavar}
        else:
            options |= {"metavar": flag.metavar} | ({"action": "append"} if flag.repeatable else {})
        groups[flag.group].add_argument(f"--{flag.name}", **options)


def _help(flag: Flag) -> str:
    shown = flag.default
    if isinstance(shown, tuple):
        shown = ",".join(str(item) for item in shown)
    elif isinstance(shown, bool):
        shown = str(shown).lower()
    default = "" if shown in (None, "", ()) else f" (default: {shown})"
    return (flag.help + default).replace("%", "%%")


def resolve(
    flags: Sequence[Flag],
    given: Mapping[str, Any],
    environment: Mapping[str, str],
    file_values: Mapping[str, Any],
    file_name: str = "options file",
) -> dict[str, Any]:
    """The value of every flag by its key. Raises UsageError with all problems, one a line, each naming its origin."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    for flag in flags:
        origin, raw = _find(flag, given, environment, file_values, file_name)
        try:
            values[flag.key] = flag.default if raw is UNSET else _convert(flag, raw)
        except ValueError as error:
            problems.append(f"{origin}: {'not a valid value' if flag.secret else error}")
            values[flag.key] = flag.default
    problems += _unknown_keys(flags, file_values, file_name)
    if problems:
        raise UsageError("\n".join(problems))
    return values


def _find(
    flag: Flag, given: Mapping[str, Any], environment: Mapping[str, str], file_values: Mapping[str, Any], file_name: str
) -> tuple[str, Any]:
    if given.get(flag.key) is not UNSET:
        return f"--{flag.name}", given[flag.key]
    for variable in flag.environment():
        if variable in environment:
            text = environment[variable]
            return variable, text.split(",") if flag.repeatable else text
    if flag.name in file_values:
        return f"{file_name}: {flag.name}", file_values[flag.name]
    return "", UNSET


def _convert(flag: Flag, raw: Any) -> object:
    if flag.repeatable:
        items = raw if isinstance(raw, list) else [raw]
        return tuple(flag.parse(_text(item)) for item in items)
    return parse_bool(_text(raw)) if flag.boolean else flag.parse(_text(raw))


def _text(raw: Any) -> str:
    match raw:
        case bool():
            return "true" if raw else "false"
        case str():
            return raw
        case list():
            return ",".join(_text(item) for item in raw)
        case int() | float():
            return str(raw)
    raise ValueError(f"expected a text, a number or true/false, got {type(raw).__name__}")


def _unknown_keys(flags: Sequence[Flag], file_values: Mapping[str, Any], file_name: str) -> list[str]:
    known = [flag.name for flag in flags]
    return [f"{file_name}: {_shown(key)}: unknown option{did_you_mean(key, known)}" for key in file_values if key not in known]


def _shown(key: str) -> str:
    """A key as it was written, where that stays on one line."""
    return key if key and key.isprintable() else repr(key)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` when something known is close, else an empty text."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
