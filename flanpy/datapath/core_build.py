"""Builds ``flanpy.datapath._core``, the C core, with cffi in API mode (stable ABI).

The headers in csrc/ are the one description of the API: core_api.py reads the declarations out of them, so nothing is written twice, and
their digest goes into the module. setup.py takes ``ffi`` from here.
"""

import runpy
from pathlib import Path

from cffi import FFI

CSRC = Path("csrc")
PURE_SOURCES = [
    "checksum.c",
    "coalesce.c",
    "decap.c",
    "encap.c",
    "flows.c",
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

API = runpy.run_path("flanpy/datapath/core_api.py")
COMPILE_ARGS = ["-O2", "-g", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra"]


def builder() -> FFI:
    """The ffi object that compiles the module; paths are relative to the root of the source tree."""
    ffi = FFI()
    ffi.cdef("struct iovec { void *iov_base; size_t iov_len; };")
    for header in API["HEADERS"]:
        ffi.cdef(API["declarations"]((CSRC / header).read_text(encoding="utf-8")))
    ffi.cdef("const char *fp_api_digest(void);")
    own = f'static const char *fp_api_digest(void) {{ return "{API["digest"](CSRC)}"; }}\n'
    sources = [CSRC / name for name in PURE_SOURCES] + sorted(CSRC.glob("worker*.c"))
    ffi.set_source(
        "flanpy.datapath._core",
        "".join(f'#include "{header}"\n' for header in API["HEADERS"]) + own,
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
