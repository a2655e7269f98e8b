"""Labs for tests: made in a directory of the test's own, and what the machine looks like around them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from flanpy.lab import lifecycle
from flanpy.lab.cluster import Lab
from flanpy.lab.registry import LabSpec

FLANPY = (sys.executable, "-m", "flanpy")
ROOT = Path(__file__).resolve().parents[2]


def lab_spec(name: str = "test", *, hosts: int = 2, pods: int = 1, network: str = "10.5.0.0/16", **more: object) -> LabSpec:
    """A small lab with the udp backend."""
    config = json.dumps({"Network": network, "Backend": {"Type": "udp"}})
    return LabSpec(name, hosts, pods, config, **{"datapath": "userspace", **more})  # type: ignore[arg-type]


@contextmanager
def lab_directory(path: Path) -> Iterator[dict[str, str]]:
    """Labs are registered below ``path`` for the length of the block; yields the environment for commands."""
    variables = {"FLANPY_LAB_DIR": str(path), "PYTHONPATH": str(ROOT)}
    with mock.patch.dict(os.environ, variables):
        yield dict(os.environ)


@contextmanager
def running_lab(path: Path, spec: LabSpec) -> Iterator[Lab]:
    """A lab with real agents and a real etcd, gone after the block."""
    with lab_directory(path), lifecycle.temporary(spec) as lab:
        yield lab


def eventually(true: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether something becomes true before the deadline."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@dataclass(frozen=True, slots=True)
class MachineState:
    """What a lab must leave as it was: this network namespace's devices, named namespaces, routes, rules and mounts."""

    devices: frozenset[str]
    names: frozenset[str]
    routes: str
    mounts: str
    hosts_file: bytes


def machine_state(*, mounts: bool = True) -> MachineState:
    """Look at the machine as this process sees it; without ``mounts`` where a test is long and others may mount meanwhile."""
    named = Path("/run/netns")
    return MachineState(
        devices=frozenset(entry.name for entry in Path("/sys/class/net").iterdir()),
        names=frozenset(entry.name for entry in named.iterdir()) if named.is_dir() else frozenset(),
        routes=Path("/proc/net/route").read_text(),
        mounts=Path("/proc/self/mountinfo").read_text() if mounts else "",
        hosts_file=Path("/etc/hosts").read_bytes(),
    )


def namespaces_of(pid: int) -> frozenset[str]:
    """The network, mount and PID namespaces of a process and of everything in its PID namespace."""
    own = str(Path(f"/proc/{pid}/ns/pid").readlink())
    found = {own}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                if str((process / "ns/pid").readlink()) == own:
                    found |= {str((process / "ns" / kind).readlink()) for kind in ("net", "mnt")}
    return frozenset(found)


def processes_in(namespaces: frozenset[str]) -> list[int]:
    """Processes that are in one of these namespaces."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                if {str((process / "ns" / kind).readlink()) for kind in ("net", "mnt", "pid")} & namespaces:
                    found.append(int(process.name))
    return found
