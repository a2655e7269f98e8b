"""What Python reads out of the headers in csrc/: the declarations for cffi, and their digest, by which a core that was built from other
headers is noticed.

Reads files and nothing else. Stands alone: setup.py and core_build.py run this file before the package can be imported.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

HEADERS = ("verdicts.h", "flanpy.h", "flows.h", "peers.h", "worker.h", "names.h", "checksum.h", "protocol.h")
CURE = "run `make build` in the checkout, or install flanpy anew"
"""For compiled parts that are missing or not of this version."""


def declarations(text: str) -> str:
    """What cffi can read of a header: no comments, no preprocessor; X-macro lists expanded; constants as ``...``."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).replace("\\\n", " ")
    lists = {
        match["name"]: re.findall(r"X\((\w+),", match["body"])
        for match in re.finditer(r"^#define (?P<name>\w+)\(X\)(?P<body>.*)$", text, flags=re.MULTILINE)
    }
    prefix = re.search(r"^#define FP_ENUM\(symbol, name, meaning\) (\w+)##symbol", text, flags=re.MULTILINE)
    for name, symbols in lists.items():
        stem = prefix[1] if prefix else ""
        text = re.sub(rf"\b{name}\(FP_ENUM\)", "".join(f"{stem}{symbol}," for symbol in symbols), text)
    constants = re.findall(r"^#define (FP_\w+)[ \t]+[^\s].*$", text, flags=re.MULTILINE)
    body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return "".join(f"#define {constant} ...\n" for constant in constants) + body


def digest(csrc: Path) -> str:
    """Of all declarations, however they are spaced and commented. Raises OSError."""
    texts = [declarations((csrc / header).read_text(encoding="utf-8")) for header in HEADERS]
    return hashlib.sha256("\0".join(" ".join(text.split()) for text in texts).encode()).hexdigest()


def problem(built: str | None, csrc: Path) -> str | None:
    """Why a core that was built from headers of this digest (None: it tells none) is not of this checkout; None when it is.

    An installed package has no csrc/ beside it, and was built with its Python files in one piece: nothing to compare.
    """
    try:
        wanted = digest(csrc)
    except OSError:
        return None
    return (
        None
        if built == wanted
        else f"the compiled C core is not of this version of flanpy (its headers in {csrc} have changed since)"
    )
