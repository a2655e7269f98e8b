"""The operator's commands where packets of pods, or the underlay, are IPv6 alone: ``tests.support.six`` draws the topology."""

import json
import sys
from collections.abc import Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

from flanpy.lab.cluster import IMPORT_PATH
from tests.support.clusters import eventually
from tests.support.six import Six, six


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Six]:
    with six(tmp_path_factory.mktemp("logs"), "udp", "6", "6", flags=("--peer-probe-interval=1",)) as running:
        (target,) = running.pods("host2-pod1")
        eventually(lambda: running.answers("host1-pod1", target), 15, "the pods reach each other")
        yield running


def flanpy(two: Six, *words: str) -> CompletedProcess[str]:
    return two.flanpy("host1", *words, check=False)


def answer(two: Six, *words: str) -> Any:
    return json.loads(flanpy(two, *words, "--output", "json").stdout)


def test_paths_are_probed(two: Six) -> None:
    eventually(lambda: answer(two, "peers")["peers"][0]["path"]["state"] == "ok", 30, "the path works")


def test_a_ping_and_a_trace_tell_the_way(two: Six) -> None:
    (target,) = two.pods("host2-pod1")
    (source,) = two.pods("host1-pod1")
    found = answer(two, "ping", str(target), "--count", "2", "--interval", "0.01")
    assert (found["received"], found["mtu_bytes"]) == (2, 1452)
    steps = answer(two, "trace", str(source), str(target))["steps"]
    assert [step["what"] for step in steps] == ["pod", "route", "table", "underlay", "node"]
    assert "-> [fd31:9::2]:8285" in steps[2]["text"]
    assert answer(two, "ping", "fd31:9::2", "--count", "1")["received"] == 1


def test_a_capture_shows_the_outer_and_the_inner_packet(two: Six) -> None:
    (target,) = two.pods("host2-pod1")
    argv = [sys.executable, "-m", "flanpy", "capture", "--pod", str(target), "--side", "outer", "--count", "1"]
    process = two.sandbox.popen("host1", argv, env={**IMPORT_PATH, **two.lab.agent_settings("host1")})
    try:
        assert process.stderr is not None
        assert "capturing at eth0" in process.stderr.readline()
        assert two.answers("host1-pod1", target)
        out, _ = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=15)
    assert "fd31:9::1.8285 > fd31:9::2.8285 udp" in out
    assert f"> {target} icmpv6 104 echo request" in out


def test_the_doctor_finds_the_way_open(two: Six) -> None:
    found = {check["name"]: check for check in answer(two, "doctor")["checks"]}
    assert found["path to fd31:9::2"]["level"] == "ok", found
    assert found["overlay to fd31:9::2"]["reason"].startswith("UDP port 8285 is open both ways, packets of 1452 bytes")
