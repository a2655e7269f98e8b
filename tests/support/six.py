"""Clusters of two hosts with IPv6 inside, outside, or both: agents, etcd and a pod on each host.

    etcd 172.31.9.254 fd31:9::254
──── underlay ──┬─────────────────────────────────────┬────
    host1 172.31.9.1 and/or fd31:9::1      host2 172.31.9.2 and/or fd31:9::2
      cni6  first addresses of its subnets   cni6
      host1-pod1  second addresses           host2-pod1
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

from flanpy.core.subnet_env import SubnetEnv, parse_subnet_env
from flanpy.lab import topology
from flanpy.lab.cluster import IMPORT_PATH, Lab
from flanpy.lab.plan import UPLINK
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox
from flanpy.model import Network
from tests.support.clusters import QUIET, Cluster

ASK = """
import json, sys
from pathlib import Path
from flanpy.agent.control import ask
print(json.dumps(ask(Path(sys.argv[1]), sys.argv[2])))
"""
IPV6_ON = "net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0"
ROUTER = f"{IPV6_ON} net.ipv6.conf.all.forwarding=1"
HOSTS = ("host1", "host2")


class SixLab(Lab):
    """A lab whose etcd is reached by the family that the underlay has."""

    outer: str = "4"
    by_address6: bool = False
    """Name the underlay by its IPv6 address."""

    def underlay(self, host: str) -> str:
        """What the agent of a host is told to use as its underlay."""
        return f"fd31:9::{HOSTS.index(host) + 1}" if self.by_address6 else super().underlay(host)

    @property
    def etcd_url(self) -> str:
        """Where etcd answers, from every host."""
        return "http://[fd31:9::254]:2379" if self.outer == "6" else super().etcd_url


class Six(Cluster):
    """A cluster with what tests of IPv6 ask of it."""

    def ask(self, host: str, question: str) -> dict[str, Any]:
        """The answer of a host's agent to a question of the control socket."""
        argv = [sys.executable, "-c", ASK, self.lab.agent_settings(host)["FLANPY_RUN_DIR"], question]
        answer: dict[str, Any] = json.loads(self.sandbox.run(host, argv, env=IMPORT_PATH).stdout)
        return answer

    def env(self, host: str) -> SubnetEnv:
        """What a host's subnet.env says."""
        return parse_subnet_env(self.lab.host_path(host, "subnet.env").read_text())

    def subnets(self, host: str) -> list[Network]:
        """The subnets of a host, IPv4 first."""
        held = self.env(host).subnets
        return [subnet for subnet in (held.ipv4, held.ipv6) if subnet is not None]

    def subnet6(self, host: str) -> IPv6Network:
        """The IPv6 subnet of a host."""
        subnet = self.env(host).subnets.ipv6
        assert subnet is not None
        return subnet

    def pods(self, name: str) -> list[str]:
        """The addresses of a pod, IPv4 first."""
        return [str(subnet[2]) for subnet in self.subnets(name.removesuffix("-pod1"))]

    def answers(self, source: str, address: str, *flags: str) -> bool:
        """Whether one ping is answered."""
        family = "-6" if ":" in address else "-4"
        return self.sandbox.run(source, ["ping", family, "-n", "-c1", "-W1", *flags, address], check=False).returncode == 0

    def attach(self) -> None:
        """A bridge and a pod on each host."""
        for host in HOSTS:
            subnets, mtu, pod = self.subnets(host), self.env(host).mtu_bytes, f"{host}-pod1"
            inside, outside = [], []
            for subnet in subnets:
                flags = "nodad" if subnet.version == 6 else ""
                outside.append(f"address add {subnet[1]}/{subnet.prefixlen} dev cni6 {flags}")
                inside.append(f"address add {subnet[2]}/{subnet.prefixlen} dev eth0 {flags}")
                inside.append(f"-{subnet.version} route add default via {subnet[1]}")
            peer = f"peer name eth0 netns {pod} mtu {mtu}"
            lines = [
                f"ip netns add {pod}",
                f"ip netns exec {pod} sysctl -qw {IPV6_ON}",
                f"ip -n {host} link add cni6 mtu {mtu} type bridge",
                *(f"ip -n {host} {line}" for line in outside),
                f"ip -n {host} link set cni6 up",
                f"ip -n {host} link add {pod} mtu {mtu} type veth {peer}",
                f"ip -n {host} link set {pod} master cni6 up",
                f"ip -n {pod} link set lo up",
                f"ip -n {pod} link set eth0 up",
                *(f"ip -n {pod} {line}" for line in inside),
            ]
            self.sandbox.script("\n".join(lines) + "\n")


def network(backend: str, inner: str) -> str:
    """The network config with the families in ``inner``: "4", "6" or "46"."""
    config: dict[str, object] = {"Backend": {"Type": backend}}
    if "4" in inner:
        config["Network"] = "10.244.0.0/16"
    else:
        config["EnableIPv4"] = False
    if "6" in inner:
        config |= {"EnableIPv6": True, "IPv6Network": "fd05::/48"}
    return json.dumps(config)


@contextmanager
def six(
    logs: Path,
    backend: str,
    inner: str,
    outer: str,
    *,
    by_address6: bool = False,
    datapath: str = "userspace",
    flags: tuple[str, ...] = (),
) -> Iterator[Six]:
    """Two hosts with these families inside and on the underlay ("4", "6" or "46"), agents and pods."""
    with Sandbox.create() as sandbox:
        lab = SixLab(
            LabSpec("test", 2, 1, network(backend, inner), datapath=datapath, agent_flags=(*QUIET, *flags)), sandbox, logs
        )
        lab.outer, lab.by_address6 = outer, by_address6
        sandbox.script(topology.underlay_script(lab.plan))
        if "6" in outer:
            lines = ["sysctl -qw net.ipv6.conf.all.disable_ipv6=0", "ip addr add fd31:9::254/64 dev underlay nodad"]
            sandbox.script("\n".join(lines) + "\n")
        for number, host in enumerate(HOSTS, 1):
            lines = [f"ip netns exec {host} sysctl -qw {ROUTER}"]
            if "6" in outer:
                lines.append(f"ip -n {host} addr add fd31:9::{number}/64 dev {UPLINK} nodad")
            if "4" not in outer:
                lines.append(f"ip -n {host} -4 addr flush dev {UPLINK}")
            sandbox.script("\n".join(lines) + "\n")
        lab.start_etcd()
        lab.put_network_config(lab.spec.network_config)
        lab.start_agents(HOSTS)
        cluster = Six(lab)
        cluster.attach()
        yield cluster
