"""A running lab: a real etcd and a real ``flanpy agent`` on every host, pods where the agents have leased subnets.

The topology comes from ``plan`` and ``topology``, the namespaces from ``sandbox``. What the lab must remember between two
commands lies in the sandbox's private /run/lab and so ends with it:

    /run/lab/etcd/            etcd's data                     /run/lab/etcd.pid
    /run/lab/host1/           state/, run/, subnet.env        /run/lab/host1/agent.pid, /run/lab/host1/pods (subnet, MTU)
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path

import flanpy
from flanpy.config.network import parse_network_config
from flanpy.errors import ConfigError, LabError, UsageError
from flanpy.lab import topology, topology6
from flanpy.lab.plan import UPLINK, Plan, Segment, plan_lab, plan_segment
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox
from flanpy.model import DEFAULT_PREFIX
from flanpy.stores.server import ALONE

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
TAIL_LINES = 15
ETCD_PORT = 2379
IMPORT_PATH = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(flanpy.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
}
"""Processes of the lab run the code that started them, installed or not."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class HostLease:
    """What subnet.env of a host says."""

    subnet: IPv4Network
    mtu_bytes: int
    subnet6: IPv6Network | None = None


def has_ipv6(network_config: str) -> bool:
    """Whether a network config enables IPv6; one that agents will refuse does not. UsageError without IPv4, which pods of a lab have."""
    try:
        config = parse_network_config(network_config)
    except ConfigError:
        return False
    if not config.enable_ipv4:
        raise UsageError("--network-config: pods of a lab have IPv4 addresses, with or without IPv6; EnableIPv4 has to be true")
    return config.enable_ipv6


