"""JSON text to values and back, stricter than Go's decoder and byte for byte like its encoder; knows no schema.

Refused besides broken JSON: bytes that are not UTF-8, NaN and Infinity, a key twice in one object (keys that differ in case
only are one key, as for Go's decoder), lone surrogates, nesting deeper than ``MAX_DEPTH``.

    object  -> JsonObject (members in the order of the text)      array  -> tuple
    integer -> int        other number -> JsonNumber (its text)   string, true, false, null -> str, True, False, None
"""

from __future__ import annotations

import json
from dataclasses import dataclass

MAX_DEPTH = 32
"""Deepest nesting accepted; far above any config or lease, far below Python's recursion limit."""


class JsonError(ValueError):
    """The text is not JSON that we accept; the message says where and why."""


@dataclass(frozen=True, slots=True)
class JsonNumber:
    """A number that is not an integer, kept as it was written."""

    text: str


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object; ``members`` are (key, value) in the order of the text."""

    members: tuple[tuple[str, object], ...] = ()

    def get(self, name: str) -> object:
        """The value of a key, compared as Go's decoder does (case-insensitively); None when it is absent or null."""
        for key, value in self.members:
            if key == name:
                return value
        wanted = name.casefold()
        return next((value for key, value in self.members if key.casefold() == wanted), None)


def parse_json(text: str | bytes, *, judge: bool = True) -> object:
    """The value that ``text`` holds; raises JsonError.

    With ``judge=False`` keys that are given twice stay in their object and NaN and Infinity become JsonNumber: for a caller that
    tells about all of them, with the place of each.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(
            decoded,
            object_pairs_hook=_object if judge else _any_object,
            parse_float=JsonNumber,
            parse_constant=_refuse_constant if judge else JsonNumber,
        )
        return _checked(value, MAX_DEPTH)
    except UnicodeDecodeError as exc:
        raise JsonError(f"not UTF-8 at byte {exc.start}") from exc
    except RecursionError as exc:
        raise JsonError(f"nested deeper than {MAX_DEPTH} levels") from exc
    except json.JSONDecodeError as exc:
        raise JsonError(f"line {exc.lineno}, column {exc.colno}: {exc.msg}") from exc
    except JsonError:
        raise
    except ValueError as exc:  # an integer of thousands of digits
        raise JsonError(str(exc)) from exc


def render_json(value: object) -> str:
    """Compact JSON as Go's ``json.Marshal`` writes it, HTML-sensitive characters escaped included."""
    match value:
        case JsonObject():
            return "{" + ",".join(f"{_quoted(key)}:{render_json(member)}" for key, member in value.members) + "}"
        case tuple() | list():
            return "[" + ",".join(map(render_json, value)) + "]"
        case str():
            return _quoted(value)
        case JsonNumber():
            return value.text
        case None | bool() | int():
            return json.dumps(value)
        case _:
            raise TypeError(f"render_json: {type(value).__name__} has no place in JSON")


_GO_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).translate(_GO_ESCAPES)


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    if len({key.casefold() for key, _ in pairs}) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key.casefold() in seen:
                raise JsonError(f"{key}: given twice")
            seen.add(key.casefold())
    return JsonObject(tuple(pairs))


def _any_object(pairs: list[tuple[str, object]]) -> JsonObject:
    return JsonObject(tuple(pairs))


def _refuse_constant(name: str) -> object:
    raise JsonError(f"{name} is not a JSON value")


def _checked(value: object, depth: int) -> object:
    """The value with arrays as tuples; refuses what is too deep or cannot be written as UTF-8."""
    if depth == 0:
        raise JsonError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, JsonObject):
        return JsonObject(tuple([(_encodable(key), _checked(member, depth - 1)) for key, member in value.members]))
    if isinstance(value, list):
        return tuple([_checked(item, depth - 1) for item in value])
    return value


def _encodable(text: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise JsonError("a string holds a lone surrogate (\\ud800 to \\udfff)")
    return text
