"""A lab of hosts under traffic with random faults, again and again, and the invariants at the end.

`make soak MINUTES=60` runs it for an hour; the suite for as long as FLANPY_SOAK_SECONDS says (two minutes by default). The seed is printed:
FLANPY_SOAK_SEED=SEED plays the same faults in the same order again.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flanpy.datapath.process_handle import is_somebody
from flanpy.datapath.process_launch import SOCKET_NAME
from tests.support.clusters import Cluster, cluster, eventually
from tests.support.probes import Probes, probes
from tests.support.processes import Use, use_of

SECONDS = float(os.environ.get("FLANPY_SOAK_SECONDS", "120"))
HOSTS = tuple(f"host{number}" for number in range(1, 6))
CALM_S = 30.0
"""How long all may take to be well again when the faults are over."""


@pytest.fixture
def seed() -> int:
    """All that is left to chance follows from it."""
    return int(os.environ.get("FLANPY_SOAK_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.fixture
def five(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Iterator[Cluster]:
    """Five hosts with the one datapath or the other, by the seed."""
    kind = ("userspace", "ebpf")[seed % 2]
    with cluster(
        tmp_path_factory.mktemp("logs"), hosts=len(HOSTS), pods=1, datapath=kind, agent_flags=("--etcd-loss-grace=5",)
    ) as running:
        yield running


@dataclass
class Soak:
    """The faults, each a method of this class that leaves nothing broken behind; what was done is kept in ``done``."""

    lab: Cluster
    chance: random.Random
    done: list[str] = field(default_factory=list)

    def on(self, host: str, words: str) -> None:
        """Run shell words on a host."""
        self.lab.sandbox.run(host, ["sh", "-euc", words])

    def pause(self, least_s: float = 0.2, most_s: float = 2.0) -> None:
        """Some time for the fault to have its effects."""
        time.sleep(self.chance.uniform(least_s, most_s))  # the length of the fault

    def agent_is_killed(self, host: str) -> None:
        """Row 6."""
        self.lab.lab.stop_agent(host, signal.SIGKILL)
        self.pause()
        self.lab.lab.start_agents([host])

    def agent_is_restarted(self, host: str) -> None:
        """Row 8."""
        self.lab.lab.stop_agent(host)
        self.pause()
        self.lab.lab.start_agents([host])

    def agent_hangs(self, host: str) -> None:
        """Row 8."""
        self.lab.lab.signal_agent(host, signal.SIGSTOP)
        self.pause()
        self.lab.lab.signal_agent(host, signal.SIGCONT)

    def datapath_process_is_killed(self, host: str) -> None:
        """Row 7."""
        os.kill(process_of(self.lab, host), signal.SIGKILL)

    def datapath_process_hangs(self, host: str) -> None:
        """Row 7; the agent may have replaced it before it goes on."""
        pid = process_of(self.lab, host)
        os.kill(pid, signal.SIGSTOP)
        self.pause()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def etcd_is_killed(self, host: str) -> None:
        """Row 1."""
        self.lab.lab.stop_etcd(signal.SIGKILL)
        self.pause()
        self.lab.lab.start_etcd()
        eventually(self.lab.keys, CALM_S, "etcd answers")

    def etcd_hangs(self, host: str) -> None:
        """Row 2."""
        pid = self.lab.lab.etcd_pid()
        assert pid is not None
        self.lab.sandbox.signal(pid, signal.SIGSTOP)
        self.pause()
        self.lab.sandbox.signal(pid, signal.SIGCONT)

    def key_is_deleted(self, host: str) -> None:
        """Row 10."""
        self.lab.delete(self.lab.key(host))

    def device_is_deleted(self, host: str) -> None:
        """Row 16."""
        self.on(host, "ip link del flannel0")

    def routes_are_flushed(self, host: str) -> None:
        """Row 17."""
        self.on(host, "ip route flush proto 102")

    def rules_are_flushed(self, host: str) -> None:
        """Row 17."""
        self.on(host, "iptables -F")

    def cable_is_pulled(self, host: str) -> None:
        """Row 11."""
        self.lab.lab.cut(host)
        self.pause()
        self.lab.lab.join(host)

    def link_goes_down(self, host: str) -> None:
        """Row 29."""
        self.on(host, "ip link set eth0 down")
        self.pause()
        self.on(host, "ip link set eth0 up; ip route replace default via 172.31.9.254")

    def packets_are_lost(self, host: str) -> None:
        """Row 25."""
        self.lab.lab.impair(host, loss_percent=30)
        self.pause()
        self.lab.lab.impair(host, loss_percent=0)

    def leases_of_others_come_and_go(self, host: str) -> None:
        """Rows 20 and 23."""
        taken = set(self.lab.keys())
        free = [f"subnets/10.244.{third}.0-24" for third in range(1, 255) if f"subnets/10.244.{third}.0-24" not in taken]
        keys = self.chance.sample(free, 20)
        for number, key in enumerate(keys):
            self.lab.put(key, f'{{"PublicIP":"192.0.2.{number + 1}","PublicIPv6":null}}' if number % 3 else "{")
        self.pause()
        for key in keys:
            self.lab.delete(key)

    FAULTS = (
        agent_is_killed,
        agent_is_restarted,
        agent_hangs,
        datapath_process_is_killed,
        datapath_process_hangs,
        etcd_is_killed,
        etcd_hangs,
        key_is_deleted,
        device_is_deleted,
        routes_are_flushed,
        rules_are_flushed,
        cable_is_pulled,
        link_goes_down,
        packets_are_lost,
        leases_of_others_come_and_go,
    )

    def turn(self) -> None:
        """One fault of the list on one host, both by chance."""
        fault, host = self.chance.choice(self.FAULTS), self.chance.choice(HOSTS)
        self.done.append(f"{fault.__name__} {host}")
        print(f"{time.strftime('%H:%M:%S')} {self.done[-1]}", flush=True)
        fault(self, host)


# ------------------------------------------------------------------------------------------------ invariants


def is_whole(running: Cluster) -> bool:
    """Kernel = etcd = datapath table on every host, no double lease, nobody has a problem. AssertionError says what is not so."""
    keys = {key.removeprefix("subnets/").replace("-", "/") for key in running.keys()}  # noqa: SIM118 - a method of ours
    subnets = {host: running.subnet(host) for host in HOSTS}
    assert set(subnets.values()) == keys, f"etcd has {sorted(keys)}, the hosts say {subnets}"
    assert len(keys) == len(HOSTS), f"one lease each: {subnets}"
    addresses = [json.loads(running.get(running.key(host))["value"])["PublicIP"] for host in HOSTS]  # type: ignore[index]
    assert addresses == [str(running.lab.plan.host(host).address) for host in HOSTS]
    for host in HOSTS:
        status, table = running.status(host), ask_routes(running, host)
        assert status["problems"] == [], f"{host}: {status['problems']}"
        assert {entry["prefix"] for entry in table["table"]} == keys - {subnets[host]}, f"{host}: {table['table']}"
        hops = {entry["prefix"]: entry["hop"] for entry in table["table"]}
        assert hops == {subnets[o]: f"{running.lab.plan.host(o).address}:8285" for o in HOSTS if o != host}, f"{host}: {hops}"
        assert {route["state"] for route in table["kernel"]} == {"ok"}, f"{host}: {table['kernel']}"
        assert status["datapath"]["table_generation"] == table["table_generation"]
        assert any(line.startswith("10.244.0.0/16 dev flannel0") for line in running.routes(host))
    assert all(IPv4Network(subnet).prefixlen == 24 for subnet in subnets.values())
    return True


def ask_routes(running: Cluster, host: str) -> dict[str, object]:
    """The datapath's table and the kernel's routes, as `flanpy routes` has them."""
    return running.ask(host, "routes")


def process_of(running: Cluster, host: str) -> int:
    """The datapath process of a host, our numbering; one that has been killed is replaced in a moment."""
    path = running.lab.host_path(host, "run", SOCKET_NAME)
    eventually(lambda: is_somebody(path), CALM_S, f"{host} has a datapath process")
    return is_somebody(path) or process_of(running, host)


@dataclass
class Lives:
    """What every agent and datapath process uses over its life, looked at when all is well; the first look is the measure.

    The first comes after a look that has been left out, when there was one: what is imported and allocated once is there by then.
    """

    running: Cluster
    looks: dict[tuple[str, int], list[Use]] = field(default_factory=dict)

    def look(self) -> None:
        """Take down what everybody uses now."""
        for host in HOSTS:
            agent = self.running.lab.agent_pid(host)
            assert agent is not None, f"the agent of {host} does not run"
            self._take(f"agent of {host}", agent, self.running.sandbox.path(f"/proc/{agent}"))
            process = process_of(self.running, host)
            self._take(f"datapath of {host}", process, Path(f"/proc/{process}"))

    def _take(self, name: str, pid: int, proc: Path) -> None:
        self.looks.setdefault((name, pid), []).append(use_of(proc))

    def flat(self) -> list[str]:
        """Descriptors, threads and memory have not grown in any life; in words, for those that were looked at twice or more."""
        told = []
        for (name, pid), looks in self.looks.items():
            warm = looks[1:] if len(looks) > 2 else looks
            if len(warm) > 1:
                told.append(flat(f"{name} (process {pid})", warm[0], warm[-1]))
        return told


def flat(name: str, before: Use, after: Use) -> str:
    """Descriptors, threads and memory have not grown; in words."""
    assert after.descriptors <= before.descriptors + 4, f"{name}: {before.descriptors} -> {after.descriptors} descriptors"
    assert after.threads <= before.threads + 3, f"{name}: {before.threads} -> {after.threads} threads"
    grown_mb = (after.rss_bytes - before.rss_bytes) / 1e6
    assert grown_mb < 20, f"{name}: {grown_mb:.1f} MB more"
    return (
        f"{name} {after.descriptors - before.descriptors:+d} fds {after.threads - before.threads:+d} threads {grown_mb:+.1f} MB"
    )


@pytest.mark.parametrize("grown", [{"descriptors": 15}, {"threads": 14}, {"rss_bytes": 31_000_000}])
def test_a_life_that_grows_is_noticed(grown: dict[str, int]) -> None:
    """The measure is each life's own: what another has used, or the same before it was warm, says nothing."""
    first = Use(at_s=0, cpu_s=0, rss_bytes=10_000_000, descriptors=10, threads=10)
    lives = Lives(None, {("agent", 1): [first], ("agent", 2): [replace(first, descriptors=1), first, first]})  # type: ignore[arg-type]
    assert lives.flat() == ["agent (process 2) +0 fds +0 threads +0.0 MB"]
    lives.looks["agent", 2].append(replace(first, **grown))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="agent \\(process 2\\)"):
        lives.flat()


