"""Three nodes whose agents keep the pod registry, and what tests of pods do on them."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.clusters import NETWORK, Cluster
from tests.support.cni import Answer, Runtime, cni_cluster

ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}"
PROBE_S = 0.005


@dataclass(frozen=True, slots=True)
class Nodes:
    """Hosts with their runtimes; hosts are counted from 1."""

    cluster: Cluster
    runtimes: list[Runtime]

    def command(self, host: int, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``flanpy …`` on a host, as its operator would."""
        return self.cluster.flanpy(f"host{host}", *words, check=False)

    def pods(self, host: int) -> dict[str, Any]:
        """What ``flanpy pods`` says on a host."""
        answer: dict[str, Any] = json.loads(self.command(host, "pods", "--output", "json").stdout)
        return answer

    def ways(self, host: int) -> dict[str, tuple[str, str]]:
        """Address -> (pod, route), as a host's agent has them."""
        return {row["address"]: (f"{row['namespace']}/{row['pod']}", row["route"]) for row in self.pods(host)["pods"]}

    def attach(self, host: int, pod: str, name: str, *ips: str) -> Answer:
        """A namespace ``pod``, attached as the pod shop/NAME; with addresses if some are asked for."""
        runtime = self.runtimes[host - 1]
        runtime.new_namespace(pod)
        keys = {"runtimeConfig": {"ips": list(ips)}} if ips else {}
        return runtime.call("ADD", pod, config=runtime.config(**keys), CNI_ARGS=ARGS.format(name))

    def detach(self, host: int, pod: str) -> None:
        """DEL, and the namespace goes."""
        assert self.runtimes[host - 1].call("DEL", pod).status == 0
        self.cluster.sandbox.script(f"ip netns del {pod}")

    def answered(self, source: str, address: str, count: int = 3) -> int:
        """How many of ``count`` pings from a pod were answered."""
        done = self.cluster.sandbox.run(source, ["ping", "-n", "-q", f"-c{count}", "-i0.05", "-W1", address], check=False)
        return int(done.stdout.split(" received")[0].rsplit(" ", 1)[-1])

    def probes(self, source: str, address: str) -> Probes:
        """Begin to ping from a pod every 5 ms."""
        argv = ["ping", "-n", "-q", f"-i{PROBE_S}", "-W1", address]
        return Probes(self.cluster.sandbox.popen(source, argv, stdout=subprocess.PIPE))


@dataclass(frozen=True, slots=True)
class Probes:
    """Pings on their way."""

    process: subprocess.Popen[str]

    def lost_ms(self) -> float:
        """Stop, and say for how long answers were missing: the lost probes, each for the time from one to the next."""
        self.process.send_signal(signal.SIGINT)
        text, _ = self.process.communicate(timeout=60)
        words = text.replace(",", " ").split()
        sent, received = int(words[words.index("transmitted") - 2]), int(words[words.index("received") - 1])
        assert received > 0, text
        return (sent - received) * float(words[words.index("time") + 1].removesuffix("ms")) / sent

    def stop(self) -> None:
        """End what still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def three_nodes(logs: Path, network: str = NETWORK, datapath: str = "userspace", *, ipv6: bool = False) -> Iterator[Nodes]:
    """Hosts 1 to 3 with real agents and no pods yet."""
    settings = {"network": network, "datapath": datapath, "ipv6": ipv6}
    with cni_cluster(logs, hosts=3, flags=("--pod-registry",), **settings) as (cluster, runtimes):  # type: ignore[arg-type]
        yield Nodes(cluster, runtimes)
