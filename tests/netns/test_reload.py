"""A running agent reads its options file again, by ``flanpy reload`` and by SIGHUP: rules, health server, log and probes follow."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flanpy.config.agent_flags import AGENT_FLAGS
from flanpy.lab.cluster import IMPORT_PATH
from tests.support.clusters import Agent, Cluster, bare, eventually

BEFORE = 'log-level = "info"\nteardown = true\n'
AFTER = """
log-level = "debug"
teardown = true
ip-masq = true
healthz-ip = "127.0.0.1"
healthz-port = 8477
peer-probe-interval = 0
queues = 2
"""
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Cluster]:
    with bare(tmp_path) as running:
        yield running


def reloaded(agent: Agent) -> tuple[int, Any]:
    argv = [sys.executable, "-m", "flanpy", "reload", f"--run-dir={agent.files}/run", "--output", "json"]
    done = agent.owner.sandbox.run("host1", argv, env=IMPORT_PATH, check=False)
    return done.returncode, json.loads(done.stdout)


def test_changed_options_are_applied_or_named(host: Cluster) -> None:
    file = Path("/run/lab/agent.toml")
    there = host.sandbox.path(file)
    there.write_text(BEFORE)
    with Agent(host, f"--config={file}", "--datapath=userspace") as agent:
        agent.subnet()
        assert reloaded(agent) == (0, {"refused": False, "applied": [], "restart": [], "problems": []})
        pid = agent.status()["pid"]

        there.write_text(AFTER)
        applied = ["healthz-ip", "healthz-port", "ip-masq", "log-level", "peer-probe-interval"]
        assert reloaded(agent) == (1, {"refused": False, "applied": applied, "restart": ["queues"], "problems": []})
        eventually(lambda: "FLANNEL_IPMASQ=true" in agent.subnet_env.read_text(), 10, "subnet.env says it")
        assert "masquerade" in host.sandbox.run("host1", ["nft", "list", "ruleset"]).stdout
        assert "flanpy_ready 1" in fetch(host, "http://127.0.0.1:8477/metrics")
        assert (agent.status()["paths"], agent.status()["pid"]) == (None, pid)

        there.write_text("queues = 0\nnonsense = 1\n")
        status, answer = reloaded(agent)
        assert (status, answer["refused"], len(answer["problems"])) == (2, True, 2)

        there.write_text(BEFORE)
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: "FLANNEL_IPMASQ=false" in agent.subnet_env.read_text(), 10, "the rules went again")
        eventually(lambda: refused(host, "http://127.0.0.1:8477/healthz"), 10, "the health server has gone")
    assert "reloaded: healthz-ip, healthz-port, ip-masq, log-level, peer-probe-interval; needs a restart: queues" in agent.log


def fetch(host: Cluster, url: str) -> str:
    return host.sandbox.run("host1", [sys.executable, "-c", FETCH, url]).stdout


def refused(host: Cluster, url: str) -> bool:
    return host.sandbox.run("host1", [sys.executable, "-c", FETCH, url], check=False).returncode != 0


def test_a_health_port_that_is_taken_leaves_the_old_server_in_place(host: Cluster) -> None:
    file = Path("/run/lab/agent.toml")
    host.sandbox.path(file).write_text('healthz-ip = "127.0.0.1"\nhealthz-port = 8477\n')
    listener = host.sandbox.start(
        "host1", [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "8478"], "/run/lab/web.log"
    )
    try:
        with Agent(host, f"--config={file}", "--datapath=userspace") as agent:
            agent.subnet()
            eventually(lambda: fetch(host, "http://127.0.0.1:8478/"), 10, "the port is taken")
            host.sandbox.path(file).write_text('healthz-ip = "127.0.0.1"\nhealthz-port = 8478\n')
            status, answer = reloaded(agent)
            assert (status, answer["applied"]) == (1, [])
            assert "cannot listen on 127.0.0.1:8478" in answer["problems"][0]
            assert "flanpy_ready 1" in fetch(host, "http://127.0.0.1:8477/metrics")
    finally:
        host.sandbox.signal(listener, signal.SIGKILL)


def test_what_the_reference_calls_live_is_what_the_agent_applies(host: Cluster) -> None:
    """Every live option is changed at once; none of them may be among those that wait."""
    words = {
        "firewall": '"nft"',
        "healthz-ip": '"127.0.0.1"',
        "log-format": '"json"',
        "log-level": '"debug"',
        "peer-probe-interval": "60",
    }
    live = [flag for flag in AGENT_FLAGS if flag.live]
    lines = [f"{flag.name} = {words.get(flag.name) or other(flag.default)}" for flag in live]
    file = Path("/run/lab/agent.toml")
    host.sandbox.path(file).write_text("")
    with Agent(host, f"--config={file}", "--datapath=userspace") as agent:
        agent.subnet()
        host.sandbox.path(file).write_text("\n".join(lines))
        assert reloaded(agent) == (
            0,
            {"refused": False, "applied": sorted(flag.name for flag in live), "restart": [], "problems": []},
        )


def other(default: object) -> str:
    """Another value than the default."""
    return str(not default).lower() if isinstance(default, bool) else str(int(str(default)) + 100)
