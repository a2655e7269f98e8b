"""A pod's life, as docs/pods.md walks through it: real containers (runc, busybox), real agents, Debian's plugins.

    outside 172.31.9.254 (etcd)
──── underlay ──┬────────────────────────┬────
            host1 172.31.9.1         host2 172.31.9.2
             flannel0                 flannel0
             cni0 ┬ shop ┬ server     cni0 ─ client
                  │      └ writer …
                  └ neighbour
"""

import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import runc
from tests.support.clusters import Cluster, eventually
from tests.support.cni import DEBIAN_PLUGINS, Answer, Runtime, cni_cluster
from tests.support.hops import Seen, listening, seen
from tests.support.runc import Container

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples/pods"
VOLUME = "/run/lab/volume"
PEER = """
import socket
with socket.create_server(("", 5001)) as server:
    print("listening", flush=True)
    server.settimeout(10)
    connection, (address, _) = server.accept()
    connection.sendall(address.encode())
"""
ASK = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10).makefile().read())"


@dataclass(frozen=True, slots=True)
class Life:
    """Two nodes with their pods; ``answers`` are the results of their ADDs."""

    cluster: Cluster
    host1: Runtime
    answers: dict[str, Answer]

    def address(self, pod: str) -> str:
        """A pod's address."""
        return self.answers[pod].address

    def get(self, pod: str | None, address: str, path: str, port: int = 8080) -> tuple[int, str]:
        """Status and text of a page, asked for from inside a pod (None: from outside)."""
        with self.cluster.sandbox.enter(pod):
            connection = http.client.HTTPConnection(address, port, timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            finally:
                connection.close()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    logs = tmp_path_factory.mktemp("life")
    with cni_cluster(logs) as (cluster, (host1, host2)):
        runc.prepare(cluster.sandbox)
        root = cluster.sandbox.path(runc.ROOT)
        for name, place in (("proxy", "www/proxy/cgi-bin"), ("app", "www/app/cgi-bin"), ("writer", "bin")):
            (root / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(EXAMPLES / f"{name}.sh", root / place / name)
        flags = ["-std=c11", "-static", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
        subprocess.run(["cc", *flags, EXAMPLES / "messages.c", "-o", logs / "messages"], check=True)
        shutil.copy(logs / "messages", root / "bin/messages")
        answers = {"shop": host1.add("shop"), "neighbour": host1.add("neighbour"), "client": host2.add("client")}
        yield Life(cluster, host1, answers)


@pytest.fixture
def start(life: Life) -> Iterator[Callable[..., Container]]:
    """Starts containers of the pod ``shop``, which share network, IPC and volume with the first one; all end with the test."""
    with ExitStack() as stack:
        started: list[Container] = []

        def begin(name: str, script: str, pod: str = "shop") -> Container:
            beside = started[0] if started else None
            made = runc.start(life.cluster.sandbox, name, script, pod=pod, volume=VOLUME, beside=beside)
            stack.callback(made.delete)
            started.append(made)
            return made

        shutil.rmtree(life.cluster.sandbox.path(VOLUME), ignore_errors=True)
        yield begin


# ------------------------------------------------------------------------------------------------ in one pod


def test_a_one_container_writes_a_page_every_second_and_another_serves_it(life: Life, start: Callable[..., Container]) -> None:
    server, writer = start("server", "exec httpd -f -p 8080 -h /data"), start("writer", "exec writer")
    for kind, shared in (("net", True), ("ipc", True), ("pid", False), ("mnt", False)):
        assert (server.namespace(kind) == writer.namespace(kind)) is shared, kind
    pages: set[str] = set()

    def changes() -> bool:
        status, page = life.get("client", life.address("shop"), "/page")
        pages.update([page] if status == 200 else [])
        return len(pages) >= 3

    eventually(changes, 15, "the page changes")
    assert sorted(pages, key=lambda page: int(page.split()[1])) == [f"written {number}\n" for number in _numbers(pages)]


def _numbers(pages: set[str]) -> list[int]:
    return sorted(int(page.removeprefix("written ")) for page in pages)


@pytest.mark.parametrize("first", ["consumer", "producer"])
def test_b_two_containers_exchange_messages_whoever_starts_first(life: Life, start: Callable[..., Container], first: str) -> None:
    start("pause", "exec sleep 600")  # keeps the IPC namespace while the others come and go, as runtimes do it
    scripts = {
        "consumer": "messages consumer /data/got; exec sleep 600",
        "producer": "messages producer 5000; echo $? >/data/sent; exec sleep 600",
    }
    waiting = start(first, scripts.pop(first))
    if first == "producer":  # more than the queue holds: it waits for its consumer, however long that takes
        eventually(lambda: _messages_waiting(life, waiting) > 0, 10, "messages wait in the queue")
    ((second, script),) = scripts.items()
    start(second, script)
    got = life.cluster.sandbox.path(VOLUME) / "got"
    eventually(lambda: got.is_file() and got.read_text().endswith("exit\n"), 10, "the exit message has come")
    assert got.read_text().splitlines() == [*(f"message {number}" for number in range(1, 5001)), "exit"]
    sent = life.cluster.sandbox.path(VOLUME) / "sent"
    eventually(lambda: sent.is_file() and sent.read_text() == "0\n", 10, "the producer has ended well")


def _messages_waiting(life: Life, container: Container) -> int:
    """How many messages the queue of the pod's IPC namespace holds (proc_sysvipc(5))."""
    head, *queues = container.exec("cat", "/proc/sysvipc/msg").splitlines()
    return sum(int(queue.split()[head.split().index("qnum")]) for queue in queues)


def test_c_a_reverse_proxy_hands_on_to_an_app_over_localhost(life: Life, start: Callable[..., Container]) -> None:
    start("proxy", "exec httpd -f -p 8080 -h /www/proxy")
    shop, client = life.address("shop"), life.address("client")
    eventually(lambda: life.get("client", shop, "/cgi-bin/proxy/hello")[0] == 502, 10, "the proxy is there, the app is not")
    start("app", "exec httpd -f -p 127.0.0.1:9000 -h /www/app")
    eventually(lambda: life.get("client", shop, "/cgi-bin/proxy/hello")[0] == 200, 10, "the app is there too")
    assert life.get("client", shop, "/cgi-bin/proxy/hello") == (200, f"/hello for [::ffff:{client}]\n")
    assert life.get("client", shop, "/cgi-bin/proxy/a;b")[0] == 400
    with pytest.raises(ConnectionRefusedError):
        life.get("client", shop, "/cgi-bin/app/hello", port=9000)


# ------------------------------------------------------------------------------------------------ between pods


def test_d_two_pods_of_one_node_meet_on_the_bridge_and_the_overlay_counts_nothing(
    life: Life, start: Callable[..., Container]
) -> None:
    start("server", "mkdir -p /data && echo near >/data/page && exec httpd -f -p 8080 -h /data")
    before = [life.cluster.verdicts(host) for host in ("host1", "host2")]
    eventually(lambda: life.get("neighbour", life.address("shop"), "/page") == (200, "near\n"), 10, "the page is served")
    assert [life.cluster.verdicts(host) for host in ("host1", "host2")] == before
    with listening(life.cluster.sandbox, [("host1", "flannel0"), ("host1", "eth0"), ("neighbour", "eth0")]) as ears:
        life.cluster.sandbox.run("shop", ["ping", "-n", "-c1", "-W2", life.address("neighbour")])
        assert seen(ears, life.address("neighbour")) == [Seen("neighbour eth0", 64, None)]


def test_e_a_packet_to_another_node_is_seen_at_every_hop(life: Life) -> None:
    places = [("shop", "eth0"), ("host1", "cni0"), ("host1", "flannel0"), ("host1", "eth0")]
    places += [("host2", "eth0"), ("host2", "flannel0"), ("host2", "cni0"), ("client", "eth0")]
    client, outer = life.address("client"), ("172.31.9.1", "172.31.9.2")
    with listening(life.cluster.sandbox, places) as ears:
        life.cluster.sandbox.run("shop", ["ping", "-n", "-c1", "-W2", client])
        assert seen(ears, client) == [
            Seen("shop eth0", 64, None),
            Seen("host1 cni0", 64, None),  # the pod's default gateway
            Seen("host1 flannel0", 63, None),  # host1 routes it to the overlay
            Seen("host1 eth0", 62, outer),  # the datapath is a hop too, at either end
            Seen("host2 eth0", 62, outer),
            Seen("host2 flannel0", 61, None),
            Seen("host2 cni0", 60, None),
            Seen("client eth0", 60, None),
        ]


# ------------------------------------------------------------------------------------------------ in and out


@contextmanager
def peer(life: Life, place: str | None) -> Iterator[None]:
    """A server on port 5001 that tells each client its address."""
    server = life.cluster.sandbox.popen(place, [sys.executable, "-ISc", PEER])
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        yield
    finally:
        server.kill()
        server.communicate()


def test_f_a_pod_reaches_the_outside_under_its_node_s_address(life: Life) -> None:
    with peer(life, None):
        outside = str(life.cluster.lab.plan.services_address)
        said = life.cluster.sandbox.run("shop", [sys.executable, "-ISc", ASK, outside, "5001"]).stdout
    assert said == "172.31.9.1\n"


def test_f_the_outside_reaches_a_pod_by_a_published_port(life: Life, start: Callable[..., Container]) -> None:
    start("server", "mkdir -p /data && echo public >/data/page && exec httpd -f -p 8080 -h /data")
    eventually(lambda: life.get("neighbour", life.address("shop"), "/page")[0] == 200, 10, "the page is served")
    with pytest.raises(OSError, match="refused"):
        life.get(None, "172.31.9.1", "/page", 8000)
    portmap(life, "ADD", "shop", 8000)
    try:
        assert life.get(None, "172.31.9.1", "/page", 8000) == (200, "public\n")
        assert life.get("client", "172.31.9.1", "/page", 8000) == (200, "public\n")
    finally:
        portmap(life, "DEL", "shop", 8000)
    with pytest.raises(OSError, match="refused"):
        life.get(None, "172.31.9.1", "/page", 8000)


def portmap(life: Life, command: str, pod: str, port: int) -> None:
    """What a runtime does with the second plugin of the conflist: portmap, with the result of ours."""
    config = {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "portmap",
        "capabilities": {"portMappings": True},
        "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 8080, "protocol": "tcp"}]},
        "prevResult": life.answers[pod].json,
    }
    names = {"CNI_CONTAINERID": f"id-{pod}", "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0"}
    env = {"CNI_COMMAND": command, "CNI_PATH": DEBIAN_PLUGINS, **names}
    process = life.cluster.sandbox.popen("host1", [f"{DEBIAN_PLUGINS}/portmap"], env=env, stdin=subprocess.PIPE)
    out, err = process.communicate(json.dumps(config), timeout=30)
    assert process.returncode == 0, (out, err)
