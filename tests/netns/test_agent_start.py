"""One agent on one host: how it starts, what stops it, what it waits out, and what it leaves behind.

etcd 172.31.9.254 ──── underlay ──── host1 172.31.9.1 (eth0, default route)
"""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanpy.lab.cluster import IMPORT_PATH
from tests.support.clusters import NETWORK, Agent, Cluster, bare, eventually

OLD = "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
FLANNELD = '{"PublicIP":"172.31.9.1","PublicIPv6":null}'


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Cluster]:
    with bare(tmp_path) as running:
        yield running


def write_subnet_env(host: Cluster, text: str) -> None:
    directory = host.sandbox.path("/run/lab/a")
    directory.mkdir()
    (directory / "subnet.env").write_text(text)


def links(host: Cluster) -> list[str]:
    return [link["ifname"] for link in json.loads(host.sandbox.run("host1", ["ip", "-j", "link"]).stdout)]


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--iface=eth7"], 5, "eth7"),
        (["--iface-regex=^wlan"], 5, "wlan"),
        (["--iface-can-reach=x"], 2, "--iface-can-reach: 'x' is not an address"),
        (["--public-ip=x", "--queues=0"], 2, "--queues: '0' is not a whole number"),
        (["--config=/nonexistent"], 2, "--config: /nonexistent: No such file"),
        (["--state-dir=/proc/x"], 5, "--state-dir: cannot create /proc/x"),
    ],
)
def test_what_no_retry_can_mend_ends_the_agent_with_its_exit_code(
    host: Cluster, flags: list[str], status: int, said: str
) -> None:
    with Agent(host, *flags) as agent:
        assert agent.exit_status() == status
        assert said in agent.log
        assert "Traceback" not in agent.log
    assert "flannel0" not in links(host)


def test_two_addresses_that_fit_are_named_and_a_flag_chooses(host: Cluster) -> None:
    host.sandbox.run("host1", ["ip", "addr", "add", "172.31.10.1/24", "dev", "eth0"])
    with Agent(host, "--iface=eth0") as agent:
        assert agent.exit_status() == 5
        assert "172.31.9.1" in agent.log
        assert "172.31.10.1" in agent.log
    with Agent(host, "--iface=172.31.9.1") as agent:
        agent.says("ready: subnet")


def test_the_default_route_s_interface_is_taken_when_none_is_named(host: Cluster) -> None:
    with Agent(host) as agent:
        agent.says("uplink: eth0 172.31.9.1")
        agent.says("ready: subnet")


def test_a_cluster_without_a_network_config_is_waited_for(host: Cluster) -> None:
    host.delete("config")
    with Agent(host) as agent:
        agent.says("etcd has no network config at /coreos.com/network/config; write one:")
        assert "flannel0" not in links(host)
        host.put("config", '{"Network": "10.244.0.0/16", "SubnetLen": 31, "Backend": {"Type": "upd"}}')
        agent.says("SubnetLen")
        agent.says("did you mean")
        host.put("config", NETWORK)
        agent.says("ready: subnet", 15)


def test_etcd_that_is_away_is_waited_for(host: Cluster) -> None:
    host.lab.stop_etcd()
    with Agent(host) as agent:
        agent.says("store_down")
        assert "flannel0" not in links(host)
        host.lab.start_etcd()
        agent.says("ready: subnet", 20)


def test_a_changed_network_config_is_said_at_once_and_unsaid_when_it_is_put_back(host: Cluster) -> None:
    with Agent(host) as agent:
        first = agent.subnet()
        host.put("config", '{"Network": "10.99.0.0/16"}')
        agent.says("the network config in etcd has changed; restart the agents", 5)
        host.put("config", NETWORK)
        agent.says("config_restored", 5)
        assert agent.subnet() == first


def test_a_restart_applies_a_changed_network_config(host: Cluster) -> None:
    with Agent(host) as agent:
        first = agent.subnet()
        agent.stop()
    host.put("config", '{"Network": "10.99.0.0/16"}')
    with Agent(host) as agent:
        second = agent.subnet()
    assert (first[:7], second[:6]) == ("10.244.", "10.99.")


def test_a_taken_port_is_said_with_its_holder_and_had_once_it_is_free(host: Cluster) -> None:
    squatter = host.sandbox.popen(
        "host1",
        [
            "python3",
            "-c",
            "import socket, time; s = socket.socket(type=2); s.bind(('', 8285)); print(1, flush=True); time.sleep(60)",
        ],
    )
    assert squatter.stdout is not None
    squatter.stdout.readline()
    try:
        with Agent(host) as agent:
            agent.says("UDP port 8285 on 172.31.9.1 is in use by ")
            agent.says("nothing is leased before that, it will be tried again")
            assert not agent.subnet_env.exists()
            assert host.keys() == []
            assert "flannel0" not in links(host)
            assert "FLANPY" not in host.sandbox.run("host1", ["iptables-save"]).stdout
            squatter.kill()
            squatter.wait(timeout=5)
            agent.says("ready: subnet", 20)
    finally:
        squatter.kill()
        squatter.communicate()


