"""IPv4 and IPv6 side by side, inside and on the underlay, for the backends that the kernel carries.

    etcd 172.31.9.254
──── underlay ──┬─────────────────────────────────┬────
    host1 172.31.9.1 fd31:9::1          host2 172.31.9.2 fd31:9::2
      flannel.1, flannel-v6.1             flannel.1, flannel-v6.1
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, IPv6Network, ip_address
from pathlib import Path

from flanpy.lab import topology
from flanpy.lab.cluster import Lab
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox
from flanpy.model import FdbEntry, Neighbour, Route
from tests.support import kernel_state
from tests.support.clusters import Cluster, eventually


@contextmanager
def dual(logs: Path, backend: str) -> Iterator[Cluster]:
    """Two hosts with both families on the underlay, an etcd, and agents."""
    families = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd05::/48"}
    network = json.dumps({**families, "Backend": {"Type": backend}})
    with Sandbox.create() as sandbox:
        lab = Lab(LabSpec("test", 2, 1, network, datapath="userspace"), sandbox, logs)
        sandbox.script(topology.underlay_script(lab.plan))
        for number in (1, 2):
            words = "net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.forwarding=1"
            lines = (f"sysctl -qw {words}", f"ip addr add fd31:9::{number}/64 dev eth0 nodad")
            sandbox.run(f"host{number}", ["sh", "-euc", "; ".join(lines)])
        lab.start_etcd()
        lab.put_network_config(network)
        lab.start_agents(["host1", "host2"])
        yield Cluster(lab)


def subnet6(two: Cluster, host: str) -> IPv6Network:
    """The IPv6 subnet that stands in a host's subnet.env."""
    text = two.lab.host_path(host, "subnet.env").read_text()
    address = text.split("FLANNEL_IPV6_SUBNET=")[1].split("\n")[0]
    return IPv6Network(address, strict=False)


def value(two: Cluster, host: str) -> dict[str, object]:
    key = f"subnets/{two.subnet(host).replace('/', '-')}&{str(subnet6(two, host)).replace('/', '-')}"
    record = two.get(key)
    assert record is not None
    found: dict[str, object] = json.loads(record["value"])
    return found


def answers(two: Cluster, target: str) -> bool:
    family = f"-{ip_address(target).version}"
    return two.sandbox.run("host1", ["ping", family, "-c1", "-W1", target], check=False).returncode == 0


def test_vxlan_has_a_device_for_each_family_and_both_carry_packets(tmp_path: Path) -> None:
    with dual(tmp_path, "vxlan") as two:
        other = subnet6(two, "host2")
        said = value(two, "host2")
        assert said["PublicIPv6"] == "fd31:9::2"
        mac = said["BackendV6Data"]["VtepMAC"]  # type: ignore[index]
        base = other.network_address
        eventually(lambda: answers(two, str(base)), 10, "IPv6 arrives")
        eventually(lambda: answers(two, two.subnet("host2").split("/")[0]), 10, "IPv4 arrives")
        assert Route(other, "flannel-v6.1", gateway=base, onlink=True) in kernel_state.routes(two, "host1")
        assert kernel_state.neighbours(two, "host1", "flannel-v6.1") == {Neighbour("flannel-v6.1", base, mac)}
        assert kernel_state.fdb(two, "host1", "flannel-v6.1") == {FdbEntry("flannel-v6.1", mac, IPv6Address("fd31:9::2"))}
        device = kernel_state.vxlan(two, "host1", "flannel-v6.1")
        assert (device.mtu_bytes, device.local) == (1430, IPv6Address("fd31:9::1"))
        assert two.lab.lease("host1").mtu_bytes == 1430  # type: ignore[union-attr]
        two.sandbox.run("host1", ["ip", "-6", "route", "del", str(other)])
        two.sandbox.run("host1", ["ip", "link", "del", "flannel-v6.1"])
        eventually(lambda: answers(two, str(base)), 5, "what was removed is made again")


def test_host_gw_routes_both_families(tmp_path: Path) -> None:
    with dual(tmp_path, "host-gw") as two:
        expected = Route(subnet6(two, "host2"), "eth0", gateway=IPv6Address("fd31:9::2"))
        eventually(lambda: expected in kernel_state.routes(two, "host1"), 10, "the route by IPv6")
        assert len(kernel_state.routes(two, "host1")) == 2
        two.sandbox.run("host1", ["ip", "-6", "route", "del", str(expected.destination)])
        eventually(lambda: expected in kernel_state.routes(two, "host1"), 5, "it comes back")
