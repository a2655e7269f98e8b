"""The datapath process can do nothing but carry packets, and neither a hostile client nor its own end disturbs that.

etcd, host1 and host2 with an agent, a flanpy-datapath (userspace) and a pod each, as in test_datapath_process.py
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from flanpy.datapath.core import lib
from flanpy.datapath.process_life import EXECUTABLE
from flanpy.datapath.process_user import datapath_user
from tests.support.clusters import Cluster, cluster, eventually
from tests.support.probes import probes


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, datapath="userspace") as made:
        yield made


@pytest.fixture
def two(running: Cluster) -> Iterator[Cluster]:
    """The cluster, in sync again after the test."""
    yield running
    if running.lab.agent_pid("host1") is None:
        running.lab.start_agents(["host1"])
    eventually(lambda: running.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other again after the test")


def process(two: Cluster) -> dict[str, Any]:
    """What the agent of host1 says of its datapath process."""
    found: dict[str, Any] = two.status("host1")["datapath"]["process"]
    return found


def test_a_process_that_is_killed_again_and_again_comes_back(two: Cluster) -> None:
    for _ in range(3):
        before = process(two)["pid"]
        two.sandbox.signal(before, signal.SIGKILL)
        eventually(lambda before=before: process(two)["pid"] != before, 5, "there is another process")
    assert two.ping("host1-pod1", "host2-pod1") == 3


def test_a_hanging_agent_costs_nothing(two: Cluster) -> None:
    with probes(two) as stream:
        two.lab.signal_agent("host1", signal.SIGSTOP)
        stream.wait(500)
        two.lab.signal_agent("host1", signal.SIGCONT)
        stream.wait(100)
    assert stream.losses == ()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_killed_or_stopped_while_no_agent_runs_is_replaced_by_the_next_agent(two: Cluster, number: int) -> None:
    """One that is stopped is given REPLY_TIMEOUT_S (3 s) to answer, and little more is lost between the looks."""
    pid = process(two)["pid"]
    two.lab.stop_agent("host1", signal.SIGKILL)
    two.sandbox.signal(pid, number)
    begun_s = time.monotonic()
    two.lab.start_agents(["host1"])
    eventually(lambda: process(two)["pid"] != pid and two.status("host1")["ready"], 20, "the agent is ready")
    assert time.monotonic() - begun_s < 9, "less than half of this on a quiet machine"
    assert process(two)["adopted"] is False
    assert not two.sandbox.process_alive(pid)


@pytest.mark.parametrize("news", [True, False])
def test_a_process_that_hangs_is_said_and_replaced(two: Cluster, news: bool) -> None:
    """SIGSTOP: it holds the descriptors, and packets wait. The agent says so, answers meanwhile, and replaces it."""
    before, longest_s, said, mark = process(two), 0.0, set[str](), len(two.log("host1"))
    two.sandbox.signal(before["pid"], signal.SIGSTOP)
    if news:
        two.put("subnets/10.244.249.0-24", '{"PublicIP":"172.31.9.99","PublicIPv6":null}')

    def replaced() -> bool:
        nonlocal longest_s
        begun_s = time.monotonic()
        status = two.status("host1")
        longest_s = max(longest_s, time.monotonic() - begun_s)
        said.update(status["problems"])
        return bool(status["datapath"]["process"]["pid"] != before["pid"])

    try:
        eventually(replaced, 20, "there is another process")
    finally:
        if news:
            two.delete("subnets/10.244.249.0-24")
    assert longest_s < 3, "the loop waits for a second at most; the rest is room for a busy machine"
    said.update(two.log("host1")[mark:].splitlines())  # a busy agent may first look when it is time to replace it
    assert any(f"process {before['pid']}" in line and ("answer" in line or "taken its place" in line) for line in said), said
    assert not two.sandbox.process_alive(before["pid"])


def test_other_settings_are_taken_over_without_loss(two: Cluster) -> None:
    """The next agent wants other settings: another process takes over on the same descriptors, and the device stays."""
    before, spec = process(two)["pid"], two.lab.spec
    index = json.loads(two.sandbox.run("host1", ["ip", "-j", "link", "show", "flannel0"]).stdout)[0]["ifindex"]
    try:
        with probes(two) as stream:
            two.lab.spec = replace(spec, agent_flags=(*spec.agent_flags, "--spin-us=100"))
            two.lab.stop_agent("host1")
            two.lab.start_agents(["host1"])
            eventually(lambda: process(two)["pid"] != before, 20, "another process has taken over")
            stream.wait(200)
    finally:
        two.lab.spec = spec
    assert stream.losses == ()
    assert not two.sandbox.process_alive(before)
    assert json.loads(two.sandbox.run("host1", ["ip", "-j", "link", "show", "flannel0"]).stdout)[0]["ifindex"] == index


def test_the_process_has_no_privilege(two: Cluster) -> None:
    """As the kernel sees it: user, capabilities, seccomp, no new privileges; limits; nothing open but its own."""
    pid = process(two)["pid"]
    proc = two.sandbox.path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    uid, gid = map(str, datapath_user())
    assert (set(status["Uid"].split()), set(status["Gid"].split())) == ({uid}, {gid})
    assert uid != "65534", "nobody is other daemons' user, too"
    assert (proc / "mem").stat().st_uid == 0, "not dumpable: nobody of its user looks into its memory or attaches"
    assert status["Groups"].strip() == ""
    assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert all((task / "status").read_text().split("Seccomp:\t")[1].split("\n")[0] == "2" for task in (proc / "task").iterdir())
    limits = {line[:26].strip(): line[26:].split()[:2] for line in (proc / "limits").read_text().splitlines()[1:]}
    assert limits["Max processes"] == limits["Max core file size"] == limits["Max file size"] == ["0", "0"]
    assert int(limits["Max open files"][1]) <= 64
    opened = sorted(str(fd.readlink()).split(":")[0].removesuffix(" (deleted)") for fd in (proc / "fd").iterdir())
    assert set(opened) <= {"/dev/null", "/dev/net/tun", "socket", "anon_inode", "/memfd"}
    assert not (proc / "environ").read_bytes()
    assert str((proc / "cwd").readlink()) == "/"


def test_what_an_intruder_would_try_is_refused_from_inside() -> None:
    """The executable tries it itself, confined as for packets, in a thread that was there before the filter."""
    done = subprocess.run(
        [str(EXECUTABLE), "65534", "65534", "--try-forbidden"], capture_output=True, text=True, timeout=30, check=False
    )
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert (lines.pop("limits"), lines.pop("filter")) == ("set", "on")
    assert set(lines.values()) == {"EPERM"}
    assert {"open", "socket", "execve", "fork", "kill_self", "ptrace", "mount", "ioctl", "bpf", "setuid"} <= set(lines)
    assert done.returncode == 0


def test_nobody_starts_it_by_hand() -> None:
    done = subprocess.run([str(EXECUTABLE)], capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, "it is not for use by hand" in done.stderr) == (2, True)


INTRUDER = """
import os, socket, sys
os.setgroups([]); os.setgid(12345); os.setuid(12345)
talk = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
talk.settimeout(3)
try:
    talk.connect(sys.argv[1])
    talk.send(bytes.fromhex("6670647001000400100000000000000000"[:32]))
    print(len(talk.recv(100)))
