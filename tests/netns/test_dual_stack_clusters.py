"""IPv4 and IPv6 side by side, inside and on the underlay, for the backends that the kernel carries.

    etcd 172.31.9.254
──── underlay ──┬─────────────────────────────────┬────
    host1 172.31.9.1 fd31:9::1          host2 172.31.9.2 fd31:9::2
      flannel.1, flannel-v6.1             flannel.1, flannel-v6.1
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from flanpy.lab import topology
from flanpy.lab.cluster import Lab
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox
from flanpy.model import FdbEntry, Neighbour, Route
from tests.support import kernel_state
from tests.support.clusters import Agent, Cluster, bare, eventually
from tests.support.link_kinds import has_wireguard
from tests.support.pace import SLOWNESS
from tests.support.transfers import transfer


@contextmanager
def dual(logs: Path, backend: str, **options: object) -> Iterator[Cluster]:
    """Two hosts with both families on the underlay, an etcd, and agents."""
    families = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd05::/48"}
    network = json.dumps({**families, "Backend": {"Type": backend, **options}})
    with Sandbox.create() as sandbox:
        lab = Lab(LabSpec("test", 2, 1, network, datapath="userspace"), sandbox, logs, SLOWNESS)
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


def fits(two: Cluster, target: object, size: int) -> bool:
    """Whether a ping with so many bytes behind its headers of 48 arrives in one piece."""
    return two.sandbox.run("host1", ["ping", "-6", "-c1", "-W1", "-Mdo", f"-s{size}", str(target)], check=False).returncode == 0


def test_vxlan_has_a_device_for_each_family_and_both_carry_packets(tmp_path: Path) -> None:
    with dual(tmp_path, "vxlan") as two:
        other = subnet6(two, "host2")
        said = value(two, "host2")
        assert said["PublicIPv6"] == "fd31:9::2"
        mac = said["BackendV6Data"]["VtepMAC"]  # type: ignore[index]
        base = other.network_address
        eventually(lambda: answers(two, str(base)), 10, "IPv6 arrives")
        eventually(lambda: answers(two, two.subnet("host2").split("/")[0]), 10, "IPv4 arrives")
        sent, received = transfer(two, "host1", "host2", str(base))
        assert sent == received
        assert [fits(two, base, size) for size in (1430 - 48, 1431 - 48)] == [True, False]
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


def test_wireguard_carries_both_families_or_the_agent_names_the_option(tmp_path: Path) -> None:
    """Mode separate: a device for each family, each over the underlay of its own."""
    if not has_wireguard():
        _names_the_option(tmp_path)
        return
    with dual(tmp_path, "wireguard") as two:
        other, said = subnet6(two, "host2"), value(two, "host2")
        assert said["BackendData"]["PublicKey"] == said["BackendV6Data"]["PublicKey"]  # type: ignore[index]
        assert (said["BackendData"]["Port"], said["BackendV6Data"]["Port"]) == (51820, 51821)  # type: ignore[index]
        eventually(lambda: answers(two, str(other.network_address)), 10, "IPv6 arrives")
        eventually(lambda: answers(two, two.subnet("host2").split("/")[0]), 10, "IPv4 arrives")
        for address in (str(other.network_address), two.subnet("host2").split("/")[0]):
            sent, received = transfer(two, "host1", "host2", address)
            assert sent == received, address
        expected = {Route(IPv4Network("10.244.0.0/16"), "flannel-wg"), Route(IPv6Network("fd05::/48"), "flannel-wg-v6")}
        assert kernel_state.routes(two, "host1") == expected
        two.sandbox.run("host1", ["ip", "link", "del", "flannel-wg-v6"])
        eventually(lambda: answers(two, str(other.network_address)), 20, "what was removed is made again")


def test_one_wireguard_device_carries_both_families_where_the_kernel_has_it(tmp_path: Path) -> None:
    """Mode ipv6: both families over the IPv6 underlay."""
    if not has_wireguard():
        _names_the_option(tmp_path, Mode="ipv6")
        return
    with dual(tmp_path, "wireguard", Mode="ipv6") as two:
        other = subnet6(two, "host2")
        eventually(lambda: answers(two, str(other.network_address)), 10, "IPv6 arrives")
        eventually(lambda: answers(two, two.subnet("host2").split("/")[0]), 10, "IPv4 arrives")
        assert {route.device for route in kernel_state.routes(two, "host1")} == {"flannel-wg"}


def _names_the_option(logs: Path, **options: object) -> None:
    families = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd05::/48"}
    network = json.dumps({**families, "Backend": {"Type": "wireguard", **options}})
    with bare(logs, network=network) as one:
        enable = "net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0"
        one.sandbox.run("host1", ["sh", "-euc", f"sysctl -qew {enable}; ip addr add fd31:9::1/64 dev eth0 nodad"])
        with Agent(one, "--iface=eth0") as agent:
            agent.says(
                "flannel-wg: this kernel has no WireGuard (option CONFIG_WIREGUARD, module wireguard): modprobe wireguard", 60
            )
            assert not agent.subnet_env.exists()
