"""Real containers in a sandbox: runc with a busybox root, sharing the namespaces of a pod.

runc is told that it may not have cgroups (``--rootless``, and a read-only directory in their place), so none is made on the machine; all
else lies in the sandbox's private /run and ends with it. Containers run as root without capabilities: no port below 1024.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flanpy.lab.sandbox import Sandbox

ROOT = "/run/lab/busybox"
BUNDLES = "/run/lab/containers"
RUNC = ["runc", "--rootless", "true", "--root", "/run/runc"]
PREPARE = f"""
mount -t tmpfs none /sys/fs/cgroup
for name in $(cut -d: -f2 /proc/self/cgroup | tr , ' '); do mkdir -p /sys/fs/cgroup/${{name#name=}}; done
mount -o remount,ro /sys/fs/cgroup
mkdir -p {ROOT}/bin {ROOT}/proc {ROOT}/dev {ROOT}/data
cp "$(command -v busybox)" {ROOT}/bin/busybox
for name in sh httpd wget ls touch cat mv mkdir sleep; do ln -s busybox {ROOT}/bin/$name; done
"""


def prepare(sandbox: Sandbox) -> None:
    """Make the root of all containers; once for each sandbox."""
    sandbox.script(PREPARE)


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs; ``pid`` is its first process, counted inside the sandbox."""

    sandbox: Sandbox
    name: str
    pid: int

    def exec(self, *argv: str) -> str:
        """Run a command in it and return what it prints."""
        return self.sandbox.run(None, [*RUNC, "exec", self.name, *argv]).stdout

    def namespace(self, kind: str) -> str:
        """The identity of one of its namespaces."""
        return str((self.sandbox.path("/proc") / str(self.pid) / "ns" / kind).readlink())

    def delete(self) -> None:
        """Kill and remove it."""
        self.sandbox.run(None, [*RUNC, "delete", "--force", self.name])
        shutil.rmtree(self.sandbox.path(Path(BUNDLES, self.name)))


def start(sandbox: Sandbox, name: str, script: str, *, pod: str, volume: str, beside: Container | None = None) -> Container:
    """Start a container with a shell script in the network namespace of a pod, and the IPC namespace of another container."""
    bundle = Path(BUNDLES, name)
    sandbox.path(bundle).mkdir(parents=True)
    sandbox.path(volume).mkdir(parents=True, exist_ok=True)
    config = container_config(script, f"/run/netns/{pod}", volume, None if beside is None else f"/proc/{beside.pid}/ns/ipc")
    sandbox.path(bundle / "config.json").write_text(json.dumps(config))
    command = f"{' '.join(RUNC)} run --detach --bundle {bundle} {name} >{bundle}/log 2>&1"
    sandbox.script(f"{command} || {{ cat {bundle}/log >&2; exit 1; }}")
    state = json.loads(sandbox.run(None, [*RUNC, "state", name]).stdout)
    assert state["status"] == "running", f"{name}: {state['status']}: {sandbox.path(bundle / 'log').read_text()}"
    return Container(sandbox, name, state["pid"])


def container_config(script: str, netns: str, volume: str, ipc: str | None) -> dict[str, Any]:
    """The OCI config of one container of a pod."""
    own = [{"type": kind} for kind in ("pid", "mount", "uts")]
    shared = [{"type": "network", "path": netns}, {"type": "ipc", **({"path": ipc} if ipc else {})}]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": ROOT},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
            {"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rw"]},
        ],
        "linux": {"namespaces": own + shared},
    }
