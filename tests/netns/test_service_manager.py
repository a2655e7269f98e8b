"""What the service manager is to the agent: it keeps descriptors, and grants few privileges. systemd's part is played here.

etcd 172.31.9.254 ──── underlay ──── host1 172.31.9.1 (eth0, default route), an agent that finds $NOTIFY_SOCKET
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flanpy.agent.privileges import ALWAYS, NUMBERS
from flanpy.datapath.sockets import sockets_of
from flanpy.lab.cluster import IMPORT_PATH
from flanpy.lab.process import environment
from tests.support.clusters import Agent, Cluster, bare, eventually

UNDER_A_MANAGER = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as manager:
    manager.connect("/run/lab/store")
    names, fds, _, _ = socket.recv_fds(manager, 4096, 64)
for place, fd in enumerate(fds):
    os.dup2(fd, 100 + place)
for place in range(len(fds)):
    os.dup2(100 + place, 3 + place)
os.closerange(3 + len(fds), 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names.decode())
os.execv(sys.executable, [sys.executable, "-m", "flanpy", "agent", *sys.argv[1:]])
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Cluster]:
    with bare(tmp_path) as running:
        yield running


class Manager:
    """The receiving end of sd_notify(3), with a descriptor store as systemd has one."""

    def __init__(self, host: Cluster) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(host.sandbox.path("/run/lab/notify")))
        self.socket.settimeout(0.1)
        self.giver = socket.socket(socket.AF_UNIX)
        self.giver.bind(str(host.sandbox.path("/run/lab/store")))
        self.giver.listen()
        self.store: list[tuple[str, int]] = []
        self.polled = False

    def listen(self) -> None:
        """Take in what has come."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 4096, 64)
            except TimeoutError:
                return
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            if fields.get("FDSTOREREMOVE") == "1":
                self.remove(fields["FDNAME"])
            if fields.get("FDSTORE") == "1":
                self.polled |= fields.get("FDPOLL") != "0"
                self.store += [(fields["FDNAME"], fd) for fd in fds]

    def remove(self, name: str) -> None:
        for fd in (fd for kept, fd in self.store if kept == name):
            os.close(fd)
        self.store = [item for item in self.store if item[0] != name]

    def give(self) -> None:
        """Let the agent that starts have the store; nobody in between may, who would keep a port or a device longer than it does."""
        names = self.names
        with self.giver.accept()[0] as taker:
            socket.send_fds(taker, [":".join(names).encode()], [fd for _, fd in self.store])

    @property
    def names(self) -> list[str]:
        self.listen()
        return [name for name, _ in self.store]

    def close(self) -> None:
        for name in {name for name, _ in self.store}:
            self.remove(name)
        self.socket.close()
        self.giver.close()


@contextmanager
def manager(host: Cluster) -> Iterator[Manager]:
    made = Manager(host)
    try:
        yield made
    finally:
        made.close()


def device_index(host: Cluster) -> int:
    return int(json.loads(host.sandbox.run("host1", ["ip", "-j", "link", "show", "flannel0"]).stdout)[0]["ifindex"])


def process_of(host: Cluster, run_dir: str = "/run/lab/a/run") -> int:
    """The datapath process, inside's numbering."""
    ask = "import sys; from pathlib import Path; from flanpy.agent.datapaths import running_process as r; print(r(Path(sys.argv[1])) or 0)"
    return int(host.sandbox.run("host1", [sys.executable, "-c", ask, run_dir], env=IMPORT_PATH).stdout)


