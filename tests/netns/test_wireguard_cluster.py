"""The wireguard backend: on a kernel that has it two real agents and packets between them; on one that lacks it, what the agent says.

Topology as in test_vxlan_cluster.
"""

import json
import signal
import sys
from pathlib import Path

from tests.support import kernel_state
from tests.support.clusters import Agent, Cluster, bare, cluster, eventually
from tests.support.link_kinds import has_wireguard
from tests.support.transfers import transfer

NETWORK = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard", "PersistentKeepaliveInterval": 5}})
GONE = "subnets/10.244.251.0-24"
KEYS = [f"{letter}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=" for letter in "xy"]
PEERS = """
import json, sys
from pyroute2 import WireGuard
for message in WireGuard().info("flannel-wg"):
    for peer in message.get("WGDEVICE_A_PEERS") or ():
        endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
        key = peer.get_attr("WGPEER_A_PUBLIC_KEY")
        print((key["value"] if isinstance(key, dict) else key).decode(), endpoint["addr"], endpoint["port"],
              *(allowed["addr"] for allowed in peer.get_attr("WGPEER_A_ALLOWEDIPS")))
"""


def test_wireguard_carries_packets_or_the_agent_names_the_option(tmp_path: Path) -> None:
    if has_wireguard():
        _carries(tmp_path)
    else:
        _names_the_option(tmp_path)


def peers(two: Cluster) -> list[str]:
    return sorted(two.sandbox.run("host1", [sys.executable, "-c", PEERS]).stdout.splitlines())


def _carries(logs: Path) -> None:
    with cluster(logs, hosts=2, pods=1, network=NETWORK) as two:
        eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 60, "the pods reach each other")
        assert two.lab.lease("host1").mtu_bytes == 1420  # type: ignore[union-attr]
        record = two.get(two.key("host2"))
        assert record is not None
        key = json.loads(record["value"])["BackendData"]["PublicKey"]
        before = [f"{key} 172.31.9.2 51820 {two.subnet('host2')}"]
        assert peers(two) == before
        sent, received = transfer(two, "host1-pod1", "host2-pod1")
        assert sent == received
        (counted,) = (peer["traffic"] for peer in two.ask("host1", "peers")["peers"])
        assert counted["sent_bytes"] > 1000
        assert counted["sent_packets"] is None, "the kernel counts bytes alone"
        for other, address in ((KEYS[0], "172.31.9.77"), (KEYS[0], "172.31.9.78"), (KEYS[1], "172.31.9.78")):
            data = {"PublicKey": other, "Port": 51820}
            value = {"PublicIP": address, "PublicIPv6": None, "BackendType": "wireguard", "BackendData": data}
            two.put(GONE, json.dumps(value))
            expected = sorted([*before, f"{other} {address} 51820 10.244.251.0/24"])
            eventually(lambda expected=expected: peers(two) == expected, 60, f"{other} at {address} and no other")  # type: ignore[misc]
        two.delete(GONE)
        eventually(lambda: peers(two) == before, 60, "nothing is left of it")
        index = kernel_state.index(two, "host1", "flannel-wg")
        two.lab.stop_agent("host1")
        assert two.ping("host1-pod1", "host2-pod1") == 3
        two.lab.start_agents(["host1"])
        again = two.get(two.key("host2"))
        assert again is not None
        assert (kernel_state.index(two, "host1", "flannel-wg"), again["value"]) == (index, record["value"])
        two.sandbox.run("host1", ["ip", "link", "del", "flannel-wg"])
        eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 60, "the device is made again")
        two.lab.stop_agent("host1", signal.SIGKILL)
        two.flanpy("host1", "cleanup", timeout_s=300)
        assert "flannel-wg" not in two.sandbox.run("host1", ["ip", "link"]).stdout
        assert kernel_state.routes(two, "host1") == frozenset()


def _names_the_option(logs: Path) -> None:
    with bare(logs, network=NETWORK) as one, Agent(one, "--iface=eth0") as agent:
        agent.says("flannel-wg: this kernel has no WireGuard (option CONFIG_WIREGUARD, module wireguard): modprobe wireguard", 60)
        assert not agent.subnet_env.exists()
