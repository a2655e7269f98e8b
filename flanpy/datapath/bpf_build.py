"""Compiles csrc/bpf/overlay.bpf.c into the package; setup.py does it with the extensions. A build without clang goes on without it.

Stands alone: setup.py runs this file before the package can be imported.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path("csrc/bpf/overlay.bpf.c")
OBJECT = Path("flanpy/datapath/overlay.bpf.o")
"""Where the loader (ebpf_programs.py) looks for it, relative to the root of the tree or of the built package."""
FLAGS = ("-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror")


def include_dirs(clang: str) -> list[str]:
    """Debian keeps <asm/types.h> in a directory of the machine's own, which clang does not search when it builds for BPF."""
    triplet = subprocess.run([clang, "-print-target-triple"], capture_output=True, text=True, check=False).stdout.strip()
    machine, _, rest = triplet.partition("-")
    names = {triplet, f"{machine}-linux-gnu", f"{machine}-{rest.removeprefix('pc-').removeprefix('unknown-')}"}
    return [f"-I{path}" for name in sorted(names) if (path := Path("/usr/include") / name).is_dir()]


def compile_object(source: Path, target: Path) -> str | None:
    """Compile one object; why not, or None when it stands there now."""
    fresh = target.with_suffix(".new")
    problem = _run_clang(source, fresh)
    if problem is None:
        fresh.replace(target)  # an agent that starts meanwhile finds the old one or the new one
    else:
        target.unlink(missing_ok=True)
    return problem


def _run_clang(source: Path, target: Path) -> str | None:
    clang = shutil.which("clang")
    if clang is None:
        return "clang is not installed (Debian: apt-get install clang)"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [clang, *FLAGS, *include_dirs(clang), "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"clang: {done.stderr.strip()}" if done.returncode else None
