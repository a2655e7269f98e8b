"""Real clusters for tests of the agent: a lab with its etcd read and written through the JSON gateway, and questions to its agents.

Everything runs in the lab's own namespaces and vanishes with this process.
"""

from __future__ import annotations

import base64
import http.client
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from urllib.parse import urlsplit

from flanpy.agent.client import ask
from flanpy.lab import topology
from flanpy.lab.cluster import IMPORT_PATH, Lab
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox
from flanpy.model import DEFAULT_PREFIX
from tests.support.pace import SLOWNESS
from tests.support.polling import eventually

NETWORK = '{"Network": "10.244.0.0/16", "SubnetMax": "10.244.198.0", "Backend": {"Type": "udp"}}'
QUIET = ("--peer-probe-interval=0",)
"""Agents that send no probes, so that counters hold what a test has sent and nothing else."""
START_S = 30.0
"""How long an agent may take to start, or to end, where others use the same CPUs: a second where nobody does."""


def with_room(network: str) -> str:
    """The config with 10.244.199.0 to 10.244.255.0 left to leases that tests make up: an agent would take one of them by chance else."""
    config = json.loads(network)
    if config.get("Network") == "10.244.0.0/16":
        config.setdefault("SubnetMax", "10.244.198.0")
    return json.dumps(config)


@contextmanager
def cluster(logs: Path, *, hosts: int = 2, pods: int = 1, network: str = NETWORK, **spec: Any) -> Iterator[Cluster]:
    """A running lab; it ends with the block, and by itself when this process dies. Probes only where ``agent_flags`` ask for them."""
    spec["agent_flags"] = (*QUIET, *spec.get("agent_flags", ()))
    with Sandbox.create() as sandbox:
        lab = Lab(LabSpec("test", hosts, pods, with_room(network), **{"datapath": "userspace", **spec}), sandbox, logs, SLOWNESS)
        lab.build()
        yield Cluster(lab)


@contextmanager
def carried_by(datapath: str, logs: Path) -> Iterator[Cluster]:
    """Two hosts with a pod each whose packets this datapath carries, and no other in its place."""
    with cluster(logs, datapath=datapath) as running:
        assert running.status("host1")["datapath"]["kind"] == datapath
        yield running