def all_pods(running: Cluster) -> list[tuple[str, str]]:
    """A ring of links over all hosts."""
    return [(f"{host}-pod1", f"{HOSTS[(at + 1) % len(HOSTS)]}-pod1") for at, host in enumerate(HOSTS)]


def heal(running: Cluster, stream: Probes) -> None:
    """All is well again before long: the invariants hold and every link carries."""
    eventually(lambda: is_whole(running), CALM_S, "kernel = etcd = datapath table everywhere")
    stream.flow(within_s=CALM_S)


@pytest.mark.timeout(SECONDS + 240)
def test_random_faults_leave_everything_as_it_should_be(five: Cluster, seed: int, measured: Callable[[str], None]) -> None:
    """Row 30: soak: five hosts under traffic, random faults of this list one after the other.

    After every fault the agents compare the whole desired state with the actual one until both are equal.
    Passes when: kernel = etcd = datapath table at the end; no double lease; fds, threads, memory flat.
    """
    kind = five.lab.spec.datapath
    print(f"seed {seed} ({kind}): FLANPY_SOAK_SEED={seed} plays this again")
    soak = Soak(five, random.Random(seed))
    with probes(five, all_pods(five), rate_per_s=200) as stream:
        lives = Lives(five)
        lives.look()
        ends_s = time.monotonic() + SECONDS
        while time.monotonic() < ends_s:
            soak.turn()
            if len(soak.done) % 6 == 0:
                heal(five, stream)
                lives.look()
        heal(five, stream)
        lives.look()
        stream.wait(100)
    told = lives.flat()
    assert any(line.startswith("agent") for line in told), f"no agent lived long enough to be compared: {soak.done}"
    assert any(line.startswith("datapath") for line in told), f"no datapath process did: {soak.done}"
    share = stream.total.lost / stream.total.sent
    assert share < 0.7, "packets went most of the time"
    measured(
        f"{SECONDS:.0f} s, {len(soak.done)} faults: all equal at the end; {share:.1%} of the probes lost to them; "
        f"flat in {len(told)} lives of {len(lives.looks)}"
    )
    print("\n".join(told), flush=True)