def test_a_second_agent_leases_nothing_while_the_first_has_the_port(host: Cluster) -> None:
    with Agent(host, "--teardown") as first:
        first.says("ready: subnet")
        with Agent(host, name="b") as second:
            second.says("is in use by")
            assert len(host.keys()) == 1
            assert first.stop() == 0
            second.says("ready: subnet", 20)


def test_a_device_of_our_name_that_is_not_ours_is_never_touched(host: Cluster) -> None:
    host.sandbox.run("host1", ["ip", "link", "add", "flannel0", "type", "bridge"])
    with Agent(host) as agent:
        agent.says("flannel0")
        agent.says("will be tried again")
        assert '"bridge"' in host.sandbox.run("host1", ["ip", "-d", "-j", "link", "show", "flannel0"]).stdout
        host.sandbox.run("host1", ["ip", "link", "del", "flannel0"])
        agent.says("ready: subnet", 20)


@pytest.mark.parametrize(("backend", "device"), [("vxlan", "flannel.1"), ("ipip", "flannel.ipip"), ("wireguard", "flannel-wg")])
def test_nothing_is_leased_while_a_device_of_another_kind_has_our_name(tmp_path: Path, backend: str, device: str) -> None:
    with bare(tmp_path, network=f'{{"Network": "10.244.0.0/16", "Backend": {{"Type": "{backend}"}}}}') as host:
        host.sandbox.run("host1", ["ip", "link", "add", "name", device, "type", "bridge"])
        with Agent(host) as agent:
            agent.says(f"{device}: a bridge device has this name, not a {backend} device of ours; remove or rename it", 20)
            assert (host.keys(), agent.subnet_env.exists()) == ([], False)
            host.sandbox.run("host1", ["ip", "link", "del", device])
            eventually(host.keys, 10, "with the obstacle gone a subnet is leased")


def test_an_address_that_another_device_has_is_refused_by_the_lease_s_key_and_the_rest_goes_on(host: Cluster) -> None:
    write_subnet_env(host, OLD.format(network="10.244.0.0/16", subnet="10.244.77.1/24"))
    host.sandbox.run("host1", ["sh", "-euc", "ip link add eth7 type bridge; ip addr add 10.244.77.0/24 dev eth7"])
    refused = (
        "subnets/10.244.77.0-24: 10.244.77.0, the address of flannel0, is taken by eth7: ip addr del 10.244.77.0/24 dev eth7"
    )
    with Agent(host) as agent:
        assert agent.subnet() == "10.244.77.1/24"
        agent.says(refused)
        assert refused in agent.status()["problems"]
        assert "10.244.0.0/16 dev flannel0 proto 102 scope link" in host.routes("host1")
        assert "10.244.77.0/32" not in addresses(host, "flannel0")
        host.sandbox.run("host1", ["ip", "addr", "del", "10.244.77.0/24", "dev", "eth7"])
        eventually(lambda: addresses(host, "flannel0") == ["10.244.77.0/32"], 10, "it is taken once it is free")
        eventually(lambda: agent.status()["problems"] == [], 10, "and nothing is wrong any more")


def addresses(host: Cluster, device: str) -> list[str]:
    shown = json.loads(host.sandbox.run("host1", ["ip", "-j", "address", "show", device]).stdout)
    return [f"{each['local']}/{each['prefixlen']}" for each in shown[0]["addr_info"] if each["family"] == "inet"]


def test_the_subnet_of_an_earlier_run_is_had_again(host: Cluster) -> None:
    write_subnet_env(host, OLD.format(network="10.244.0.0/16", subnet="10.244.77.1/24"))
    with Agent(host) as agent:
        assert agent.subnet() == "10.244.77.1/24"


@pytest.mark.parametrize("text", [OLD.format(network="10.9.0.0/16", subnet="10.9.77.1/24"), "FLANNEL_SUBNET=x\n", "\0\1\2"])
def test_a_subnet_env_of_another_network_or_damaged_is_passed_over(host: Cluster, text: str) -> None:
    write_subnet_env(host, text)
    with Agent(host) as agent:
        agent.says("ready: subnet")
        assert agent.subnet().startswith("10.244.")


def test_flanneld_s_lease_is_taken_over_in_place(host: Cluster) -> None:
    lease = host.etcd("lease/grant", {"TTL": 86400})["ID"]
    host.put("subnets/10.244.42.0-24", FLANNELD, lease)
    with Agent(host) as agent:
        assert agent.subnet() == "10.244.42.1/24"
    record = host.get("subnets/10.244.42.0-24")
    assert record is not None
    assert '"flanpy":{"node":' in record["value"]
    assert host.keys() == ["subnets/10.244.42.0-24"]


