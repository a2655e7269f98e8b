"""Which labs exist on this machine: one directory each, with its description, its logs and a lock held by its holder's life.

    BASE/NAME/lock       flock held by PID 1 of the lab: free means that the lab is gone, whatever a file says
    BASE/NAME/lab.json   what was asked for, and the holder's pid
    BASE/NAME/logs/      etcd.log, host1.log, ...; alone in the directory: kept of a lab that has failed

BASE is FLANPY_LAB_DIR, or a directory of this user below the temporary directory. All else lives inside the lab and dies with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from flanpy.errors import LabError
from flanpy.lab.plan import check_name


@dataclass(frozen=True, slots=True)
class LabSpec:
    """What a lab was asked to be. ``network_config`` is the JSON text that goes to etcd."""

    name: str
    hosts: int
    pods: int
    network_config: str
    datapath: str = "auto"
    mode: str = "superpacket"
    mtu_bytes: int = 1500
    agent_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabRecord:
    """A living lab: what it is and the pid of its holder."""

    spec: LabSpec
    holder: int


def base_directory() -> Path:
    """Where this user's labs are kept; made on first use, refused when it belongs to somebody else."""
    chosen = os.environ.get("FLANPY_LAB_DIR")
    base = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"flanpy-labs-{os.geteuid()}"
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = base.lstat()
    except OSError as error:
        raise LabError(
            f"{base}: cannot keep labs there ({error.strerror}); set FLANPY_LAB_DIR to a directory of your own"
        ) from error
    if status.st_uid != os.geteuid() or base.is_symlink():
        raise LabError(f"{base}: belongs to another user; set FLANPY_LAB_DIR to a directory of your own")
    return base


def directory(name: str) -> Path:
    """The directory of the lab of that name."""
    return base_directory() / check_name(name)


def claim(name: str) -> int:
    """Make the directory of a new lab; returns the descriptor of its lock, to be passed to the holder.

    Raises LabError when a lab of that name lives.
    """
    with _registry_locked():
        _sweep()
        path = directory(name)
        if (path / "lock").exists():
            raise LabError(f"{name}: a lab of this name runs already; `flanpy lab down {name}` ends it, or choose another name")
        shutil.rmtree(path, ignore_errors=True)
        (path / "logs").mkdir(mode=0o700, parents=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor


def free_name(stem: str) -> str:
    """A name that no living lab has: the stem, or the stem with a number."""
    taken = {entry.spec.name for entry in labs()}
    return next(name for number in count(1) if (name := stem if number == 1 else f"{stem}-{number}") not in taken)


def record(spec: LabSpec, holder: int) -> None:
    """Write down a lab whose holder has started."""
    path = directory(spec.name) / "lab.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"spec": asdict(spec), "holder": holder}, indent=1) + "\n")
    temporary.rename(path)


def forget(name: str, *, keep_logs: bool = False) -> None:
    """Remove what is left of a lab that has ended; ``keep_logs`` leaves its logs, until the next lab of that name."""
    path = directory(name)
    if not keep_logs:
        shutil.rmtree(path, ignore_errors=True)
        return
    for file in ("lab.json", "lock"):
        (path / file).unlink(missing_ok=True)


def has_failed(name: str) -> bool:
    """Whether only the logs of a failed lab are left under this name."""
    return (directory(name) / "logs").is_dir() and not (directory(name) / "lock").exists()


def labs() -> tuple[LabRecord, ...]:
    """The labs that live, by name; what dead ones have left is removed."""
    with _registry_locked():
        _sweep()
        found = (_read(path) for path in sorted(base_directory().iterdir()) if _is_lab(path))
        return tuple(entry for entry in found if entry is not None)


def find(name: str | None) -> LabRecord:
    """The lab of that name; without a name the only one there is. LabError says what there is instead."""
    living = {entry.spec.name: entry for entry in labs()}
    if name is None and len(living) == 1:
        return next(iter(living.values()))
    if name is not None and name in living:
        return living[name]
    there_are = f"there are: {', '.join(living)}" if living else "none runs; `flanpy lab up` starts one"
    raise LabError(f"which lab? {there_are}" if name is None else f"{name}: no lab of this name ({there_are})")


def _is_lab(path: Path) -> bool:
    return (path / "lock").is_file()


def _read(path: Path) -> LabRecord | None:
    """The record of a lab; None while it is still being started."""
    try:
        content = json.loads((path / "lab.json").read_text())
    except FileNotFoundError:
        return None
    spec = content["spec"]
    return LabRecord(LabSpec(**{**spec, "agent_flags": tuple(spec["agent_flags"])}), content["holder"])


def _sweep() -> None:
    """Remove the directories of labs whose holder has ended; the registry must be locked."""
    for path in base_directory().iterdir():
        if _is_lab(path) and not _held(path / "lock"):
            shutil.rmtree(path, ignore_errors=True)


def _held(lock: Path) -> bool:
    with suppress(FileNotFoundError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _registry_locked() -> Iterator[None]:
    with (base_directory() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
