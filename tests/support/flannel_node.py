"""A node as flanneld leaves it, or finds it and goes on: etcd key, subnet.env, device, routes, entries and rules in flanneld's form.

Recorded from flanneld 0.20.2 to 0.28.9: BackendData and value as they stand in etcd; routes of protocol boot; the blackhole of
--ip-blackhole-route without a metric; rules in chains FLANNEL-... of iptables, or with EnableNFTables in tables flannel-ipv4. What
flanneld does at a start on a node that has a device already: it takes it (vxlan), sets entries, replaces routes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network

from flanpy.lab.cluster import IMPORT_PATH
from tests.support.clusters import Cluster

HOST, ADDRESS, PEER_ADDRESS = "host1", "172.31.9.1", "172.31.9.2"
NETWORK = "10.244.0.0/16"
IPTABLES = """*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s {subnet} -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d {subnet} -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d {subnet} -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""
NFT = """table ip flannel-ipv4 {{
 chain postrtg {{ type nat hook postrouting priority srcnat;
  meta mark & 0x4000 == 0x4000 return; ip saddr {subnet} ip daddr 10.244.0.0/16 return; ip saddr 10.244.0.0/16 ip daddr {subnet} return;
  ip saddr != {subnet} ip daddr {subnet} return; ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random; }}
 chain forward {{ type filter hook forward priority filter; ip saddr 10.244.0.0/16 accept; ip daddr 10.244.0.0/16 accept; }}
}}
"""
SUBNET_ENV = "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={first}/{length}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"
MTU = {"udp": 1472, "vxlan": 1450, "host-gw": 1500}
MAC = "c6:d2:32:6f:8f:44"


@dataclass(slots=True)
class FlannelNode:
    """flanneld's side of host1 in a cluster where host2 runs our agent; ``subnet`` is what host1 has leased."""

    cluster: Cluster
    backend: str
    subnet: IPv4Network
    process: subprocess.Popen[str] | None = None

    def value(self) -> str:
        """The lease as flanneld writes it."""
        fields: dict[str, object] = {"PublicIP": ADDRESS, "PublicIPv6": None}
        if self.backend != "udp":
            fields["BackendType"] = self.backend
        if self.backend == "vxlan":
            fields["BackendData"] = {"VNI": 1, "VtepMAC": self.mac()}
        return json.dumps(fields, separators=(",", ":"))

    def mac(self) -> str:
        """That of flannel.1, which flanneld keeps if it is there, else a fresh one."""
        said = self.cluster.sandbox.run(HOST, ["ip", "-j", "link", "show", "flannel.1"], check=False)
        return str(json.loads(said.stdout)[0]["address"]) if said.returncode == 0 else MAC

    def write_lease(self) -> None:
        """Grant and put: what flanneld does for a lease that has its PublicIP already, and for a new one."""
        lease = self.cluster.etcd("lease/grant", {"TTL": 86400})["ID"]
        self.cluster.put(f"subnets/{str(self.subnet).replace('/', '-')}", self.value(), lease)

    def write_subnet_env(self) -> str:
        """subnet.env as flanneld writes it; returns the text."""
        text = SUBNET_ENV.format(network=NETWORK, first=self.subnet[1], length=self.subnet.prefixlen, mtu=MTU[self.backend])
        path = self.cluster.lab.host_path(HOST, "subnet.env")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return text

    def start(self, peer: IPv4Network) -> None:
        """Make the node flanneld's: lease, device, the way to the one peer, rules, subnet.env."""
        self.write_lease()
        self._script(getattr(self, f"_{self.backend.replace('-', '_')}_lines")(peer))
        rules = NFT if self.backend == "host-gw" else IPTABLES
        tool = ["nft", "-f", "-"] if self.backend == "host-gw" else ["iptables-restore", "--noflush"]
        text = rules.format(subnet=self.subnet)
        self._script([f"{' '.join(tool)} <<'END'\n{text}END"])
        self.write_subnet_env()

    def blackhole(self) -> None:
        """The route of --ip-blackhole-route, behind that of the bridge: before it, no pod of the node would be reached."""
        self._script([f"ip route append blackhole {self.subnet}"])

    def stop(self) -> None:
        """What ends with flanneld's process: of the udp backend the device. All else stays."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(timeout=10)
            self.process = None

    def _script(self, lines: list[str]) -> None:
        self.cluster.sandbox.run(HOST, ["sh", "-euc", "\n".join(lines)])

    def _udp_lines(self, peer: IPv4Network) -> list[str]:
        """The datapath of one packet a call in flanneld's place, on a TUN device of its own."""
        hops = [f"--route={subnet}={address}:8285" for subnet, address in ((self.subnet, ADDRESS), (peer, PEER_ADDRESS))]
        argv = [sys.executable, "-m", "flanpy.bench.proxy_process", f"--address={ADDRESS}", *hops]
        self.process = self.cluster.sandbox.popen(HOST, argv, env=IMPORT_PATH)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        base = self.subnet.network_address
        device = f"ip link set flannel0 mtu 1472 up; ip addr add {base}/32 dev flannel0"
        return [device, f"ip route add {NETWORK} dev flannel0 scope global"]

    def _vxlan_lines(self, peer: IPv4Network) -> list[str]:
        made = f"ip link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 dev eth0 local {ADDRESS} dstport 8472 nolearning"
        base, record = peer.network_address, self.cluster.get(f"subnets/{str(peer).replace('/', '-')}")
        assert record is not None
        mac = json.loads(record["value"])["BackendData"]["VtepMAC"]
        return [
            f"ip link show flannel.1 >/dev/null 2>&1 || {made}",
            f"ip addr replace {self.subnet.network_address}/32 dev flannel.1",
            "ip link set flannel.1 up",
            f"ip neigh replace {base} lladdr {mac} dev flannel.1 nud permanent",
            f"bridge fdb replace {mac} dev flannel.1 dst {PEER_ADDRESS} self permanent",
            f"ip route replace {peer} via {base} dev flannel.1 onlink",
        ]

    def _host_gw_lines(self, peer: IPv4Network) -> list[str]:
        """A route that leads there already, whoever made it, is left as it is."""
        return [
            f"ip route show {peer} | grep -q 'via {PEER_ADDRESS} dev eth0' || ip route add {peer} via {PEER_ADDRESS} dev eth0"
        ]
