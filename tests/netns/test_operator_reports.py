"""``flanpy capture`` and ``flanpy bugreport`` on real clusters: whole packets in the file, no planted secret in the archive."""

import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.utils import rdpcap

from flanpy.lab.cluster import IMPORT_PATH
from tests.support.clusters import Cluster, cluster, eventually


@pytest.fixture(scope="module", params=["userspace", "ebpf"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, datapath=request.param) as running:
        assert eventually(lambda: running.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other")
        yield running


def flanpy(two: Cluster, *words: str, env: dict[str, str] | None = None) -> CompletedProcess[str]:
    return two.flanpy("host1", *words, check=False, env=env or {})


@contextmanager
def capturing(two: Cluster, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A capture on host1 that has begun to look."""
    argv = [sys.executable, "-m", "flanpy", "capture", *words]
    process = two.sandbox.popen("host1", argv, env={**IMPORT_PATH, **two.lab.agent_settings("host1")})
    try:
        assert process.stderr is not None
        assert "capturing at" in process.stderr.readline()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=15)


def test_a_ping_is_seen_inside_and_outside_in_the_order_of_its_way(two: Cluster) -> None:
    """With ebpf what goes out is seen outside alone; what comes in is seen on both sides with either datapath."""
    source, target = two.pod("host1-pod1"), two.pod("host2-pod1")
    kind = two.status("host1")["datapath"]["kind"]
    expected = 4 if kind == "userspace" else 3
    with capturing(two, "--pod", source, "--count", str(expected)) as process:
        assert two.ping("host1-pod1", "host2-pod1", 1) == 1
        out, _ = process.communicate(timeout=30)
    shown = [re.sub(r"^\S+ +", "", re.sub(r"seq \d+", "seq N", line)) for line in out.splitlines()]
    request, answer = f"{source} > {target} icmp 84 echo request seq N", f"{target} > {source} icmp 84 echo reply seq N"
    lines = [
        f"flannel0 out  {request} ttl 63",
        f"eth0     out  172.31.9.1.8285 > 172.31.9.2.8285 udp 112 [{request} ttl 62]",
        f"eth0     in   172.31.9.2.8285 > 172.31.9.1.8285 udp 112 [{answer} ttl 62]",
        f"flannel0 in   {answer} ttl 61",
    ]
    assert shown == lines[4 - expected :]


def test_a_file_holds_whole_packets_of_one_peer(two: Cluster) -> None:
    file = Path("/run/lab/peer.pcapng")
    with capturing(two, "--peer", "172.31.9.2", "--side", "outer", "--count", "2", "--write", str(file)) as process:
        assert two.ping("host1-pod1", "host2-pod1", 1) == 1
        process.communicate(timeout=30)
    packets = rdpcap(io.BytesIO(two.sandbox.path(file).read_bytes()))
    inner = [IP(bytes(packet[UDP].payload)) for packet in packets]
    assert [(packet[IP].src, packet[UDP].dport) for packet in packets] == [("172.31.9.1", 8285), ("172.31.9.2", 8285)]
    assert [(packet.src, packet[ICMP].type) for packet in inner] == [(two.pod("host1-pod1"), 8), (two.pod("host2-pod1"), 0)]


def test_a_capture_ends_with_its_time_and_leaves_out_what_was_not_asked_for(two: Cluster) -> None:
    other = two.subnet("host2").replace(".0/24", ".77")
    with capturing(two, "--pod", other, "--seconds", "1", "--output", "json") as process:
        two.ping("host1-pod1", "host2-pod1", 2)
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", 0)


def test_what_is_not_known_or_not_possible_is_refused(two: Cluster) -> None:
    assert flanpy(two, "capture", "--peer", "nobody").returncode == 2
    assert flanpy(two, "capture", "--count", "0").returncode == 2
    assert flanpy(two, "capture", "--count", "1", "--write", "/nonexistent/file").returncode == 2


SECRETS = ("hunter2-PLANTED", "psk-PLANTED", "key-PLANTED", "url-PLANTED", "rule-PLANTED")


def test_a_bug_report_holds_the_nodes_state_and_no_planted_secret(two: Cluster) -> None:
    log = Path("/run/lab/planted.log")
    lines = ("etcd says no to hunter2-PLANTED", '{"Backend": {"PSK": "psk-PLANTED"}}', "http://root:url-PLANTED@10.0.0.1:2379")
    key = "-----BEGIN PRIVATE KEY-----\nkey-PLANTED\n-----END PRIVATE KEY-----"
    two.sandbox.path(log).write_text("\n".join((*lines, key)))
    two.sandbox.run("host1", ["nft", 'add table inet planted { comment "password=rule-PLANTED" ; }'])
    try:
        words = ("bugreport", "--file", "/run/lab/report.tar.gz", "--log", str(log), "--output", "json")
        done = flanpy(two, *words, env={"FLANPY_ETCD_PASSWORD": "hunter2-PLANTED"})
    finally:
        two.sandbox.run("host1", ["nft", "delete table inet planted"])
    assert done.returncode == 0, done.stderr
    archive_bytes = two.sandbox.path("/run/lab/report.tar.gz").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(archive_bytes)) as archive:
        texts = {
            entry.name.split("/", 1)[1]: (archive.extractfile(entry) or io.BytesIO()).read().decode(errors="replace")
            for entry in archive
        }
    assert [(name, secret) for name, text in texts.items() for secret in SECRETS if secret in text] == []
    assert "planted" in texts["nft-ruleset.txt"]
    assert json.loads(texts["agent-status.json"])["network"] == "10.244.0.0/16"
    assert json.loads(texts["agent-options.json"])["options"]["iface"] == ["eth0"]
    assert "etcd-password" not in json.loads(texts["agent-options.json"])["options"]
    assert "net/ipv4/ip_forward = 1" in texts["settings.txt"].replace("ip_forward = 1\n", "ip_forward = 1")
    assert "10.244.0.0/16 dev flannel0" in texts["ip-route.txt"]
    assert {"versions.txt", "doctor.txt", "agent-peers.json", "agent-routes.json", "log-file.txt"} <= set(texts)
