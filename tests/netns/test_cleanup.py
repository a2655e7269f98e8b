"""``flanpy cleanup`` on a host that an agent has left: all of ours goes, what others have stays as it is.

etcd 172.31.9.254 ──── underlay ──── host1 172.31.9.1 (eth0), with a bridge, a route, an nft table and a VXLAN device of others
"""

import json
import signal
import sys
from pathlib import Path

import pytest

from flanpy.lab.cluster import IMPORT_PATH
from tests.support.clusters import Agent, Cluster, bare, eventually

VXLAN = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
UDP = '{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}'
PEER = '{"PublicIP":"172.31.9.9","PublicIPv6":null%s}'
FOREIGN = """
ip link add name foreign type bridge
ip link set foreign up
ip link add name flannel.9 type bridge
ip link add name vxlan7 type vxlan id 7 dstport 4790 dev eth0
ip route add 198.51.100.0/24 via 172.31.9.254 proto static
nft add table inet foreign
iptables -N FOREIGN
"""


DEAD = """
import ctypes, socket, subprocess
from flanpy.datapath.ebpf_pins import ROOT, Pins, remember_devices
assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
subprocess.run(["ip", "link", "add", "gone", "type", "veth"], check=True)
pins = Pins(ROOT / "flannel0@99999999")
pins.make()
remember_devices(pins, [socket.if_nametoindex("gone")])
"""
"""What the ebpf datapath leaves by clsact: a directory whose network namespace ends with the process."""


def seen(host: Cluster) -> str:
    """Devices, routes, filters and rules of the host, without counters and device numbers that the kernel picks."""
    run = host.sandbox.run
    found = json.loads(run("host1", ["ip", "-j", "-d", "link"]).stdout)
    devices = [(link["ifname"], link.get("linkinfo", {}).get("info_kind")) for link in found]
    ruleset = run("host1", ["nft", "-s", "list", "ruleset"]).stdout
    routes = run("host1", ["ip", "route"]).stdout.replace(" linkdown", "")
    return f"{devices}\n{routes}\n{_without_empty_chains(ruleset)}"


def _without_empty_chains(ruleset: str) -> str:
    """iptables makes its tables and built-in chains when it is first asked, and never takes them away."""
    return "\n".join(line for line in ruleset.splitlines() if "foreign" in line.lower() or "flanpy" in line.lower())


def cleanup(host: Cluster, *flags: str, check: bool = True) -> str:
    argv = [sys.executable, "-m", "flanpy", "cleanup", "--run-dir=/run/lab/a/run", *flags]
    done = host.sandbox.run("host1", argv, env=IMPORT_PATH, check=check)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("network", "data", "flags"),
    [
        (VXLAN, ',"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}', []),
        (UDP, "", ["--datapath=ebpf"]),
    ],
    ids=["vxlan", "ebpf"],
)
def test_cleanup_leaves_the_host_as_it_was_before_the_agent(tmp_path: Path, network: str, data: str, flags: list[str]) -> None:
    with bare(tmp_path, network=network) as host:
        for line in FOREIGN.strip().splitlines():
            host.sandbox.run("host1", line.split())
        host.put("subnets/10.244.200.0-24", PEER % data)
        before = seen(host)
        with Agent(host, "--ip-masq", *flags) as agent:
            agent.says("ready: subnet")
            assert "another flanpy agent runs here" in cleanup(host, check=False)
            assert agent.stop() == 0
            assert "stay (flanpy cleanup removes them)" in agent.log
        left = seen(host)
        assert left != before

        if flags:
            host.sandbox.run("host1", [sys.executable, "-c", DEAD], env=IMPORT_PATH)
            eventually(lambda: "99999999, of a namespace that is gone" in cleanup(host, "--dry-run"), 10, "the namespace is gone")
        listed = cleanup(host, "--dry-run")
        assert "would remove" in listed
        assert seen(host) == left
        items = json.loads(cleanup(host, "--output=json"))["items"]
        assert {"device", "rules", "file"} <= {item["sort"] for item in items}
        assert seen(host) == before
        assert list(host.sandbox.path("/run/lab/a/run").iterdir()) == []
        assert host.sandbox.path("/run/lab/a/state/node-id").exists()
        assert cleanup(host) == "nothing of flanpy is here\n"
        assert "99999999" not in host.sandbox.run("host1", ["ls", "/sys/fs/bpf/flanpy"], check=False).stdout


LEFT = {
    "udp-userspace": ("udp", ["--datapath=userspace"]),
    "udp-ebpf": ("udp", ["--datapath=ebpf"]),
    "vxlan": ("vxlan", []),
    "host-gw": ("host-gw", []),
}


@pytest.mark.parametrize(("backend", "flags"), LEFT.values(), ids=LEFT)
def test_cleanup_after_a_killed_agent_leaves_nothing_of_any_backend(tmp_path: Path, backend: str, flags: list[str]) -> None:
    """And with --state not even what the node knows itself by; a second agent is a new node."""
    data = ',"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}' if backend == "vxlan" else ""
    kind = "" if backend == "udp" else f',"BackendType":"{backend}"{data}'
    with bare(tmp_path, network=f'{{"Network": "10.244.0.0/16", "Backend": {{"Type": "{backend}"}}}}') as host:
        host.put("subnets/10.244.200.0-24", PEER % kind)
        before = seen(host)
        with Agent(host, "--ip-masq", "--ip-blackhole-route", *flags) as agent:
            agent.says("ready: subnet", 30)
            agent.stop(signal.SIGKILL)
        listed = json.loads(cleanup(host, "--dry-run", "--output=json"))
        assert {"rules", "route", "file"} <= {item["sort"] for item in listed["items"]}
        environment = {**IMPORT_PATH, "FLANPY_SUBNET_FILE": str(agent.files / "subnet.env")}
        words = ["cleanup", "--run-dir=/run/lab/a/run", "--state", "--state-dir=/run/lab/a/state"]
        host.sandbox.run("host1", [sys.executable, "-m", "flanpy", *words], env=environment)
        eventually(lambda: seen(host) == before, 5, "the host is as it was")
        assert host.sandbox.run("host1", ["find", "/run/lab/a", "-not", "-type", "d"]).stdout == ""
