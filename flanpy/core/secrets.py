"""Takes secrets out of texts that leave the machine (``flanpy bugreport``). Pure.

Two ways, both always: values that are known to be secret are replaced wherever they stand; and what looks like a secret by its name
or its form is replaced although nobody has told of it. ``REMOVED`` stands in its place, so that one sees that something was there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

REMOVED = "<removed>"
LEAST_CHARACTERS = 4
"""A known value shorter than this would tear every text to pieces; it is removed only where its name stands beside it."""

_NAMES = (
    r"pass(?:word|wd|phrase)?|secret|token|psk|(?:pre[-_]?)?shared[-_]?key|private[-_]?key|api[-_]?key|credentials?|authorization"
)
_PATTERNS = (
    (re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL), REMOVED),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s\"']*@", re.IGNORECASE), rf"\1{REMOVED}@"),
    (re.compile(r"(\bBearer\s+|\bBasic\s+)[\w.~+/=-]+", re.IGNORECASE), rf"\1{REMOVED}"),
    # "name": "value" and name = "value", with escapes within the quotes
    (
        re.compile(rf"([\w.-]*(?:{_NAMES})[\w.-]*[\"']?\s*[:=]\s*)(\"(?:\\.|[^\"\\])*\"|'[^'\n]*')", re.IGNORECASE),
        rf"\1{REMOVED}",
    ),
    # name=value, --name value, name: value, up to white space
    (re.compile(rf"(--?[\w-]*(?:{_NAMES})[\w-]*[= ])(?!<removed>)\S+", re.IGNORECASE), rf"\1{REMOVED}"),
    (re.compile(rf"(\b[\w.-]*(?:{_NAMES})[\w.-]*\s*[:=]\s*)(?!<removed>)[^\s\"',;]+", re.IGNORECASE), rf"\1{REMOVED}"),
)


def remove_secrets(text: str, known: Iterable[str] = ()) -> str:
    """The text without them."""
    for value in sorted({value for value in known if len(value) >= LEAST_CHARACTERS}, key=len, reverse=True):
        text = text.replace(value, REMOVED)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
