"""A container runtime for tests: starts the installed plugin by the CNI exec protocol on a host of a sandbox, with real delegates.

What the plugins keep lies in the sandbox's private /run and ends with it: host-local's addresses in /run/lab/HOST/ips, ours in
/run/lab/HOST/cni.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flanpy.cni.install import install
from flanpy.lab import topology
from flanpy.lab.cluster import Lab
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox
from tests.support.clusters import NETWORK, QUIET, Cluster
from tests.support.dual_stack import underlay6_script

DEBIAN_PLUGINS = "/usr/lib/cni"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a plugin has said: its exit status, and stdout as JSON (None when it is empty)."""

    status: int
    json: Any
    stderr: str

    @property
    def address(self) -> str:
        """The first address of a result, without its length."""
        assert self.status == 0, (self.json, self.stderr)
        return str(self.json["ips"][0]["address"]).split("/")[0]

    def refused(self, code: int) -> str:
        """The message of an error with this code."""
        assert self.status == 1, (self.json, self.stderr)
        assert "Traceback" not in self.stderr
        assert self.json["code"] == code, self.json
        assert self.json["cniVersion"]
        return str(self.json["msg"])


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime of one host; ``keys`` are put into its network config."""

    sandbox: Sandbox
    host: str
    bin_dir: Path
    keys: dict[str, Any] = field(default_factory=dict)
    ipv6: bool = False

    def path(self, *parts: str) -> Path:
        """A file of the host, as it can be opened from here."""
        return self.sandbox.path(Path("/run/lab", self.host, *parts))

    def config(self, **keys: Any) -> dict[str, Any]:
        """The network config, with these keys on top."""
        own = {
            "cniVersion": "1.0.0",
            "name": "cbr0",
            "type": "flanpy",
            "subnetFile": f"/run/lab/{self.host}/subnet.env",
            "dataDir": f"/run/lab/{self.host}/cni",
            "ipam": {"dataDir": f"/run/lab/{self.host}/ips"},
            "delegate": {"isDefaultGateway": True},
        }
        return {**own, **self.keys, **keys}

    def start(self, command: str, pod: str = "", *, config: dict[str, Any] | str | None = None, **environment: str) -> Call:
        """Start the plugin; ``collect`` of the call waits for it."""
        asked = self.config() if config is None else config
        pod_keys = {"CNI_CONTAINERID": f"id-{pod}", "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0"} if pod else {}
        values = {"CNI_COMMAND": command, "CNI_PATH": f"{self.bin_dir}:{DEBIAN_PLUGINS}", **pod_keys, **environment}
        executable = str(self.bin_dir / "flanpy")
        process = self.sandbox.popen(self.host, [executable], env=values, stdin=subprocess.PIPE)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(asked if isinstance(asked, str) else json.dumps(asked))
        process.stdin = None
        return Call(process)

    def call(self, command: str, pod: str = "", *, config: dict[str, Any] | str | None = None, **environment: str) -> Answer:
        """Start the plugin and wait for its answer."""
        return self.start(command, pod, config=config, **environment).collect()

    def add(self, pod: str, **keys: Any) -> Answer:
        """A namespace of this name, attached."""
        self.new_namespace(pod)
        return self.call("ADD", pod, config=self.config(**keys))

    def new_namespace(self, pod: str) -> None:
        """An empty network namespace with its loopback up."""
        quiet = "" if self.ipv6 else topology._sysctl(pod, topology.QUIET_IPV6)
        self.sandbox.script(f"ip netns add {pod}\n{quiet}ip -n {pod} link set lo up\n")

    def addresses(self, network: str = "cbr0") -> list[str]:
        """What host-local has given away."""
        directory = self.path("ips", network)
        return sorted(path.name for path in directory.iterdir() if path.name[0].isdigit()) if directory.is_dir() else []

    def kept(self) -> list[str]:
        """Names of the files that our plugin keeps."""
        directory = self.path("cni")
        return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


@dataclass(frozen=True, slots=True)
class Call:
    """A plugin that runs."""

    process: subprocess.Popen[str]

    def collect(self, timeout_s: float = 30) -> Answer:
        """Wait for the answer."""
        try:
            out, err = self.process.communicate(timeout=timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
        return Answer(self.process.returncode, json.loads(out) if out.strip() else None, err)


@contextmanager
def cni_cluster(
    logs: Path,
    *,
    hosts: int = 2,
    network: str = NETWORK,
    datapath: str = "userspace",
    flags: tuple[str, ...] = (),
    ipv6: bool = False,
) -> Iterator[tuple[Cluster, list[Runtime]]]:
    """Hosts with real agents and no pods yet, and a runtime on each."""
    bin_dir = logs / "bin"
    install(bin_dir)
    with Sandbox.create() as sandbox:
        lab = Lab(LabSpec("test", hosts, 1, network, datapath=datapath, agent_flags=(*QUIET, "--ip-masq", *flags)), sandbox, logs)
        sandbox.script(topology.underlay_script(lab.plan) + (underlay6_script(lab.plan) if ipv6 else ""))
        lab.start_etcd()
        lab.put_network_config(network)
        names = [host.name for host in lab.plan.hosts]
        lab.start_agents(names)
        yield Cluster(lab), [Runtime(sandbox, name, bin_dir, ipv6=ipv6) for name in names]


SUBNET_ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"


@contextmanager
def lone_host(logs: Path, subnet_env: str | None = SUBNET_ENV) -> Iterator[Runtime]:
    """One host on which an agent once was: its subnet.env is there, and nothing else."""
    install(logs / "bin", ("flanpy", "flannel"))
    with Sandbox.create() as sandbox:
        sandbox.script("ip netns add host1\nip -n host1 link set lo up\nip netns exec host1 sysctl -qew net.ipv4.ip_forward=1\n")
        runtime = Runtime(sandbox, "host1", logs / "bin")
        runtime.path().mkdir()
        if subnet_env is not None:
            runtime.path("subnet.env").write_text(subnet_env)
        yield runtime