class Cluster:
    """A lab with what tests ask of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.sandbox = lab.sandbox

    def status(self, host: str, *, brief: bool = False) -> dict[str, Any]:
        """What the agent of a host says of itself; ``brief``: without the lists, which grow with the cluster."""
        return self.ask(host, "status", **({"brief": True} if brief else {}))

    def ask(self, host: str, command: str, **arguments: Any) -> dict[str, Any]:
        """What the agent of a host answers to a command on its control socket."""
        run_dir = self.sandbox.path(self.lab.agent_settings(host)["FLANPY_RUN_DIR"])
        return ask(run_dir, command, arguments=arguments)

    def flanpy(self, host: str, *words: str, **how: Any) -> CompletedProcess[str]:
        """Run ``flanpy …`` on a host as its operator does: it finds the host's agent. ``how`` is for ``Sandbox.run``."""
        env = {**IMPORT_PATH, **self.lab.agent_settings(host), **how.pop("env", {})}
        return self.sandbox.run(host, [sys.executable, "-m", "flanpy", *words], env=env, **how)

    def verdicts(self, host: str) -> dict[str, int]:
        """Packets by verdict on a host, those that are not zero."""
        counts = self.status(host)["datapath"]["verdicts"]
        return {name: count["packets"] for name, count in counts.items() if count["packets"]}

    def log(self, host: str) -> str:
        """The whole log of a host's agent."""
        return self.lab.log_path(host).read_text(encoding="utf-8")

    def subnet(self, host: str) -> str:
        """The subnet that stands in a host's subnet.env."""
        lease = self.lab.lease(host)
        assert lease is not None
        return str(lease.subnet)

    def key(self, host: str) -> str:
        """The etcd key of a host's lease, below the prefix."""
        return "subnets/" + self.subnet(host).replace("/", "-")

    def pod(self, name: str) -> str:
        """The address of a pod."""
        return str(next(pod.address.ip for pod in self.lab.segment().pods if pod.name == name))

    def ping(self, source: str, target: str, count: int = 3) -> int:
        """How many of ``count`` pings from one pod to another were answered."""
        done = self.sandbox.run(
            source, ["ping", "-n", "-q", f"-c{count}", "-i0.05", "-W1", self.pod(target)], check=False, timeout_s=30 + count
        )
        return int(done.stdout.split(" received")[0].rsplit(" ", 1)[-1])

    def routes(self, host: str) -> list[str]:
        """The main table of a host, as ``ip route`` prints it."""
        return [line.strip() for line in self.sandbox.run(host, ["ip", "route"]).stdout.splitlines()]

    # ------------------------------------------------------------------------------------------------ etcd

    def etcd(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call of etcd's JSON gateway (``kv/range``, ``kv/put``, ...)."""
        with self.sandbox.enter(None):
            connection = http.client.HTTPConnection(str(urlsplit(self.lab.etcd_url).hostname), 2379, timeout=5)
            try:
                connection.request("POST", f"/v3/{method}", json.dumps(body))
                answer: dict[str, Any] = json.loads(connection.getresponse().read())
                return answer
            finally:
                connection.close()

    def put(self, key: str, value: str | bytes, lease: str | None = None) -> None:
        """Write a key below the prefix."""
        raw = value if isinstance(value, bytes) else value.encode()
        self.etcd("kv/put", {"key": _key(key), "value": base64.b64encode(raw).decode()} | ({"lease": lease} if lease else {}))

    def get(self, key: str) -> dict[str, Any] | None:
        """A key below the prefix as the gateway shows it, its value decoded."""
        found = self.etcd("kv/range", {"key": _key(key)}).get("kvs", [])
        return {**found[0], "value": base64.b64decode(found[0]["value"]).decode()} if found else None

    def delete(self, key: str) -> None:
        """Delete a key below the prefix."""
        self.etcd("kv/deleterange", {"key": _key(key)})

    def keys(self) -> list[str]:
        """All keys of leases, below the prefix."""
        start = f"{DEFAULT_PREFIX}/subnets/"
        end = start[:-1] + "0"
        found = self.etcd("kv/range", {"key": _encoded(start), "range_end": _encoded(end)}).get("kvs", [])
        return [base64.b64decode(item["key"]).decode().removeprefix(f"{DEFAULT_PREFIX}/") for item in found]


def _key(key: str) -> str:
    return _encoded(f"{DEFAULT_PREFIX}/{key}")


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# ------------------------------------------------------------------------------------------------ one agent at a time


@contextmanager
def bare(logs: Path, *, network: str | None = NETWORK) -> Iterator[Cluster]:
    """One host and an etcd, no agent yet."""
    with Sandbox.create() as sandbox:
        config = with_room(network or NETWORK)
        lab = Lab(LabSpec("test", 1, 1, config, datapath="userspace"), sandbox, logs, SLOWNESS)
        sandbox.script(topology.underlay_script(lab.plan))
        lab.start_etcd()
        lab.put_network_config(config)
        running = Cluster(lab)
        if network is None:
            running.delete("config")
        yield running


class Agent:
    """An agent on host1 with flags of its own; SIGTERM at the end of the block if it still runs."""

    def __init__(self, owner: Cluster, *flags: str, name: str = "a", env: dict[str, str] | None = None) -> None:
        self.owner = owner
        self.log_path = owner.lab.logs / f"{name}.log"
        self.files = Path("/run/lab") / name
        argv = [sys.executable, "-m", "flanpy", "agent", f"--state-dir={self.files}/state", f"--run-dir={self.files}/run"]
        argv += [f"--subnet-file={self.files}/subnet.env", f"--etcd-endpoints={owner.lab.etcd_url}", *flags]
        with self.log_path.open("w") as log:
            self.process = owner.sandbox.popen("host1", argv, env={**IMPORT_PATH, **(env or {})}, stdout=log, stderr=log)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the agent and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=START_S)

    def exit_status(self) -> int:
        """Wait for the agent to end by itself."""
        return self.process.wait(timeout=START_S)

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.log_path.read_text(encoding="utf-8")

    def says(self, text: str, within_s: float = START_S) -> None:
        """Wait until the log holds this text."""
        __tracebackhide__ = True
        try:
            eventually(lambda: text in self.log, within_s, f"the agent says {text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return ask(self.owner.sandbox.path(self.files / "run"), "status")

    @property
    def subnet_env(self) -> Path:
        """Its subnet.env, as it can be opened from here."""
        return self.owner.sandbox.path(self.files / "subnet.env")

    def subnet(self) -> str:
        """The subnet in its subnet.env, once that is there."""
        self.says("ready: subnet")
        return self.subnet_env.read_text().split("FLANNEL_SUBNET=")[1].split("\n")[0]
