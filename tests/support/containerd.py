"""containerd on a host of a sandbox: the real daemon and ``ctr``, an image of busybox built here, and the plugin where ctr looks for it.

Everything that they write lies in the sandbox's private /run. ctr looks for networks in /etc/cni/net.d and for plugins in /opt/cni/bin: the
sandbox sees an overlay and an empty directory there. runc is started by a wrapper that takes cgroups out of the container's spec,
for a sandbox may have none (``runc``).
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flanpy.lab.sandbox import Sandbox
from tests.support.clusters import eventually
from tests.support.cni import DEBIAN_PLUGINS, Runtime

HOME = "/run/lab/containerd"
IMAGE = "test.local/busybox:1"
PAUSE = "test.local/pause:1"
"""What holds a pod's namespaces."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PREPARE = f"""
mkdir -p {HOME}/etc {HOME}/work
mount -t overlay overlay -o lowerdir=/etc,upperdir={HOME}/etc,workdir={HOME}/work /etc
mount -t tmpfs none /opt
mkdir -p /etc/cni/net.d /opt/cni/bin
cp {DEBIAN_PLUGINS}/* /opt/cni/bin/
"""
CONFIG = f"""
version = 2
root = "{HOME}/root"
state = "{HOME}/state"
disabled_plugins = [{{disabled}}]
[grpc]
  address = "{HOME}/socket"
[ttrpc]
  address = "{HOME}/ttrpc"
"""
CRI = f"""
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_cgroup = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{HOME}/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""
"""The Kubernetes runtime interface, without cgroups, which a sandbox may not have."""
WRAPPER = """#!{python} -IS
import json, os, sys
if "create" in sys.argv:
    config = os.path.join(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
    with open(config) as file:
        spec = json.load(file)
    for name in ("cgroupsPath", "resources"):
        spec["linux"].pop(name, None)
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
    with open(config, "w") as file:
        json.dump(spec, file)
os.execvp("runc", ["runc", "--rootless", "true", *sys.argv[1:]])
"""


@dataclass(frozen=True, slots=True)
class Containerd:
    """A daemon that runs; ``ctr`` runs in the host's network namespace, and so do the plugins that it starts."""

    sandbox: Sandbox
    host: str

    def ctr(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ctr to its end."""
        return self.sandbox.run(self.host, ["ctr", "--address", f"{HOME}/socket", *words], env={"PATH": PATH}, timeout_s=60)

    def run(self, name: str, script: str) -> subprocess.Popen[str]:
        """Start a container with a network by CNI; ctr stays with it, and takes the network back when it ends."""
        flags = ["--rm", "--cni", "--snapshotter", "native", "--runc-binary", f"{HOME}/runc"]
        argv = ["ctr", "--address", f"{HOME}/socket", "run", *flags, IMAGE, name, "sh", "-c", script]
        return self.sandbox.popen(self.host, argv, env={"PATH": PATH}, stderr=subprocess.PIPE)


@contextmanager
def containerd(runtime: Runtime, logs: Path, *, cri: bool = False) -> Iterator[Containerd]:
    """The daemon on a runtime's host, with our network and the images; ``cri``: it serves Kubernetes' runtime interface too."""
    sandbox = runtime.sandbox
    sandbox.script(PREPARE)
    shutil.copy(runtime.bin_dir / "flanpy", sandbox.path("/opt/cni/bin/flanpy"))
    config = runtime.config()
    conflist = {key: config.pop(key) for key in ("cniVersion", "name")} | {"plugins": [config]}
    sandbox.path("/etc/cni/net.d/10-flanpy.conflist").write_text(json.dumps(conflist))
    disabled = "" if cri else '"io.containerd.grpc.v1.cri"'
    sandbox.path(f"{HOME}/config.toml").write_text(CONFIG.format(disabled=disabled) + (CRI if cri else ""))
    wrapper = sandbox.path(f"{HOME}/runc")
    wrapper.write_text(WRAPPER.format(python=sys.executable))
    wrapper.chmod(0o755)
    _build_image(sandbox.path(f"{HOME}/image.tar"))
    with (logs / "containerd.log").open("w") as log:
        daemon = sandbox.popen(
            runtime.host, ["containerd", "--config", f"{HOME}/config.toml"], env={"PATH": PATH}, stdout=log, stderr=log
        )
    try:
        eventually(sandbox.path(f"{HOME}/socket").exists, 20, "containerd listens")
        running = Containerd(sandbox, runtime.host)
        namespace = ("--namespace", "k8s.io") if cri else ()
        running.ctr(*namespace, "images", "import", "--snapshotter", "native", f"{HOME}/image.tar")
        yield running
    finally:
        daemon.terminate()
        daemon.wait(timeout=20)


def _build_image(path: Path) -> None:
    """An archive as ``docker save`` makes it: two images, both with busybox and nothing else."""
    busybox = shutil.which("busybox")
    assert busybox
    layer = _tar({"bin/busybox": Path(busybox).read_bytes()}, ("sh", "hostname", "httpd", "ip", "mkdir", "sleep"))
    files, manifest = {"layer.tar": layer}, []
    for tag, command in ((IMAGE, ["sh"]), (PAUSE, ["sleep", "100000"])):
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": command},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
        name = f"{command[0]}.json"
        files[name] = json.dumps(config).encode()
        manifest.append({"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]})
    path.write_bytes(_tar(files | {"manifest.json": json.dumps(manifest).encode()}))


def _tar(files: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp") if links else ():
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        for name, content in files.items():
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(content), 0o755
            archive.addfile(file, io.BytesIO(content))
        for name in links:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return made.getvalue()
