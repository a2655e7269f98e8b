"""A lab from inside this process: real etcd, real agents, and what can be done to them.

etcd ── underlay ─┬─ host1 ── host1-pod1        (two hosts, one pod each; the demo makes three and six)
                  └─ host2 ── host2-pod1
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from flanpy.cni.install import install
from flanpy.errors import LabError, UsageError
from flanpy.lab import demo, lifecycle
from flanpy.lab.cluster import Lab
from flanpy.lab.screen import Screen
from flanpy.lab.status import agent_status, read_status
from flanpy.lab.traffic import PingResult, TunnelCount, ping_all, wait_for_ping
from tests.support.cni import Runtime
from tests.support.lab import ROOT, lab_spec, running_lab
from tests.support.polling import eventually


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("labs"), lab_spec()) as running:
        yield running


def pings(lab: Lab, count: int = 2) -> list[int]:
    a, b = lab.segment().pods
    return [result.received for result in ping_all(lab.sandbox, [(a, b), (b, a)], count)]


def test_pods_of_different_hosts_reach_each_other_through_the_agents(lab: Lab) -> None:
    before = agent_status(lab, "host1")["datapath"]["verdicts"]["encapsulated"]["packets"]
    assert pings(lab) == [2, 2]
    assert agent_status(lab, "host1")["datapath"]["verdicts"]["encapsulated"]["packets"] - before == 4


def test_pods_and_hosts_have_names(lab: Lab) -> None:
    assert lab.sandbox.run("host1-pod1", ["ping", "-c", "1", "host2-pod1"]).returncode == 0
    assert lab.sandbox.run("host1", ["ping", "-c", "1", "etcd"]).returncode == 0


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_with_ipv6_in_the_network_config_pods_have_both_families_at_once(tmp_path: Path, backend: str) -> None:
    config = {"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd05::/48", "Backend": {"Type": backend}}
    with running_lab(tmp_path, replace(lab_spec(), network_config=json.dumps(config))) as lab:
        assert [
            lab.sandbox.run(place, ["ip", "-6", "address", "show", "tentative"]).stdout for place in lab.sandbox.places()
        ] == [""] * 4
        for family in ("-6", "-4"):
            assert lab.sandbox.run("host1-pod1", ["ping", family, "-n", "-c1", "-W5", "host2-pod1"], check=False).returncode == 0


def test_a_pod_of_a_cni_plugin_finds_room_beside_the_labs_pods(lab: Lab, tmp_path: Path) -> None:
    install(tmp_path)
    runtime = Runtime(lab.sandbox, "host1", tmp_path)
    answer = runtime.add("guest")
    try:
        lease = lab.lease("host1")
        assert lease is not None
        assert answer.address == str(lease.subnet[2])
        for target in ("host1-pod1", "host2-pod1"):
            assert lab.sandbox.run("guest", ["ping", "-n", "-c1", "-W5", target], check=False).returncode == 0
    finally:
        assert runtime.call("DEL", "guest").status == 0
        lab.sandbox.script("ip netns del guest")


def test_a_network_config_without_ipv4_is_refused_by_name(tmp_path: Path) -> None:
    config = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd05::/48"}
    with (
        pytest.raises(UsageError, match="EnableIPv4 has to be true"),
        running_lab(tmp_path, replace(lab_spec(), network_config=json.dumps(config))),
    ):
        pass


def test_pods_get_the_mtu_that_the_agents_lease_leaves(lab: Lab) -> None:
    assert lab.lease("host1") is not None
    links = json.loads(lab.sandbox.run("host1-pod1", ["ip", "-j", "link", "show", "eth0"]).stdout)
    assert links[0]["mtu"] == 1472


def test_the_status_is_what_there_is(lab: Lab) -> None:
    status = read_status(lab)
    assert [(host.name, host.cable, host.agent, host.datapath, host.peers) for host in status.hosts] == [
        ("host1", "plugged", "ready", "userspace", 1),
        ("host2", "plugged", "ready", "userspace", 1),
    ]
    lease = lab.lease("host1")
    assert lease is not None
    assert (status.hosts[0].subnet, status.hosts[0].pods[0].address) == (str(lease.subnet), str(lease.subnet[-2]))


def test_the_status_shows_what_was_done_to_a_cable(lab: Lab) -> None:
    lab.cut("host2")
    lab.impair("host2", loss_percent=12.5, rate_mbit=80)
    try:
        host = read_status(lab).hosts[1]
        assert (host.cable, host.loss_percent, host.rate_mbit) == ("cut", 12.5, 80)
    finally:
        lab.impair("host2", loss_percent=0, rate_mbit=0)
        lab.join("host2")
    host = read_status(lab).hosts[1]
    assert (host.cable, host.loss_percent, host.rate_mbit) == ("plugged", 0, 0)


@pytest.mark.parametrize(("loss", "rate"), [(-1.0, None), (101.0, None), (None, -1.0), (None, 1e9)])
def test_an_impossible_impairment_is_refused(lab: Lab, loss: float | None, rate: float | None) -> None:
    with pytest.raises(UsageError, match="must be 0"):
        lab.impair("host1", loss_percent=loss, rate_mbit=rate)


def test_a_killed_agent_comes_back_to_its_own_subnet(lab: Lab) -> None:
    before = lab.lease("host2")
    lab.stop_agent("host2", signal.SIGKILL)
    assert read_status(lab).hosts[1].agent == "stopped"
    lab.start_agents(["host2"])
    assert lab.lease("host2") == before
    a, b = lab.segment().pods
    assert wait_for_ping(lab.sandbox, a, b, 10) is not None


def test_etcd_keeps_its_data_when_it_is_killed_and_started_again(lab: Lab) -> None:
    lab.stop_etcd(signal.SIGKILL)
    assert pings(lab, 1) == [1, 1]
    lab.start_etcd()
    subnets = "import base64, http.client, json, sys; c = http.client.HTTPConnection(sys.argv[1]); "
    subnets += "k = lambda s: base64.b64encode(s.encode()).decode(); r = {'key': k('/coreos.com/network/subnets/'), "
    subnets += "'range_end': k('/coreos.com/network/subnets0'), 'count_only': True}; "
    subnets += "c.request('POST', '/v3/kv/range', json.dumps(r)); print(json.load(c.getresponse())['count'])"
    count = [sys.executable, "-c", subnets, lab.etcd_url.removeprefix("http://")]
    eventually(lambda: lab.sandbox.run(None, count, check=False).stdout == "2\n", 10, "both leases are there")
    eventually(lambda: [host.agent for host in read_status(lab).hosts] == ["ready", "ready"], 10, "the agents know it")


def test_an_agent_that_runs_is_not_started_again(lab: Lab) -> None:
    with pytest.raises(LabError, match="the agent of host1 runs already"):
        lab.start_agents(["host1"])


def test_an_unknown_host_is_named_with_those_that_there_are(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"host9: no such host in this lab \(there are: host1, host2\)"):
        lab.cut("host9")


def test_the_demo_finds_an_agent_that_does_not_run_and_names_its_log(lab: Lab) -> None:
    demo.show_leases(lab, Screen())
    lab.stop_agent("host2")
    try:
        with pytest.raises(
            LabError, match=r"(?s)host2: its agent should be ready with 1 peers: stopped.*logs/host2.log and ends:"
        ):
            demo.show_leases(lab, Screen())
    finally:
        lab.start_agents(["host2"])


NOTHING = TunnelCount(0, 0, 0)


@pytest.mark.parametrize(
    ("bridged", "crossed"),
    [
        (TunnelCount(1, 0, 0), TunnelCount(4, 4, 4)),
        (TunnelCount(0, 1, 0), TunnelCount(4, 4, 4)),
        (NOTHING, TunnelCount(0, 4, 4)),
        (NOTHING, TunnelCount(4, 3, 4)),
        (NOTHING, TunnelCount(4, 4, 3)),
    ],
)
def test_the_demo_does_not_believe_wrong_counters(lab: Lab, bridged: TunnelCount, crossed: TunnelCount) -> None:
    demo.check_counters(lab, {"host1": NOTHING}, {"host1": TunnelCount(1, 4, 4)}, {"host1": 4})
    with pytest.raises(LabError, match=r"(?s)host1: .*logs/host1.log"):
        demo.check_counters(lab, {"host1": bridged}, {"host1": crossed}, {"host1": 4})


def test_the_demo_does_not_believe_lost_pings(lab: Lab) -> None:
    a, b = lab.segment().pods
    with pytest.raises(LabError, match=r"(?s)host1-pod1 to host2-pod1: 1 of 3 pings had no answer.*host1.log.*host2.log"):
        demo.check_answers(lab, [PingResult(b, a, 3, 3, 0.1), PingResult(a, b, 3, 2, 0.1)])


def test_an_agent_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"(?s)the agent of host1 has ended; its log is (\S+) and ends:.*no-such-flag") as caught:
        with running_lab(tmp_path, lab_spec(hosts=1, agent_flags=("--no-such-flag",))):
            pass
    log = str(caught.value).split("its log is ")[1].split()[0]
    assert "no-such-flag" in Path(log).read_text()


def test_two_labs_of_the_same_shape_live_side_by_side(lab: Lab, tmp_path: Path) -> None:
    with running_lab(tmp_path, lab_spec("other", network="10.5.0.0/16")) as other:
        assert pings(other) == [2, 2]
        other.cut("host1")
        assert pings(lab) == [2, 2]


def test_a_lab_found_again_is_the_same_lab(tmp_path: Path) -> None:
    with running_lab(tmp_path, lab_spec("again", hosts=1)) as lab:
        found = lifecycle.attach("again")
        assert (found.spec, found.sandbox.pid, found.agent_pid("host1")) == (lab.spec, lab.sandbox.pid, lab.agent_pid("host1"))


NOBODY = 65534


@pytest.fixture
def labs_of_nobody() -> Iterator[Path]:
    """Not below tmp_path, which is root's alone: each start of pytest closes it for others again. A lab that is left ends."""
    with TemporaryDirectory(prefix="flanpy-labs-") as directory:
        os.chown(directory, NOBODY, NOBODY)
        yield Path(directory)
        for record in Path(directory).glob("*/lab.json"):
            os.kill(int(json.loads(record.read_text())["holder"]), signal.SIGKILL)


def test_a_lab_needs_no_root_where_tun_may_be_opened(labs_of_nobody: Path) -> None:
    """As user nobody, without any capability, with /dev/net/tun as Debian has it (0666) in a mount namespace of the test."""
    python = python_of_everybody()
    command = f"{python} -m flanpy lab"
    script = f"""
        mount -t tmpfs tmpfs /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun
        exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --bounding-set=-all sh -eu -c '
            {command} up mine --hosts 2 --pods 1
            {command} exec host1-pod1 -- ping -q -c 2 -W 2 host2-pod1
            {command} exec host1 -- id -u
            {command} down'
    """
    paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("-packages"))])
    variables = {**os.environ, "FLANPY_LAB_DIR": str(labs_of_nobody), "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-eu", "-c", script], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0% packet loss" in done.stdout
    assert done.stdout.endswith("\n0\nmine: gone\n")


def python_of_everybody() -> str:
    """An interpreter of this version that the user nobody may run."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3"):
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        probe = [*drop, "sh", "-c", f"exec {python} -c 'import sys; print(sys.version_info[1])'"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.stdout.strip() == str(sys.version_info.minor):
            return python
    pytest.skip(f"no python3.{sys.version_info.minor} that the user nobody may run")
