"""Changed options of a running agent: which are applied, which wait, what a wrong file does. Real options, parts that remember."""

import argparse
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flanpy.agent.peer_paths import PeerPaths
from flanpy.agent.reload import Reload
from flanpy.config.agent_flags import AGENT_FLAGS
from flanpy.config.options import AgentOptions, add_agent_flags, load_agent_options
from flanpy.errors import ResourceBusy, UsageError


def options(*words: str) -> AgentOptions:
    parser = argparse.ArgumentParser()
    add_agent_flags(parser)
    return load_agent_options(parser.parse_args(words), {})


class Part:
    def __init__(self, problem: str = "") -> None:
        self.seen: list[AgentOptions] = []
        self._problem = problem

    def __call__(self, new: AgentOptions) -> None:
        if self._problem:
            raise ResourceBusy(self._problem)
        self.seen.append(new)


def test_what_is_live_is_applied_and_the_rest_waits_for_a_restart() -> None:
    before, now = options(), options("--ip-masq", "--queues=3", "--log-level=debug")
    reload, masquerading, others = Reload(before, lambda: now), Part(), Part()
    reload.add(("ip_masq", "log_level"), masquerading)
    reload.add(("teardown",), others)
    assert reload.reload(ready=False) == {
        "ok": True,
        "refused": False,
        "applied": ["ip-masq", "log-level"],
        "restart": ["queues"],
        "problems": [],
    }
    assert (masquerading.seen, others.seen) == ([replace(before, ip_masq=True, log_level="debug")], [])
    assert reload.options == replace(before, ip_masq=True, log_level="debug")


def test_what_waits_is_named_again_and_what_is_applied_is_not() -> None:
    now = options("--ip-masq", "--queues=3")
    reload = Reload(options(), lambda: now)
    reload.add(("ip_masq",), part := Part())
    reload.reload(ready=False)
    again = reload.reload(ready=False)
    assert (again["applied"], again["restart"], len(part.seen)) == ([], ["queues"], 1)


def test_what_cannot_be_applied_is_said_and_tried_again() -> None:
    reload = Reload(options(), lambda: options("--healthz-port=80", "--ip-masq"))
    reload.add(("healthz_ip", "healthz_port"), Part("--healthz-port: taken"))
    reload.add(("ip_masq",), part := Part())
    for applied in (["ip-masq"], []):
        answer = reload.reload(ready=False)
        assert (answer["applied"], answer["problems"]) == (applied, ["--healthz-port: taken"])
    assert (len(part.seen), reload.options.healthz_port) == (1, 0)


def test_a_wrong_file_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> AgentOptions:
        raise UsageError("agent.toml: queues: 'x' is not a whole number\nagent.toml: quues: unknown option")

    reload = Reload(options(), load)
    reload.add(("ip_masq",), part := Part())
    answer = reload.reload(ready=False)
    assert (answer["refused"], answer["applied"], len(answer["problems"]), part.seen) == (True, [], 2, [])
    assert "queues: 'x' is not a whole number; agent.toml: quues: unknown option" in caplog.text


def test_the_endpoint_of_an_etcd_of_our_own_is_no_change_of_the_operators() -> None:
    before = options("--embedded-etcd")
    reload = Reload(before, lambda: before)
    reload.begin_with(replace(before, etcd_endpoints=("http://127.0.0.1:2379",)))
    assert reload.reload(ready=False)["restart"] == []
    assert reload.options.etcd_endpoints == ("http://127.0.0.1:2379",)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield found


def test_the_service_manager_hears_when_a_reload_begins_and_ends(manager: socket.socket) -> None:
    Reload(options(), options).reload(ready=True)
    first, second = manager.recv(4096).decode(), manager.recv(4096).decode()
    assert first.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(first.rpartition("=")[2]) > 0
    assert second == "READY=1"


def test_an_agent_that_is_not_ready_does_not_say_so_by_a_reload(manager: socket.socket) -> None:
    Reload(options(), options).reload(ready=False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_every_option_that_is_marked_live_is_one_and_has_a_place_in_the_values() -> None:
    live = {flag.key for flag in AGENT_FLAGS if flag.live}
    assert live
    assert live <= set(AgentOptions.__slots__)


def test_other_probe_intervals_cost_no_descriptor() -> None:
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    paths = PeerPaths(5.0, 8286)
    before = held()
    for words in (["--peer-probe-interval=3"], ["--peer-probe-interval=4"]):
        paths.use(options(*words))
    assert held() == before
    paths.close()
    assert held() == before - 1
