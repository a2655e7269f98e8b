"""Builds ``flanpy.bench._native`` with cffi (API mode): the benchmark's C parts, and the pure C core that they time.

``setup.py`` uses the variable ``ffi``. To rebuild it in place while working on the C: ``python setup.py build_ext -i``.
The declarations that Python sees are cut out of ``csrc/bench/bench.h``, so that they cannot differ from what is compiled.
"""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

CSRC = Path("csrc")
"""Relative to the directory of setup.py, where every build runs: setuptools takes no absolute paths."""

WITH_SYSTEM_CALLS = "worker"
"""Files of the core whose name begins so are not pure: what they do is measured through the TUN device, not by ``bench core``."""


def declarations(header: str) -> str:
    """The header without comments and preprocessor lines, its numeric macros as values that cffi checks."""
    without_comments = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    macros = re.findall(r"^#define (FB_\w+) (?:0x[0-9a-f]+|\d+)u?\s*$", without_comments, flags=re.MULTILINE)
    body = "\n".join(line for line in without_comments.splitlines() if not line.startswith("#"))
    for name, value in re.findall(r"^#define (FB_\w+) (\d+)u\s*$", without_comments, flags=re.MULTILINE):
        body = body.replace(f"[{name}]", f"[{value}]")
    return "\n".join(f"#define {name} ..." for name in macros) + body


def sources() -> list[str]:
    """Every C file that goes into the module."""
    core = sorted(path for path in CSRC.glob("*.c") if not path.name.startswith(WITH_SYSTEM_CALLS))
    return [str(path) for path in [*sorted((CSRC / "bench").glob("*.c")), *core]]


ffi = FFI()
ffi.cdef(declarations((CSRC / "bench" / "bench.h").read_text()))
ffi.set_source(
    "flanpy.bench._native",
    '#include "bench.h"',
    sources=sources(),
    include_dirs=[str(CSRC), str(CSRC / "bench")],
    depends=[str(path) for path in [*CSRC.glob("*.h"), *(CSRC / "bench").glob("*.h")]],
    # The core's own options (flanpy/datapath/core_build.py): what is timed is what runs.
    extra_compile_args=["-O2", "-g", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
