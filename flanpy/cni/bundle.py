"""The plugin with all that it needs in one directory, for hosts without Python: a container of a DaemonSet copies itself there.

    DIR/bin/python3               this interpreter           DIR/lib/python3.X/     the standard library, without tests and user interfaces
    DIR/lib/ld-linux….so, libc…   the loader and libraries   DIR/package/flanpy/    our code

The executable starts the interpreter by the copied loader with the copied libraries, so neither Python nor the C library of the host
matters; of the host it needs /bin/sh alone. The new directory is made beside the old one and takes its place by two renames: a plugin
that runs meanwhile keeps its open files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import flanpy
from flanpy.errors import PlatformError

LEFT_OUT = (
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "turtle.py",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
    "config-*",
    "*.opt-*.pyc",
)
"""Parts of the standard library that the plugin has no use for; two thirds of its size."""
CODE = ("__init__.py", "errors.py", "model", "strict_json.py", "cni", "core", "config")
"""What of flanpy the plugin imports: the layers that ARCHITECTURE.md allows to ``cni``. A test runs the plugin with nothing else."""
_PROBE = "import flanpy.cni.entry, sys; sys.stdout.write(open('/proc/self/maps').read())"


def bundle(target: Path) -> None:
    """Make ``target`` anew. Raises PlatformError when it cannot be written or this interpreter's libraries cannot be found."""
    made = target.with_name(f".{target.name}.{os.getpid()}")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(made, ignore_errors=True)
        _fill(made)
        if target.exists():
            target.rename(old)
        made.rename(target)
    except (OSError, shutil.Error) as error:
        raise PlatformError(f"{target}: the plugin's bundle cannot be written: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def command(directory: Path) -> str:
    """How a shell starts the interpreter of the bundle that lies at ``directory`` when the command runs."""
    loader = _loader(_libraries()).name
    return f'"{directory}/lib/{loader}" --library-path "{directory}/lib" "{directory}/bin/python3"'


def package(directory: Path) -> str:
    """Where flanpy is in a bundle."""
    return str(directory / "package")


def _fill(target: Path) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libraries = _libraries()
    (target / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), target / "bin" / "python3")
    shutil.copytree(sysconfig.get_path("stdlib"), target / "lib" / version, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for library in (_loader(libraries), *libraries):
        shutil.copy(library, target / "lib" / library.name)
    source = Path(flanpy.__file__).resolve().parent
    for name in CODE:
        there = target / "package" / "flanpy" / name
        if (source / name).is_dir():
            shutil.copytree(source / name, there, ignore=shutil.ignore_patterns("*.o", "*.c"))
        else:
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, there)


def _libraries() -> tuple[Path, ...]:
    """The shared libraries that the plugin's interpreter has loaded, as the kernel lists them, without its own modules."""
    search = str(Path(flanpy.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"import sys; sys.path.append({search!r}); {_PROBE}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if done.returncode != 0:
        raise PlatformError(f"the plugin does not start with {sys.executable}: {done.stderr.strip()[-300:]}")
    return tuple(dict.fromkeys(_shared_objects(done.stdout)))


def _shared_objects(maps: str) -> Iterator[Path]:
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and ".so" in fields[5] and "lib-dynload" not in fields[5] and "site-packages" not in fields[5]:
            yield Path(fields[5])


def _loader(libraries: tuple[Path, ...]) -> Path:
    for library in libraries:
        if library.name.startswith(("ld-linux", "ld-musl")):
            return library
    raise PlatformError(f"{sys.executable}: no dynamic loader among its libraries; a statically linked Python cannot be bundled")