def test_a_reservation_is_used_and_stays_one(host: Cluster) -> None:
    host.put("subnets/10.244.43.0-24", FLANNELD)
    with Agent(host) as agent:
        assert agent.subnet() == "10.244.43.1/24"
        record = host.get("subnets/10.244.43.0-24")
        assert record is not None
        assert record.get("lease", "0") == "0"


def test_an_exhausted_pool_is_said_and_had_once_a_subnet_is_free(tmp_path: Path) -> None:
    with bare(
        tmp_path, network='{"Network": "10.50.0.0/28", "SubnetLen": 30, "SubnetMin": "10.50.0.0", "SubnetMax": "10.50.0.12"}'
    ) as host:
        for base in (0, 4, 8, 12):
            host.put(f"subnets/10.50.0.{base}-30", f'{{"PublicIP":"172.31.9.{100 + base}","PublicIPv6":null}}')
        with Agent(host) as agent:
            agent.says("no free /30")
            assert not agent.subnet_env.exists()
            host.delete("subnets/10.50.0.8-30")
            assert agent.subnet() == "10.50.0.9/30"


@pytest.mark.parametrize("flags", [["--datapath=userspace", "--teardown"], ["--datapath=ebpf", "--teardown"]])
def test_a_clean_stop_leaves_the_lease_and_subnet_env_and_nothing_else(host: Cluster, flags: list[str]) -> None:
    with Agent(host, *flags) as agent:
        agent.says("ready: subnet")
        assert agent.stop() == 0
        assert "stopped by SIGTERM" in agent.log
        assert agent.subnet_env.exists()
    assert links(host) == ["lo", "eth0"]
    assert len(host.keys()) == 1
    left = host.sandbox.run("host1", ["find", "/run/lab/a", "-type", "f", "-o", "-type", "s"]).stdout.split()
    assert sorted(Path(path).name for path in left) == ["agent.lock", "node-id", "subnet.env"]


@pytest.mark.parametrize("datapath", ["userspace", "ebpf"])
def test_the_datapath_outlives_a_clean_stop(host: Cluster, datapath: str) -> None:
    with Agent(host, f"--datapath={datapath}") as agent:
        agent.says("ready: subnet")
        assert agent.stop() == 0
    assert "flannel0" in links(host)


def test_release_on_exit_gives_the_subnet_back(host: Cluster) -> None:
    with Agent(host, "--release-on-exit") as agent:
        agent.says("ready: subnet")
        assert len(host.keys()) == 1
        assert agent.stop(signal.SIGINT) == 0
    assert host.keys() == []


def test_an_agent_that_starts_is_ready_within_a_second_of_having_etcd(host: Cluster) -> None:
    with Agent(host, "--log-format=json") as agent:
        agent.says('"event": "ready"')
        lines = [json.loads(line) for line in agent.log.splitlines()]
    stamps = {line["event"]: float(line["time"][17:-1]) for line in lines}
    assert (stamps["ready"] - stamps["starting"]) % 60 < 5, "generous: machines of tests are slow; the benchmark has the figure"


def test_embedded_etcd_makes_one_machine_enough(host: Cluster) -> None:
    settings = {**IMPORT_PATH, "FLANPY_ETCD_ENDPOINTS": "http://127.0.0.1:2379"}
    with Agent(host, "--embedded-etcd") as agent:
        agent.says("etcd has no network config")
        command = [sys.executable, "-m", "flanpy", "network", "set", "--json", NETWORK]
        host.sandbox.run("host1", command, env=settings)
        agent.says("ready: subnet", 20)
        assert agent.stop() == 0
    eventually(lambda: "etcd --name flanpy" not in host.sandbox.run(None, ["ps", "ax"]).stdout, 5, "its etcd has ended")


def test_health_follows_readiness(host: Cluster) -> None:
    fetch = "\n".join(
        [
            "import urllib.error, urllib.request as request, sys",
            "try: print(request.urlopen(sys.argv[1]).status)",
            "except urllib.error.HTTPError as error: print(error.code)",
        ]
    )
    host.delete("config")
    with Agent(host, "--healthz-port=8471", "--healthz-ip=127.0.0.1") as agent:
        agent.says("no network config")

        def code(path: str) -> str:
            return host.sandbox.run("host1", ["python3", "-c", fetch, f"http://127.0.0.1:8471{path}"]).stdout.strip()

        assert (code("/healthz"), code("/readyz")) == ("200", "503")
        host.put("config", NETWORK)
        agent.says("ready: subnet", 15)
        assert code("/readyz") == "200"
