"""Fields of a JSON object against a table: every problem is collected with its key path, nothing is raised on the way.

A field's check takes the JSON value and returns the accepted one, or raises ValueError with what would be right. Keys are compared
as Go's decoder does, case-insensitively; null stands for an absent key, as it does for Go.
"""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flanpy.config.flags import did_you_mean
from flanpy.strict_json import JsonNumber, JsonObject, render_json

Check = Callable[[object], object]


class Mended(ValueError):
    """A wrong value whose meaning is plain: a problem, and ``value`` to find the other problems by."""

    def __init__(self, problem: str, value: object) -> None:
        super().__init__(problem)
        self.value = value


@dataclass(frozen=True, slots=True)
class Field:
    """One key: its name as flannel spells it, its default, and its check."""

    name: str
    default: object
    check: Check


def read_fields(path: str, value: JsonObject, fields: Sequence[Field], problems: list[str]) -> dict[str, object]:
    """The value of every field; defaults where a key is absent or wrong. Adds a line to ``problems`` for each mistake."""
    given = _known_members(path, value, [field.name for field in fields], problems)
    read: dict[str, object] = {}
    for field in fields:
        read[field.name] = field.default
        if given.get(field.name) is None:
            continue
        try:
            read[field.name] = field.check(given[field.name])
        except ValueError as exc:
            problems.append(f"{path}{field.name}: {exc}")
            if isinstance(exc, Mended):
                read[field.name] = exc.value
    return read


def _known_members(path: str, value: JsonObject, names: Sequence[str], problems: list[str]) -> Mapping[str, object]:
    spelling = {name.casefold(): name for name in names}
    given: dict[str, object] = {}
    for key, member in value.members:
        name = spelling.get(key.casefold())
        if name is None:
            close = difflib.get_close_matches(key.casefold(), spelling, n=1)
            hint = f"; did you mean {spelling[close[0]]}?" if close else ""
            problems.append(f"{path}{shown_key(key)}: unknown key{hint}")
        elif name in given:
            problems.append(f"{path}{name}: given twice")
        else:
            given[name] = member
    return given


# ------------------------------------------------------------------------------------------------ checks


def integer(low: int, high: int, what: str) -> Check:
    """A whole number from ``low`` to ``high``."""

    def check(value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(_no_number(value, f"{what} ({low}..{high})"))

    return check


def integer_or_zero(low: int, high: int, what: str, zero: str) -> Check:
    """A whole number from ``low`` to ``high``, or 0, which means ``zero``."""
    plain = integer(low, high, what)

    def check(value: object) -> object:
        if value == 0 and isinstance(value, int) and not isinstance(value, bool):
            return 0
        try:
            return plain(value)
        except ValueError:
            raise ValueError(_no_number(value, f"{what} ({low}..{high}, or 0 for {zero})")) from None

    return check


def _no_number(value: object, what: str) -> str:
    """Why this is not what was asked for; the usual mistake is a number in quotes."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return f"{shown(value)} is text, not {what}; write the number without quotes"
    return f"{shown(value)} is not {what}"


def boolean(value: object) -> object:
    """true or false."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"{shown(value)} is neither true nor false")


def text(value: object) -> object:
    """A string without a NUL byte, which no argument of a command can hold."""
    if isinstance(value, str) and "\0" not in value:
        return value
    raise ValueError(f"{shown(value)} is not a text")


def choice(*words: str) -> Check:
    """One of these words."""

    def check(value: object) -> object:
        if isinstance(value, str) and value.lower() in words:
            return value.lower()
        hint = did_you_mean(value.lower(), words) if isinstance(value, str) else ""
        raise ValueError(f"{shown(value)} is not one of {', '.join(words)}{hint}")

    return check


def wireguard_key(value: object) -> object:
    """A key of 32 bytes in base64, or an empty text. It is a secret: no message shows it."""
    try:
        if isinstance(value, str) and (value == "" or len(base64.b64decode(value, validate=True)) == 32):
            return value
    except (binascii.Error, ValueError):
        pass
    raise ValueError("not a WireGuard key (32 bytes in base64: 44 characters, as `wg genpsk` prints it)")


# ------------------------------------------------------------------------------------------------ values in messages


def shown(value: object) -> str:
    """A value in a message: on one line and short."""
    match value:
        case JsonObject():
            return "an object"
        case tuple():
            return "a list"
        case JsonNumber():
            return value.text[:40]
        case int() if not isinstance(value, bool) and abs(value) >= 1 << 64:
            return "a number beyond 64 bits"
    return ascii(value)[:60] if isinstance(value, str) else render_json(value)


def shown_key(key: str) -> str:
    """A key in a message: as it is if it is a plain word, else quoted."""
    return key if key.isidentifier() and key.isascii() and len(key) <= 60 else ascii(key)[:60]
