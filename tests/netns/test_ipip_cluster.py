"""The ipip backend: on a kernel that has it two real agents and packets between them; on one that lacks it, what the agent says.

Topology as in test_vxlan_cluster.
"""

import json
import signal
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from flanpy.model import Route
from tests.support import kernel_state
from tests.support.clusters import Agent, bare, cluster, eventually
from tests.support.link_kinds import has_ipip
from tests.support.transfers import transfer

NETWORK = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "ipip"}})


def test_ipip_carries_packets_or_the_agent_names_the_option(tmp_path: Path) -> None:
    if has_ipip():
        _carries(tmp_path)
    else:
        _names_the_option(tmp_path)


def _carries(logs: Path) -> None:
    with cluster(logs, hosts=2, pods=1, network=NETWORK) as two:
        subnet = IPv4Network(two.subnet("host2"))
        expected = frozenset({Route(subnet, "flannel.ipip", gateway=IPv4Address("172.31.9.2"), onlink=True)})
        eventually(lambda: kernel_state.routes(two, "host1") == expected, 20, "the route of the peer")
        eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 20, "the pods reach each other")
        assert two.lab.lease("host1").mtu_bytes == 1480  # type: ignore[union-attr]
        sent, received = transfer(two, "host1-pod1", "host2-pod1")
        assert sent == received
        fits = [
            two.sandbox.run(
                "host1-pod1", ["ping", "-c1", "-W5", "-Mdo", f"-s{size}", two.pod("host2-pod1")], check=False
            ).returncode
            for size in (1480 - 28, 1481 - 28)
        ]
        assert fits == [0, 1]
        before = kernel_state.index(two, "host1", "flannel.ipip")
        two.lab.stop_agent("host1")
        two.sandbox.run("host1", ["ip", "link", "set", "flannel.ipip", "mtu", "1300"])
        two.lab.start_agents(["host1"])
        assert kernel_state.index(two, "host1", "flannel.ipip") == before
        two.sandbox.run("host1", ["ip", "link", "del", "flannel.ipip"])
        eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 20, "the device is made again")
        two.lab.stop_agent("host1", signal.SIGKILL)
        two.flanpy("host1", "cleanup", timeout_s=300)
        assert "flannel.ipip" not in two.sandbox.run("host1", ["ip", "link"]).stdout
        assert kernel_state.routes(two, "host1") == frozenset()


def _names_the_option(logs: Path) -> None:
    with bare(logs, network=NETWORK) as one, Agent(one, "--iface=eth0") as agent:
        agent.says("flannel.ipip: this kernel has no IP-in-IP tunnels (option CONFIG_NET_IPIP, module ipip): modprobe ipip", 60)
        assert not agent.subnet_env.exists()
