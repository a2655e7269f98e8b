"""Builds ``flanpy.datapath._core``, the C core, with cffi in API mode (stable ABI).

The headers in csrc/ are the one description of the API: this file reads the declarations out of them and expands the
X-macro lists, so nothing is written twice. setup.py takes ``ffi`` from here.
"""

import re
from pathlib import Path

from cffi import FFI

CSRC = Path("csrc")
PURE_SOURCES = [
    "checksum.c",
    "coalesce.c",
    "decap.c",
    "encap.c",
    "icmp.c",
    "icmp6.c",
    "ip.c",
    "ip6.c",
    "names.c",
    "peers.c",
    "protocol.c",
    "runs.c",
    "segment.c",
    "table.c",
    "table6.c",
    "table6_build.c",
    "table_build.c",
]
"""No system calls, no globals, no allocation; tests/packets holds their symbols against that."""

HEADERS = ["verdicts.h", "flanpy.h", "peers.h", "worker.h", "names.h", "checksum.h", "protocol.h"]
COMPILE_ARGS = ["-O2", "-g", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra"]


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


def builder() -> FFI:
    """The ffi object that compiles the module; paths are relative to the root of the source tree."""
    ffi = FFI()
    ffi.cdef("struct iovec { void *iov_base; size_t iov_len; };")
    for header in HEADERS:
        ffi.cdef(declarations((CSRC / header).read_text(encoding="utf-8")))
    sources = [CSRC / name for name in PURE_SOURCES] + sorted(CSRC.glob("worker*.c"))
    ffi.set_source(
        "flanpy.datapath._core",
        "".join(f'#include "{header}"\n' for header in HEADERS),
        sources=[str(source) for source in sources],
        depends=[str(header) for header in sorted(CSRC.glob("*.h"))],
        include_dirs=[str(CSRC)],
        extra_compile_args=COMPILE_ARGS,
        libraries=["pthread"],
        py_limited_api=True,
    )
    return ffi


ffi = builder()

if __name__ == "__main__":
    ffi.compile(verbose=True)
