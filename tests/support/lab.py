"""Labs for tests: made in a directory of the test's own, and what the machine looks like around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from flanpy.lab import lifecycle
from flanpy.lab.cluster import Lab
from flanpy.lab.process import Entered
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox
from tests.support.polling import soon

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


STATE = """
ip -br link; echo; ip -br address; echo; ip route; echo; ip netns; echo; nft list ruleset; echo
cat /proc/self/mountinfo; echo; cat /etc/hosts
"""
PROCESSES = ("ps", "-eo", "args", "--no-headers")
"""With these a machine's state is printed, all that a lab must leave as it was."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the test's own, a sandbox: labs are started on it by the command line, and nobody else changes it."""

    sandbox: Sandbox
    environment: dict[str, str]
    labs: Path

    def flanpy(self, *words: str, status: int = 0) -> str:
        """Run ``flanpy lab ...`` to its end; returns all that it said."""
        done = self.sandbox.run(None, [*FLANPY, "lab", *words], check=False, env=self.environment, timeout_s=90)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *words: str) -> Entered:
        """Start ``flanpy lab ...``; its standard output is a pipe."""
        return self.sandbox.popen(None, [*FLANPY, "lab", *words], env=self.environment, stderr=subprocess.DEVNULL)

    def holder(self, lab: str) -> int:
        """The pid of a lab's holder on this machine, once it has one."""
        record = self.labs / lab / "lab.json"
        assert soon(record.exists)
        return int(json.loads(record.read_text())["holder"])

    def state(self) -> str:
        """What the machine looks like."""
        processes = self.sandbox.run(None, PROCESSES).stdout.splitlines()
        others = sorted(line for line in processes if line != " ".join(PROCESSES))
        return "\n".join([self.sandbox.run(None, ["sh", "-c", STATE]).stdout, *others])

    def becomes(self, state: str) -> bool:
        """Whether the machine looks like that soon; the kernel frees namespaces a moment after their last process."""
        return soon(lambda: self.state() == state)


@contextmanager
def machine(labs: Path) -> Iterator[Machine]:
    """A fresh machine that keeps its labs' files below ``labs``."""
    with lab_directory(labs), Sandbox.create() as sandbox:
        yield Machine(sandbox, {"FLANPY_LAB_DIR": str(labs), "PYTHONPATH": str(ROOT)}, labs)


@dataclass(frozen=True, slots=True)
class Outside:
    """What this process sees of the machine it runs on; quick to read, for tests that take a moment only."""

    devices: frozenset[str]
    names: frozenset[str]
    routes: str
    mounts: str
    hosts_file: bytes


def outside() -> Outside:
    """Look at the machine as this process sees it."""
    named = Path("/run/netns")
    return Outside(
        devices=frozenset(entry.name for entry in Path("/sys/class/net").iterdir()),
        names=frozenset(entry.name for entry in named.iterdir()) if named.is_dir() else frozenset(),
        routes=Path("/proc/net/route").read_text(),
        mounts=Path("/proc/self/mountinfo").read_text(),
        hosts_file=Path("/etc/hosts").read_bytes(),
    )


@contextmanager
def namespaces_of(pid: int) -> Iterator[frozenset[str]]:
    """The network, mount and PID namespaces of a process and of everything in its PID namespace.

    They are held open while the block lasts: the kernel soon gives the number of one that is gone to another, of another test.
    """
    own = str(Path(f"/proc/{pid}/ns/pid").readlink())
    found = {own}
    with ExitStack() as held:
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                with suppress(OSError):
                    if str((process / "ns/pid").readlink()) == own:
                        for kind in ("pid", "net", "mnt"):
                            held.enter_context((process / "ns" / kind).open())
                            found.add(str((process / "ns" / kind).readlink()))
        yield frozenset(found)


def processes_in(namespaces: frozenset[str]) -> list[int]:
    """Processes that are in one of these namespaces."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                if {str((process / "ns" / kind).readlink()) for kind in ("net", "mnt", "pid")} & namespaces:
                    found.append(int(process.name))
    return found
