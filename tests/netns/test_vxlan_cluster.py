"""The vxlan backend: two real agents, the kernel's VXLAN between them, and what happens when leases or devices change.

        etcd 172.31.9.254
    ──── underlay ──┬────────────────────┬────
                host1 172.31.9.1     host2 172.31.9.2
                  flannel.1            flannel.1            UDP port 8472, MTU 1450
                 host1-pod1           host2-pod1

One cluster serves all tests of this file; each leaves it as it found it, in sync.
"""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flanpy.model import FdbEntry, Neighbour, Route, VxlanLink
from tests.support import kernel_state
from tests.support.clusters import Cluster, cluster, eventually
from tests.support.transfers import transfer

NETWORK = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
MAC = "02:00:00:00:00:99"
OTHER_MAC = "02:00:00:00:00:98"
GONE = "subnets/10.244.251.0-24"
SNIFF = """
import sys
from scapy.all import IP, UDP, VXLAN, Ether, ICMP, sniff
(packet,) = sniff(iface="eth0", lfilter=lambda seen: UDP in seen and seen[UDP].dport == 8472, count=1, timeout=8,
                  started_callback=lambda: print("ready", flush=True))
inner = VXLAN(bytes(packet[UDP].payload))
frame = inner[Ether]
print(packet[IP].src, packet[IP].dst, packet[UDP].dport, int(inner.vni), inner.flags, frame.src, frame.dst, frame[IP].src,
      frame[IP].dst, ICMP in frame)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, network=NETWORK) as running:
        yield running


@pytest.fixture(autouse=True)
def in_sync(two: Cluster) -> Iterator[None]:
    yield
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other again after the test")


def data(two: Cluster, host: str) -> dict[str, object]:
    record = two.get(two.key(host))
    assert record is not None
    found: dict[str, object] = json.loads(record["value"])
    return found


def mac(two: Cluster, host: str) -> str:
    backend_data = data(two, host)["BackendData"]
    assert isinstance(backend_data, dict)
    return str(backend_data["VtepMAC"])


def base(two: Cluster, host: str) -> IPv4Address:
    return IPv4Network(two.subnet(host)).network_address


def lease(vtep_mac: str, address: str = "172.31.9.77") -> str:
    value = {
        "PublicIP": address,
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": vtep_mac},
    }
    return json.dumps(value)


def wanted(two: Cluster) -> tuple[object, ...]:
    """What host1 should have for host2 alone."""
    subnet = IPv4Network(two.subnet("host2"))
    return (
        frozenset({Route(subnet, "flannel.1", gateway=subnet.network_address, onlink=True)}),
        frozenset({Neighbour("flannel.1", subnet.network_address, mac(two, "host2"))}),
        frozenset({FdbEntry("flannel.1", mac(two, "host2"), IPv4Address("172.31.9.2"))}),
    )


def actual(two: Cluster) -> tuple[object, ...]:
    return (
        kernel_state.routes(two, "host1"),
        kernel_state.neighbours(two, "host1", "flannel.1"),
        kernel_state.fdb(two, "host1", "flannel.1"),
    )


def link(two: Cluster, mtu_bytes: int = 1450) -> VxlanLink:
    return VxlanLink(
        "flannel.1",
        1,
        8472,
        mac(two, "host1"),
        IPv4Address("172.31.9.1"),
        "eth0",
        mtu_bytes,
        (IPv4Interface((base(two, "host1"), 32)),),
    )


def test_a_lease_stands_in_etcd_as_flannel_writes_it(two: Cluster) -> None:
    found = data(two, "host1")
    assert list(found) == ["PublicIP", "PublicIPv6", "BackendType", "BackendData"]
    assert (found["PublicIP"], found["BackendType"]) == ("172.31.9.1", "vxlan")
    assert list(found["BackendData"])[:2] == ["VNI", "VtepMAC"]  # type: ignore[call-overload]


def test_the_kernel_has_the_device_and_the_entries_and_nothing_else(two: Cluster) -> None:
    assert kernel_state.vxlan(two, "host1", "flannel.1") == link(two)
    assert actual(two) == wanted(two)


def test_the_agent_has_no_datapath_and_is_ready(two: Cluster) -> None:
    status = two.status("host1")
    assert (status["backend"], status["ready"], status["problems"]) == ("vxlan", True, [])
    assert not (status["datapath"] or {}).get("verdicts")
    assert "flannel0" not in two.sandbox.run("host1", ["ip", "link"]).stdout


@pytest.mark.parametrize(("source", "target"), [("host1-pod1", "host2-pod1"), ("host2-pod1", "host1-pod1")])
def test_what_is_sent_arrives_whole(two: Cluster, source: str, target: str) -> None:
    sent, received = transfer(two, source, target)
    assert sent == received
    assert len(sent) == hashlib.sha256().digest_size * 2


@pytest.mark.parametrize(("size", "fits"), [(1450 - 28, True), (1451 - 28, False)])
def test_the_mtu_is_the_underlay_s_less_50(two: Cluster, size: int, fits: bool) -> None:
    done = two.sandbox.run("host1-pod1", ["ping", "-c1", "-W1", "-Mdo", f"-s{size}", two.pod("host2-pod1")], check=False)
    assert (done.returncode == 0) == fits
    assert two.lab.lease("host1").mtu_bytes == 1450  # type: ignore[union-attr]


def test_a_frame_on_the_underlay_is_vxlan_as_scapy_reads_it(two: Cluster) -> None:
    sniffer = two.sandbox.popen("host2", [sys.executable, "-c", SNIFF])
    assert sniffer.stdout is not None
    assert sniffer.stdout.readline() == "ready\n"
    assert two.ping("host1-pod1", "host2-pod1", 1) == 1
    seen = sniffer.communicate(timeout=15)[0].split()
    macs = [mac(two, "host1"), mac(two, "host2")]
    pods = [two.pod("host1-pod1"), two.pod("host2-pod1")]
    assert seen == ["172.31.9.1", "172.31.9.2", "8472", "1", "Instance", *macs, *pods, "True"]


def test_a_peer_that_comes_changes_and_goes_leaves_nothing(two: Cluster) -> None:
    before = actual(two)
    subnet = IPv4Network("10.244.251.0/24")

    def has(vtep_mac: str, address: str) -> bool:
        routes, neighbours, fdb = wanted(two)
        return actual(two) == (
            routes | {Route(subnet, "flannel.1", gateway=subnet.network_address, onlink=True)},  # type: ignore[operator]
            neighbours | {Neighbour("flannel.1", subnet.network_address, vtep_mac)},  # type: ignore[operator]
            fdb | {FdbEntry("flannel.1", vtep_mac, IPv4Address(address))},  # type: ignore[operator]
        )

    for vtep_mac, address in ((MAC, "172.31.9.77"), (OTHER_MAC, "172.31.9.77"), (OTHER_MAC, "172.31.9.78"), (MAC, "172.31.9.79")):
        two.put(GONE, lease(vtep_mac, address))
        eventually(lambda vtep_mac=vtep_mac, address=address: has(vtep_mac, address), 5, f"{vtep_mac} at {address}")  # type: ignore[misc]
    two.delete(GONE)
    eventually(lambda: actual(two) == before, 5, "nothing is left of it")


BAD = {
    "BackendData: missing": None,
    "BackendData: 'x' is not an object": "x",
    "BackendData.VtepMAC: None is not a MAC": {"VNI": 1},
    "BackendData.VtepMAC: 'zz:00:00:00:00:01' is not a MAC": {"VNI": 1, "VtepMAC": "zz:00:00:00:00:01"},
    "BackendData.VtepMAC: 01:00:5e:00:00:01 is not the MAC of one device": {"VNI": 1, "VtepMAC": "01:00:5e:00:00:01"},
    "BackendData.VNI: 2 is not the network config's 1": {"VNI": 2, "VtepMAC": MAC},
    "BackendData.VNI: 16777216 is not the network config's 1": {"VNI": 1 << 24, "VtepMAC": MAC},
}


def test_bad_data_is_refused_one_by_one_with_its_key_path(two: Cluster) -> None:
    before = actual(two)
    keys = {f"subnets/10.244.{240 + number}.0-24": reason for number, reason in enumerate(BAD)}
    for number, (key, reason) in enumerate(keys.items()):
        value = {"PublicIP": f"172.31.9.{60 + number}", "PublicIPv6": None, "BackendType": "vxlan", "BackendData": BAD[reason]}
        two.put(key, json.dumps(value))
    two.put("subnets/10.244.239.0-24", lease(mac(two, "host2")))
    two.put("subnets/10.244.238.0-24", '{"PublicIP":"172.31.9.50","PublicIPv6":null,"BackendType":"host-gw"}')
    try:

        def told() -> bool:
            problems = "\n".join(two.status("host1")["problems"])
            return all(f"lease {key} refused: {reason}" in problems for key, reason in keys.items()) and (
                "two nodes cannot have one MAC" in problems
            )

        eventually(told, 5, "each is said with its reason")
        assert two.status("host1")["foreign"] == ["10.244.238.0/24"]
        assert actual(two) == before
    finally:
        for key in (*keys, "subnets/10.244.239.0-24", "subnets/10.244.238.0-24"):
            two.delete(key)
    eventually(lambda: two.status("host1")["problems"] == [], 5, "all is forgotten")


@pytest.mark.parametrize(
    "damage",
    [
        "ip link del flannel.1",
        "ip link set flannel.1 down",
        "ip neigh flush dev flannel.1 nud permanent",
        "bridge fdb del {mac} dev flannel.1 dst 172.31.9.2",
        "bridge fdb replace {mac} dev flannel.1 dst 172.31.9.66",
        "ip neigh replace {base} lladdr 02:00:00:00:00:55 dev flannel.1 nud permanent",
        "bridge fdb add 02:00:00:00:00:55 dev flannel.1 dst 172.31.9.66",
        "ip neigh add 10.244.177.0 lladdr 02:00:00:00:00:55 dev flannel.1 nud permanent",
        "ip route del {subnet}",
        "ip addr flush dev flannel.1",
        "ip link set flannel.1 mtu 1300",
        "ip link set flannel.1 address 02:00:00:00:00:44",
    ],
)
def test_what_somebody_breaks_is_as_it_was_within_5_s(two: Cluster, damage: str) -> None:
    before = (kernel_state.vxlan(two, "host1", "flannel.1"), *actual(two))
    words = {"mac": mac(two, "host2"), "base": base(two, "host2"), "subnet": two.subnet("host2")}
    two.sandbox.run("host1", ["sh", "-euc", damage.format(**words)])
    eventually(lambda: (kernel_state.vxlan(two, "host1", "flannel.1"), *actual(two)) == before, 5, f"mended after {damage}")


def pinged(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Pings sent and answered."""
    summary = process.communicate(timeout=30)[0].split(" packets transmitted, ")
    return int(summary[0].rsplit("\n", 1)[-1]), int(summary[1].split(" ")[0])


