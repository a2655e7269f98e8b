"""Compiles csrc/process/ with the core into the package: flanpy-datapath, the executable that carries the packets.

Stands alone: setup.py runs this file before the package can be imported.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

CSRC = Path("csrc")
EXECUTABLE = Path("flanpy/datapath/flanpy-datapath")
"""Where the agent (process_start.py) looks for it, relative to the root of the tree or of the built package."""
FLAGS = ("-O2", "-g", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra")
HARDENING = ("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now,-z,noexecstack")


def sources() -> list[Path]:
    """The process and the whole core."""
    return [*sorted((CSRC / "process").glob("*.c")), *sorted(CSRC.glob("*.c"))]


def compile_executable(target: Path) -> None:
    """Compile to ``target``, which an agent that starts meanwhile finds old or new, but whole. Raises CalledProcessError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    command = [*compiler, *FLAGS, *HARDENING, f"-I{CSRC}", *map(str, sources()), "-o", str(fresh), "-lpthread"]
    subprocess.run(command, check=True)
    fresh.chmod(0o755)
    fresh.replace(target)