class Lab:
    """A lab in a living sandbox; made by ``build``, or found again with the same arguments."""

    def __init__(self, spec: LabSpec, sandbox: Sandbox, logs: Path, patience: float = 1.0) -> None:
        """``patience`` multiplies all time limits: an emulated machine is many times slower than others."""
        self.spec = spec
        self.sandbox = sandbox
        self.logs = logs
        self._ready_s, self._stop_s = READY_TIMEOUT_S * patience, STOP_TIMEOUT_S * patience
        self.plan: Plan = plan_lab(spec.hosts, mode=spec.mode, mtu_bytes=spec.mtu_bytes)

    # -------------------------------------------------------------------------------------------- start

    def build(self, progress: Progress = lambda _: None) -> None:
        """Build everything and wait until every pod has its address."""
        both = has_ipv6(self.spec.network_config)
        progress(f"{self.spec.hosts} {'host' if self.spec.hosts == 1 else 'hosts'} on one underlay")
        self.sandbox.script(topology.underlay_script(self.plan))
        if both:
            self.sandbox.script(topology6.underlay_script(self.plan))
        progress("etcd")
        self.start_etcd()
        self.put_network_config(self.spec.network_config)
        names = [host.name for host in self.plan.hosts]
        progress("an agent on every host")
        self.start_agents(names)
        progress("pods")
        self.attach_pods()
        self._write_hosts_file()

    @property
    def etcd_url(self) -> str:
        """Where etcd answers, from every host."""
        return f"http://{self.plan.services_address}:{ETCD_PORT}"

    def start_etcd(self) -> None:
        """Start etcd, with the data that an earlier one of this lab has left."""
        peer = "http://127.0.0.1:2380"
        argv = ["etcd", "--name=lab", "--data-dir=/run/lab/etcd", "--logger=zap", "--log-outputs=stderr", *ALONE]
        argv += [f"--listen-client-urls={self.etcd_url}", f"--advertise-client-urls={self.etcd_url}"]
        argv += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=lab={peer}"]
        pid = self.sandbox.start(None, argv, self.logs / "etcd.log")
        self.sandbox.path("/run/lab/etcd.pid").write_text(str(pid))

    def start_etcd_again(self) -> None:
        """Start etcd after it has ended, and wait until it takes connections."""
        if self.etcd_pid() is not None:
            raise LabError("etcd runs already")
        self.start_etcd()
        deadline = time.monotonic() + self._ready_s
        while not self._etcd_listens():
            if self.etcd_pid() is None or time.monotonic() > deadline:
                raise LabError(f"etcd does not listen at {self.etcd_url}; {self.log_tail('etcd')}")
            time.sleep(0.02)

    def _etcd_listens(self) -> bool:
        """Whether a socket of the sandbox's own network listens (state 0A of proc_net_tcp.txt) on etcd's port."""
        sockets = [line.split()[1:4] for line in Path(f"/proc/{self.sandbox.pid}/net/tcp").read_text().splitlines()[1:]]
        return any(local.endswith(f":{ETCD_PORT:04X}") and state == "0A" for local, _, state in sockets)

    def put_network_config(self, text: str) -> None:
        """Write the cluster's network config once etcd answers."""
        script = str(Path(__file__).with_name("etcd_put.py"))
        argv = [sys.executable, "-I", "-S", script, self.etcd_url, f"{DEFAULT_PREFIX}/config", text, f"{self._ready_s:g}"]
        try:
            self.sandbox.run(None, argv, timeout_s=self._ready_s + 10)
        except LabError as error:
            raise LabError(f"{error}\n{self.log_tail('etcd')}") from error

    def start_agents(self, hosts: Iterable[str]) -> None:
        """Start the agents of these hosts and wait until each has written its subnet.env."""
        before = {host: self._start_agent(host) for host in hosts}
        deadline = time.monotonic() + self._ready_s
        for host, mark in before.items():
            while self._mark(host) in (mark, None):
                if self.agent_pid(host) is None:
                    raise LabError(f"the agent of {host} has ended; {self.log_tail(host)}")
                if time.monotonic() > deadline:
                    raise LabError(f"the agent of {host} is not ready after {self._ready_s:g} s; {self.log_tail(host)}")
                time.sleep(0.02)

    def _start_agent(self, host: str) -> tuple[int, int] | None:
        """Start one agent; returns the identity of the subnet.env that an earlier one has left."""
        self.plan.host(host)
        if self.agent_pid(host) is not None:
            raise LabError(f"the agent of {host} runs already")
        self.host_path(host).mkdir(exist_ok=True)
        mark = self._mark(host)
        argv = [sys.executable, "-m", "flanpy", "agent", "--iface", self.underlay(host), "--datapath", self.spec.datapath]
        pid = self.sandbox.start(
            host, [*argv, *self.spec.agent_flags], self.log_path(host), {**self.agent_settings(host), **IMPORT_PATH}
        )
        self.host_path(host, "agent.pid").write_text(str(pid))
        return mark

    def underlay(self, host: str) -> str:
        """What the agent of a host is told to use as its underlay."""
        self.plan.host(host)
        return UPLINK

    def agent_settings(self, host: str) -> dict[str, str]:
        """The agent's options as environment variables; `flanpy` commands that run on the host find its agent by them too."""
        inside = f"/run/lab/{host}"
        return {
            "FLANPY_ETCD_ENDPOINTS": self.etcd_url,
            "FLANPY_SUBNET_FILE": f"{inside}/subnet.env",
            "FLANPY_STATE_DIR": f"{inside}/state",
            "FLANPY_RUN_DIR": f"{inside}/run",
            "FLANPY_CNI_DATA_DIR": f"{inside}/cni",
        }

    def _mark(self, host: str) -> tuple[int, int] | None:
        try:
            status = self.host_path(host, "subnet.env").stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    # -------------------------------------------------------------------------------------------- pods

    def lease(self, host: str) -> HostLease | None:
        """The subnet and MTU that the agent of a host has written; None before it has."""
        try:
            text = self.host_path(host, "subnet.env").read_text()
        except FileNotFoundError:
            return None
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        address6 = values.get("FLANNEL_IPV6_SUBNET")
        subnet6 = IPv6Interface(address6).network if address6 else None
        return HostLease(IPv4Interface(values["FLANNEL_SUBNET"]).network, int(values["FLANNEL_MTU"]), subnet6)

    def attach_pods(self) -> None:
        """Give every host its bridge and its pods, by the leases that the agents have now."""
        leases = {host.name: self.lease(host.name) for host in self.plan.hosts}
        missing = [host for host, lease in leases.items() if lease is None]
        if missing:
            raise LabError(f"{', '.join(missing)}: no subnet.env yet, so there are no addresses for pods")
        subnets = {host: lease.subnet for host, lease in leases.items() if lease is not None}
        mtu_bytes = min(lease.mtu_bytes for lease in leases.values() if lease is not None)
        segment = plan_segment(subnets, self.spec.pods, mtu_bytes=mtu_bytes)
        self.sandbox.script(topology.pods_script(segment))
        subnets6 = {host: lease.subnet6 for host, lease in leases.items() if lease is not None and lease.subnet6 is not None}
        if subnets6:
            self.sandbox.script(topology6.pods_script(segment, subnets6))
        for host, subnet in subnets.items():
            self.host_path(host, "pods").write_text(f"{subnet} {mtu_bytes}\n")

    def segment(self) -> Segment:
        """The pods as they were attached."""
        subnets, mtu_bytes = {}, self.spec.mtu_bytes
        for host in self.plan.hosts:
            try:
                subnet, mtu = self.host_path(host.name, "pods").read_text().split()
            except FileNotFoundError:
                continue
            subnets[host.name], mtu_bytes = IPv4Network(subnet), int(mtu)
        return plan_segment(subnets, self.spec.pods, mtu_bytes=mtu_bytes)

    def _write_hosts_file(self) -> None:
        """Names of hosts and pods for everything that runs in the lab (its own /etc/hosts)."""
        lines = [f"{host.address} {host.name}" for host in self.plan.hosts]
        lines += [f"{pod.address.ip} {pod.name}" for pod in self.segment().pods]
        for pod in self.segment().pods:
            lease = self.lease(pod.host)
            if lease is not None and lease.subnet6 is not None:
                lines.append(f"{topology6.pod_address(pod, lease.subnet6)} {pod.name}")
        with self.sandbox.path("/run/lab/hosts").open("a") as file:
            file.write("\n".join(["", f"{self.plan.services_address} etcd", *lines, ""]))

    # -------------------------------------------------------------------------------------------- processes

    def host_path(self, host: str, *parts: str) -> Path:
        """A file of a host, as it can be opened from outside."""
        return self.sandbox.path(Path("/run/lab", host, *parts))

    def agent_pid(self, host: str) -> int | None:
        """The pid (inside the lab) of a host's agent; None when it does not run."""
        return self._living(self.host_path(host, "agent.pid"))

    def etcd_pid(self) -> int | None:
        """The pid (inside the lab) of etcd; None when it does not run."""
        return self._living(self.sandbox.path("/run/lab/etcd.pid"))

    def _living(self, pid_file: Path) -> int | None:
        try:
            pid = int(pid_file.read_text())
        except FileNotFoundError:
            return None
        return pid if self.sandbox.process_alive(pid) else None

    def signal_agent(self, host: str, number: int) -> None:
        """Send a signal to a host's agent."""
        self._signal(f"the agent of {host}", self.agent_pid(host), number)

    def stop_agent(self, host: str, number: int = signal.SIGTERM) -> None:
        """End a host's agent (SIGKILL: without a farewell) and wait until it has gone."""
        self._stop(f"the agent of {host}", self.agent_pid(host), number)

    def stop_etcd(self, number: int = signal.SIGTERM) -> None:
        """End etcd and wait until it has gone; ``start_etcd`` starts it on the same data."""
        self._stop("etcd", self.etcd_pid(), number)

    def _signal(self, what: str, pid: int | None, number: int) -> int:
        if pid is None:
            raise LabError(f"{what} does not run")
        self.sandbox.signal(pid, number)
        return pid

    def _stop(self, what: str, pid: int | None, number: int) -> None:
        pid = self._signal(what, pid, number)
        deadline = time.monotonic() + self._stop_s
        while self.sandbox.process_alive(pid):
            if time.monotonic() > deadline:
                raise LabError(f"{what} still runs {self._stop_s:g} s after signal {number}")
            time.sleep(0.01)

    def log_path(self, name: str) -> Path:
        """The log of a host's agent, or of ``etcd``."""
        return self.logs / f"{name}.log"

    def log_tail(self, name: str) -> str:
        """Where a log is and its last lines, for an error message."""
        path = self.log_path(name)
        lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:] if path.exists() else []
        return "\n".join([f"its log is {path} and ends:", *(f"  {line}" for line in lines or ["(empty)"])])

    # -------------------------------------------------------------------------------------------- the underlay

    def cut(self, host: str) -> None:
        """Pull a host's cable: no carrier, no etcd, no peers."""
        self.sandbox.script(topology.cut_script(self.plan.host(host)))

    def join(self, host: str) -> None:
        """Plug it in again."""
        self.sandbox.script(topology.join_script(self.plan.host(host)))

    def impair(self, host: str, *, loss_percent: float | None = None, rate_mbit: float | None = None) -> None:
        """Lose packets or limit the rate of a host's uplink, in both directions; 0 ends it, None leaves it as it is."""
        planned = self.plan.host(host)
        if loss_percent is not None:
            if not 0 <= loss_percent <= 100:
                raise UsageError(f"--loss {loss_percent:g}: must be 0 to 100 percent")
            self.sandbox.script(topology.loss_script(planned, loss_percent))
        if rate_mbit is not None:
            if not 0 <= rate_mbit <= 100_000:
                raise UsageError(f"--rate {rate_mbit:g}: must be 0 (no limit) to 100000 Mbit/s")
            self.sandbox.script(topology.rate_script(planned, rate_mbit))