def test_no_packet_is_lost_while_agents_restart(two: Cluster) -> None:
    before = kernel_state.index(two, "host1", "flannel.1"), actual(two)
    ping = two.sandbox.popen("host1-pod1", ["ping", "-n", "-q", "-i0.01", "-c600", "-W1", two.pod("host2-pod1")])
    two.lab.stop_agent("host1", signal.SIGKILL)
    two.lab.start_agents(["host1"])
    two.lab.stop_agent("host2")
    two.lab.start_agents(["host2"])
    ping.send_signal(signal.SIGINT)
    sent, answered = pinged(ping)
    assert sent == answered
    assert sent > 30
    assert (kernel_state.index(two, "host1", "flannel.1"), actual(two)) == before


def test_stale_entries_are_swept_at_start_and_those_of_other_devices_stay(two: Cluster) -> None:
    before = actual(two)
    two.lab.stop_agent("host1")
    lines = (
        f"bridge fdb add {MAC} dev flannel.1 dst 172.31.9.99",
        f"ip neigh add 10.244.199.0 lladdr {MAC} dev flannel.1 nud permanent",
        "ip route add 10.244.199.0/24 via 10.244.199.0 dev flannel.1 onlink",
        "ip route add 10.244.198.0/24 via 172.31.9.99 proto 102",
        f"ip neigh add 172.31.9.99 lladdr {MAC} dev eth0 nud permanent",
    )
    two.sandbox.run("host1", ["sh", "-euc", "; ".join(lines)])
    two.lab.start_agents(["host1"])
    assert actual(two) == before
    assert "10.244.199.0" not in "\n".join(two.routes("host1"))
    assert len(kernel_state.neighbours(two, "host1", "eth0")) == 1
    two.sandbox.run("host1", ["ip", "neigh", "del", "172.31.9.99", "dev", "eth0"])


