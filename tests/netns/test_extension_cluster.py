"""The extension backend: two real agents whose operators' commands write a file of all that they were told, and route by it.

Topology as in test_vxlan_cluster; the hosts' mount namespace is one, so each host has a log of its own in /run/lab/HOST.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clusters import Cluster, cluster, eventually

TELL = """\
import os, subprocess, sys
what, data = sys.argv[1], sys.stdin.read()
host = os.environ["FLANPY_RUN_DIR"].split("/")[3]
told = [what, *(os.environ.get(name) for name in ("NETWORK", "SUBNET", "PUBLIC_IP")), data]
with open(f"/run/lab/{host}/told", "a") as file:
    print(told, file=file)
if what in ("add", "remove"):
    verb = "replace" if what == "add" else "del"
    subprocess.run(["ip", "route", verb, os.environ["SUBNET"], "via", os.environ["PUBLIC_IP"]], check=True)
if what == "pre":
    print("data of", host)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("extension")
    script = directory / "tell me.py"
    script.write_text(TELL)
    command = f"python3 '{script}'"
    backend = {
        "Type": "extension",
        "PreStartupCommand": f"{command} pre",
        "PostStartupCommand": f"{command} post",
        "SubnetAddCommand": f"{command} add",
        "SubnetRemoveCommand": f"{command} remove",
    }
    network = json.dumps({"Network": "10.244.0.0/16", "Backend": backend})
    with cluster(directory, hosts=2, pods=1, network=network) as running:
        yield running


def told(two: Cluster, host: str = "host1") -> list[str]:
    path: Path = two.lab.host_path(host, "told")
    return path.read_text().splitlines()


def line(what: str, network: str | None, subnet: str | None, address: str | None, data: str) -> str:
    return str([what, network, subnet, address, data])


def test_the_commands_are_told_what_flannels_are_told_and_packets_flow(two: Cluster) -> None:
    own, other = two.subnet("host1"), two.subnet("host2")
    eventually(lambda: len(told(two)) == 3, 10, "three commands")
    assert told(two) == [
        line("pre", None, None, None, ""),
        line("post", "10.244.0.0/16", own, "172.31.9.1", "\n"),
        line("add", None, other, "172.31.9.2", "data of host2\n"),
    ]
    record = two.get(two.key("host1"))
    assert record is not None
    assert '"BackendType":"extension","BackendData":"data of host1","flanpy":{"node":"' in record["value"]
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 10, "the commands' routes carry packets")


def test_a_peer_that_comes_changes_and_goes_and_words_that_no_shell_sees(two: Cluster) -> None:
    key, mark = "subnets/10.244.251.0-24", len(told(two))
    for data in ("$(touch /run/lab/owned); `id`", "second"):
        value = {"PublicIP": "172.31.9.77", "PublicIPv6": None, "BackendType": "extension", "BackendData": data}
        two.put(key, json.dumps(value))
        eventually(lambda data=data: data in str(told(two)), 10, f"told of {data}")  # type: ignore[misc]
    two.delete(key)
    eventually(lambda: len(told(two)) == mark + 4, 10, "all is told")
    words = ("10.244.251.0/24", "172.31.9.77")
    first, second = "$(touch /run/lab/owned); `id`\n", "second\n"
    assert told(two)[mark:] == [
        line("add", None, *words, first),
        line("remove", None, *words, first),
        line("add", None, *words, second),
        line("remove", None, *words, second),
    ]
    assert not two.sandbox.path("/run/lab/owned").exists()


def test_data_that_is_no_text_is_refused_and_a_command_that_fails_is_said(two: Cluster) -> None:
    value = {"PublicIP": "192.0.2.9", "PublicIPv6": None, "BackendType": "extension", "BackendData": {"a": 1}}
    two.put("subnets/10.244.252.0-24", json.dumps(value))
    two.put("subnets/10.244.253.0-24", json.dumps({**value, "PublicIP": "198.51.100.9", "BackendData": "x"}))
    refused = 'lease subnets/10.244.252.0-24 refused: BackendData: {"a":1} is not a string'
    failed = "peer 10.244.253.0/24: 'python3' ended with status 1"

    def said() -> bool:
        problems = "\n".join(two.status("host1")["problems"])
        assert refused in problems, problems
        assert failed in problems, problems
        return True

    two.sandbox.run("host1", ["ip", "route", "add", "unreachable", "198.51.100.9"])
    eventually(said, 10, "both are said")
    for key in ("subnets/10.244.252.0-24", "subnets/10.244.253.0-24"):
        two.delete(key)
    eventually(lambda: two.status("host1")["problems"] == [], 10, "both are forgotten")