@contextmanager
def restarted(host: Cluster, systemd: Manager, *flags: str) -> Iterator[Path]:
    """Another agent, which gets what the store has and tears down at the end of the block: its log."""
    log = host.lab.logs / "second.log"
    own = ["--state-dir=/run/lab/a/state", "--run-dir=/run/lab/a/run", "--subnet-file=/run/lab/a/subnet.env"]
    argv = [sys.executable, "-c", UNDER_A_MANAGER, *own, f"--etcd-endpoints={host.lab.etcd_url}", *flags, "--teardown"]
    second = subprocess.Popen(
        host.sandbox.command("host1", argv),
        env=environment({**IMPORT_PATH, "NOTIFY_SOCKET": "/run/lab/notify"}),
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        systemd.give()
        yield log
    finally:
        inner = int(host.sandbox.path("/run/lab/a/run/agent.lock").read_text())
        host.sandbox.signal(inner, signal.SIGTERM)
        second.wait(timeout=15)


@pytest.mark.parametrize("queues", [1, 2])
def test_device_and_sockets_survive_when_agent_and_process_are_killed(host: Cluster, queues: int) -> None:
    flags = ["--datapath=userspace", f"--queues={queues}"]
    wanted = ["flanpy-tun"] * queues + ["flanpy-udp"] * sockets_of(queues)
    with manager(host) as systemd:
        with Agent(host, *flags, env={"NOTIFY_SOCKET": "/run/lab/notify"}) as agent:
            agent.says("ready: subnet")
            assert (systemd.names, systemd.polled) == (wanted, False)
            index, pid = device_index(host), process_of(host)
            agent.stop(signal.SIGKILL)
        host.sandbox.signal(pid, signal.SIGKILL)
        eventually(lambda: not host.sandbox.process_alive(pid), 5, "the process has ended")
        assert device_index(host) == index, "the store holds the device"
        with restarted(host, systemd, *flags) as log:
            eventually(lambda: "ready: subnet" in log.read_text(), 20, "the second agent is ready")
            assert device_index(host) == index
            assert systemd.names == wanted, "those of before have been replaced"
            assert process_of(host) not in (0, pid)
        assert systemd.names == [], "a torn down datapath is forgotten"
    links = [link["ifname"] for link in json.loads(host.sandbox.run("host1", ["ip", "-j", "link"]).stdout)]
    assert "flannel0" not in links


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_what_the_store_has_is_no_obstacle_to_an_agent_with_other_queues(host: Cluster, first: int, then: int) -> None:
    with manager(host) as systemd:
        with Agent(host, "--datapath=userspace", f"--queues={first}", env={"NOTIFY_SOCKET": "/run/lab/notify"}) as agent:
            agent.says("ready: subnet")
            pid, _ = process_of(host), systemd.listen()
            agent.stop(signal.SIGKILL)
        with restarted(host, systemd, "--datapath=userspace", f"--queues={then}") as log:

            def is_ready() -> bool:
                systemd.listen()
                return "ready: subnet" in log.read_text()

            eventually(is_ready, 20, "the second agent is ready")
            assert systemd.names.count("flanpy-tun") == then
            assert process_of(host) not in (0, pid)


@pytest.mark.parametrize("datapath", ["userspace", "ebpf"])
def test_the_agent_keeps_the_capabilities_that_it_needs_and_no_other(host: Cluster, datapath: str) -> None:
    with Agent(host, f"--datapath={datapath}", "--ip-masq", "--healthz-port=8471") as agent:
        agent.says("ready: subnet")
        pid = int(host.sandbox.path("/run/lab/a/run/agent.lock").read_text())
        tasks = list(host.sandbox.path(f"/proc/{pid}/task").iterdir())
        assert len(tasks) > 3
        wanted = sum(1 << NUMBERS[name] for name in ALWAYS)
        for task in tasks:
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            sets = {name: int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
            assert sets == {"Inh": 0, "Prm": wanted, "Eff": wanted, "Bnd": wanted, "Amb": 0}
            assert status["NoNewPrivs"] == "1"


def test_capabilities_are_kept_when_asked_for(host: Cluster) -> None:
    with Agent(host, "--keep-capabilities", "--datapath=userspace") as agent:
        agent.says("ready: subnet")
        pid = int(host.sandbox.path("/run/lab/a/run/agent.lock").read_text())
        status = host.sandbox.path(f"/proc/{pid}/status").read_text()
        assert int(status.split("CapEff:\t")[1].split("\n")[0], 16) & 1, "CAP_CHOWN, for one"


def test_the_agent_works_where_no_memory_can_become_executable(host: Cluster) -> None:
    """What the unit's MemoryDenyWriteExecute= asks for, as the kernel itself offers it (PR_SET_MDWE, Linux 6.3 and newer)."""
    script = (
        "import ctypes, os, sys; "
        "assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) in (0, -1); "
        "os.execv(sys.executable, [sys.executable, '-m', 'flanpy', 'agent', *sys.argv[1:]])"
    )
    flags = ["--state-dir=/run/lab/w/state", "--run-dir=/run/lab/w/run", "--subnet-file=/run/lab/w/subnet.env", "--ip-masq"]
    log = host.lab.logs / "w.log"
    with log.open("w") as output:
        argv = [sys.executable, "-c", script, *flags, f"--etcd-endpoints={host.lab.etcd_url}"]
        started = host.sandbox.popen("host1", argv, env=IMPORT_PATH, stdout=output, stderr=output)
    try:
        eventually(lambda: "ready: subnet" in log.read_text(), 20, "the agent is ready")
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(timeout=15)


EXPOSURE_MOST = 2.5


def test_the_unit_is_exposed_little() -> None:
    unit = Path(__file__).parents[2] / "config" / "flanpy.service"
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MOST * 10:.0f}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Overall exposure level" in done.stdout, done.stderr
    said = float(done.stdout.split("Overall exposure level for flanpy.service: ")[1].split()[0])
    assert said <= EXPOSURE_MOST, done.stdout