def test_flanneld_s_device_and_routes_are_adopted_without_an_outage(two: Cluster) -> None:
    """The device that flanneld makes has a random MAC; its routes are of protocol boot."""
    two.lab.stop_agent("host1")
    subnet, peer = IPv4Network(two.subnet("host1")), IPv4Network(two.subnet("host2"))
    lines = (
        "ip link del flannel.1",
        f"ip link add flannel.1 address {OTHER_MAC} mtu 1450 type vxlan id 1 dev eth0 local 172.31.9.1 dstport 8472 nolearning",
        f"ip addr add {subnet.network_address}/32 dev flannel.1",
        "ip link set flannel.1 up",
        f"ip neigh replace {peer.network_address} lladdr {mac(two, 'host2')} dev flannel.1 nud permanent",
        f"bridge fdb add {mac(two, 'host2')} dev flannel.1 dst 172.31.9.2",
        f"ip route add {peer} via {peer.network_address} dev flannel.1 onlink",
        "ip route add 10.244.197.0/24 via 10.244.197.0 dev flannel.1 onlink",
    )
    two.sandbox.run("host1", ["sh", "-euc", "; ".join(lines)])
    old = data(two, "host1")
    two.put(
        two.key("host1"), json.dumps({**old, "BackendData": {"VNI": 1, "VtepMAC": OTHER_MAC}}), two.get(two.key("host1"))["lease"]
    )  # type: ignore[index]
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 5, "flanneld's way works")
    before = kernel_state.index(two, "host1", "flannel.1")
    ping = two.sandbox.popen("host1-pod1", ["ping", "-n", "-q", "-i0.01", "-c600", "-W1", two.pod("host2-pod1")])
    two.lab.start_agents(["host1"])
    ping.send_signal(signal.SIGINT)
    sent, answered = pinged(ping)
    assert (sent - answered, kernel_state.index(two, "host1", "flannel.1")) == (0, before)
    assert (mac(two, "host1"), kernel_state.vxlan(two, "host1", "flannel.1")) == (OTHER_MAC, link(two))
    assert actual(two) == wanted(two)
    assert "10.244.197.0" not in "\n".join(two.routes("host1"))


