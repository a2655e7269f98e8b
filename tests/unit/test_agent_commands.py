"""Orders over the control socket, /metrics of the health server, and what the service manager hears."""

import json
import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from flanpy.agent import control, health
from flanpy.agent.commands import carry_out
from flanpy.agent.events import EventQueue
from flanpy.agent.health import HealthServer
from flanpy.agent.logs import ROOT
from flanpy.agent.notify import ServiceManager, watchdog_s
from tests.support.answers import STATUS
from tests.support.edges import answering_loop


def echo(command: str, arguments: Any) -> dict[str, Any]:
    return {"ok": True, "command": command, "arguments": dict(arguments), "peers": [], **STATUS}


@pytest.fixture
def loop() -> Iterator[EventQueue]:
    """A loop that carries out what it is asked, until the test ends."""
    with answering_loop(lambda item: carry_out(item.command, item.arguments, echo, dict, dict)) as events:
        yield events


@pytest.fixture
def run_dir(loop: EventQueue, tmp_path: Path) -> Iterator[Path]:
    server = control.ControlServer(tmp_path, loop)
    server.start()
    yield tmp_path
    server.close()


@pytest.fixture
def level() -> Iterator[logging.Logger]:
    """The agent's logger, put back afterwards."""
    logger = logging.getLogger(ROOT)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(before)


def test_arguments_reach_the_loop(run_dir: Path) -> None:
    answer = control.ask(run_dir, "status", arguments={"brief": True})
    assert (answer["command"], answer["arguments"]) == ("status", {"brief": True})


@pytest.mark.parametrize("arguments", ["[]", "1", '"x"', "null"])
def test_arguments_that_are_no_object_are_refused(run_dir: Path, arguments: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(run_dir / control.SOCKET_NAME))
        client.sendall(f'{{"command": "status", "arguments": {arguments}}}\n'.encode())
        answer = json.loads(client.makefile().read())
    assert (answer["ok"], "arguments: expected an object" in answer["error"]) == (False, True)


def test_the_log_level_is_shown_and_set(run_dir: Path, level: logging.Logger) -> None:
    assert control.ask(run_dir, "log-level")["level"] == "info"
    assert control.ask(run_dir, "log-level", arguments={"level": "debug"}) == {"ok": True, "level": "debug", "before": "info"}
    assert level.level == logging.DEBUG


@pytest.mark.parametrize("wrong", ["loud", "", 10, ["debug"], {"a": 1}, "CRITICAL"])
def test_a_wrong_log_level_is_refused_and_changes_nothing(level: logging.Logger, wrong: object) -> None:
    answer = carry_out("log-level", {"level": wrong}, echo, dict, dict)
    assert answer == {"ok": False, "error": "level: expected one of debug, info, warning, error"}
    assert level.level == logging.INFO


def get(port: int, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_metrics_are_served_as_prometheus_text(loop: EventQueue) -> None:
    server = HealthServer("127.0.0.1", 0, loop)
    server.start()
    try:
        status, kind, text = get(server.port, "/metrics")
    finally:
        server.close()
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'flanpy_datapath_packets_total{verdict="encapsulated"} 1204\n' in text
    assert "process_resident_memory_bytes " in text


def test_a_loop_that_hangs_makes_every_path_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ANSWER_TIMEOUT_S", 0.05)
    server = HealthServer("127.0.0.1", 0, SimpleQueue())
    server.start()
    try:
        assert [get(server.port, path)[0] for path in ("/metrics", "/healthz", "/readyz")] == [503, 503, 503]
    finally:
        server.close()


# ------------------------------------------------------------------------------------------------ service manager


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_for_us_or_not(environment: dict[str, str], seconds: float | None) -> None:
    assert watchdog_s(environment, 7) == seconds


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def heard(receiver: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(receiver.recv(1000).decode())
        except BlockingIOError:
            return found


def test_the_status_is_told_when_it_changes_and_the_watchdog_each_time(manager: socket.socket) -> None:
    service = ServiceManager({"WATCHDOG_USEC": "1500000"}, most_s=1.0)
    for status in ("ready", "ready", "degraded: etcd"):
        service.tell(status)
    assert heard(manager) == ["STATUS=ready\nWATCHDOG=1", "WATCHDOG=1", "STATUS=degraded: etcd\nWATCHDOG=1"]
    assert service.interval_s == 0.5


def test_without_a_watchdog_only_news_are_told(manager: socket.socket) -> None:
    service = ServiceManager({}, most_s=1.0)
    for status in ("ready", "ready"):
        service.tell(status)
    assert (heard(manager), service.interval_s) == (["STATUS=ready"], 1.0)