except OSError as error:
    print(type(error).__name__)
"""


def hostile(two: Cluster, packets: list[bytes], fds: int = 0) -> list[bytes]:
    """Send these to the process of host1 as root, each on a connection of its own, with so many descriptors; the answers."""
    answers = []
    for packet in packets:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as talk:
            talk.settimeout(5)
            talk.connect(str(two.lab.host_path("host1", "run", "datapath.sock")))
            null = os.open(os.devnull, os.O_RDONLY)
            try:
                socket.send_fds(talk, [packet], [null] * fds)
                answers.append(talk.recv(4096))
            finally:
                os.close(null)
    return answers


def message(
    kind: int, body: bytes = b"", version: int = lib.FP_PROTOCOL_VERSION, magic: bytes = b"fpdp", length: int | None = None
) -> bytes:
    return b"".join(
        (
            magic,
            version.to_bytes(2, sys.byteorder),
            kind.to_bytes(2, sys.byteorder),
            (16 + len(body) if length is None else length).to_bytes(4, sys.byteorder),
            bytes(4),
            body,
        )
    )


def error_of(answer: bytes) -> int:
    return int.from_bytes(answer[12:16], sys.byteorder, signed=True)


def test_hostile_packets_are_refused_and_harm_nobody(two: Cluster) -> None:
    pid = process(two)["pid"]
    with probes(two) as stream:
        packets = [
            b"x",
            bytes(15),
            message(1, magic=b"none"),
            message(99),
            message(1, b"more"),
            message(1, length=17),
            message(2, bytes(500), version=lib.FP_PROTOCOL_VERSION + 1),
            message(2, bytes(3)),
            message(3, (1 << 40).to_bytes(8, sys.byteorder)),
            message(3, (64).to_bytes(8, sys.byteorder)),
            bytes(5000),
        ]
        answers = hostile(two, packets)
        assert [error_of(answer) for answer in answers] == [-71, -71, -71, -71, -71, -71, -93, -71, -22, -9, -90]
        for packet in (message(1), message(4), message(3, (64).to_bytes(8, sys.byteorder))):
            assert [error_of(answer) for answer in hostile(two, [packet], fds=200)] == [-90], "more than it has room for"
        assert [error_of(answer) for answer in hostile(two, [message(4)], fds=1)] == [-9], "a stop with a descriptor is none"
        assert [error_of(a) for a in hostile(two, [message(3, (64).to_bytes(8, sys.byteorder))], fds=1)] == [-22], "no memfd"
        held = message(6, (64).to_bytes(8, sys.byteorder))
        assert [error_of(a) for a in hostile(two, [held], fds=1)] == [-22], "nothing to hold"
        assert [error_of(a) for a in hostile(two, [held], fds=2)] == [-22], "nor with whom to wait for"
        assert [error_of(a) for a in hostile(two, [held], fds=3) + hostile(two, [held])] == [-9, -9]
        assert [error_of(a) for a in hostile(two, [message(5), message(5, b"more")])] == [0, -71]
        assert [error_of(a) for a in hostile(two, [message(5)], fds=1)] == [-9]
        stream.wait(100)
    assert stream.losses == ()
    assert process(two)["pid"] == pid
    opened = len(list(two.sandbox.path(f"/proc/{pid}/fd").iterdir()))
    assert opened <= 48, "no descriptor was kept"


def test_a_stranger_may_not_talk_even_if_he_could_reach_the_socket(two: Cluster) -> None:
    run_dir = two.lab.host_path("host1", "run")
    pid = process(two)["pid"]
    run_dir.chmod(0o755)
    (run_dir / "datapath.sock").chmod(0o777)
    try:
        script = [sys.executable, "-c", INTRUDER, two.lab.agent_settings("host1")["FLANPY_RUN_DIR"] + "/datapath.sock"]
        assert two.sandbox.run("host1", script).stdout.strip() in {"0", "ConnectionResetError", "BrokenPipeError"}
    finally:
        (run_dir / "datapath.sock").chmod(0o600)
        run_dir.chmod(0o700)
    assert process(two)["pid"] == pid


def test_connections_beyond_the_bound_wait_and_harm_nobody(two: Cluster) -> None:
    path = str(two.lab.host_path("host1", "run", "datapath.sock"))
    pid = process(two)["pid"]
    opened = []
    for _ in range(14):
        talk = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        talk.connect_ex(path)
        opened.append(talk)
    try:
        assert two.ping("host1-pod1", "host2-pod1") == 3
    finally:
        for talk in opened:
            talk.close()
    assert [error_of(answer) for answer in hostile(two, [message(1)])] == [0]
    assert process(two)["pid"] == pid


def test_an_attempt_that_works_would_be_noticed() -> None:
    """Without the filter, what changes nothing is tried in the same way, and works."""
    command = [str(EXECUTABLE), "65534", "65534", "--try-unfiltered"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert {"open worked", "socket worked", "kill_self worked", "mmap_executable worked"} <= set(done.stdout.splitlines())
    assert done.returncode == 1