def test_a_new_mtu_of_the_uplink_reaches_the_living_device(two: Cluster) -> None:
    before = kernel_state.index(two, "host1", "flannel.1")
    for uplink, overlay in ((1400, 1350), (1500, 1450)):
        two.sandbox.run("host1", ["ip", "link", "set", "eth0", "mtu", str(uplink)])
        eventually(lambda overlay=overlay: kernel_state.vxlan(two, "host1", "flannel.1") == link(two, overlay), 5, "the device")  # type: ignore[misc]
        eventually(lambda overlay=overlay: two.lab.lease("host1").mtu_bytes == overlay, 5, "subnet.env has it")  # type: ignore[misc, union-attr]
    assert kernel_state.index(two, "host1", "flannel.1") == before


def test_a_new_address_of_the_uplink_changes_the_device_in_place_and_the_peer_s_entry(two: Cluster) -> None:
    before = kernel_state.index(two, "host2", "flannel.1")
    move = "ip addr del {0}/24 dev eth0; ip addr add {1}/24 dev eth0; ip route replace default via 172.31.9.254"
    for old, new in (("172.31.9.2", "172.31.9.88"), ("172.31.9.88", "172.31.9.2")):
        two.sandbox.run("host2", ["sh", "-euc", move.format(old, new)])
        expected = frozenset({FdbEntry("flannel.1", mac(two, "host2"), IPv4Address(new))})
        eventually(lambda expected=expected: kernel_state.fdb(two, "host1", "flannel.1") == expected, 5, f"sent to {new}")  # type: ignore[misc]
        eventually(lambda new=new: kernel_state.vxlan(two, "host2", "flannel.1").local == IPv4Address(new), 5, "sent from it")  # type: ignore[misc]
        eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 10, "packets flow")
    assert kernel_state.index(two, "host2", "flannel.1") == before
