"""`flanpy lab` as its users meet it, on a machine of the test's own that nobody else changes: two labs, one host each.

machine ── lab one ── etcd ── host1 ── host1-pod1
        └─ lab two ── etcd ── host1 ── host1-pod1
"""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.lab import FLANPY, Machine, machine
from tests.support.polling import soon


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machine(tmp_path_factory.mktemp("labs")) as made:
        empty = made.state()
        for name in ("one", "two"):
            made.flanpy("up", name, "--hosts", "1", "--pods", "1")
        yield made
        assert made.flanpy("down", "--all") == "one: gone\ntwo: gone\n"
        assert made.becomes(empty)


def names(here: Machine) -> list[str]:
    return [entry["name"] for entry in json.loads(here.flanpy("list", "--output", "json"))]


def test_labs_are_listed(here: Machine) -> None:
    assert names(here) == ["one", "two"]
    assert f"one: 1 host, 1 pod on each, held by process {here.holder('one')}\n" in here.flanpy("list")


def test_a_name_that_is_taken_is_refused(here: Machine) -> None:
    assert "one: a lab of this name runs already" in here.flanpy("up", "one", status=9)


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (("three", "--network", "10.5.0.0/31"), "Network", 3),
        (("three", "--hosts", "0"), "--hosts 0: a lab has 1 to 200 hosts", 2),
        (("three", "--pods", "101"), "--pods 101: a host has 0 to 100 pods", 2),
        (("three", "--mtu", "9"), "--mtu 9: must be 576 to 9000 bytes", 2),
        (("../three",), "a lab's name has 1 to 31 letters", 2),
        (("three", "--network-config", "/nowhere"), "--network-config: cannot read /nowhere", 2),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    here: Machine, words: tuple[str, ...], message: str, status: int
) -> None:
    before = here.state()
    assert message in here.flanpy("up", *words, status=status)
    assert here.state() == before
    assert sorted(entry.name for entry in here.labs.iterdir()) == [".lock", "one", "two"]


def test_several_labs_need_a_name(here: Machine) -> None:
    assert "which lab? there are: one, two" in here.flanpy("status", status=9)
    for words in (("one",), ("--lab", "one"), ("one", "--lab", "one")):
        assert json.loads(here.flanpy("status", *words, "--output", "json"))["name"] == "one"
    assert "--lab two: one is named too" in here.flanpy("status", "one", "--lab", "two", status=2)


def test_the_status_is_a_table_for_people(here: Machine) -> None:
    shown = here.flanpy("status", "--lab", "two")
    assert "lab two: held by process" in shown
    assert "host1-pod1 10.5." in shown


@pytest.mark.parametrize(("command", "status"), [("exit 7", 7), ("kill -TERM $$", 143), ("true", 0)])
def test_exec_passes_the_exit_status_on(here: Machine, command: str, status: int) -> None:
    here.flanpy("exec", "one", "host1-pod1", "--", "sh", "-c", command, status=status)


def test_exec_hands_its_terminal_over(here: Machine) -> None:
    controller, terminal = os.openpty()
    argv = [*FLANPY, "lab", "exec", "two", "host1", "--", "sh", "-c", "test -t 0 && test -t 1 && echo a terminal"]
    with open(terminal, "r+b", buffering=0) as file:  # noqa: PTH123
        process = here.sandbox.popen(None, argv, env=here.environment, stdin=file, stdout=file, stderr=file)
        assert process.wait(20) == 0
        assert b"a terminal" in os.read(controller, 1000)
    os.close(controller)


def test_exec_passes_sigterm_to_the_command(here: Machine) -> None:
    script = "trap 'exit 5' TERM; echo go; while :; do sleep 0.01; done"
    with here.start("exec", "one", "host1", "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.terminate()
        assert process.wait(20) == 5


def test_exec_in_a_place_or_of_a_program_that_is_not_there(here: Machine) -> None:
    assert "there are: host1, host1-pod1, etcd" in here.flanpy("exec", "one", "pod7", "--", "true", status=9)
    assert "nosuch: not found" in here.flanpy("exec", "one", "host1", "--", "nosuch", status=127)
    assert "/etc/passwd: may not be executed" in here.flanpy("exec", "one", "host1", "--", "/etc/passwd", status=126)


def test_exec_without_dashes_behind_a_labs_name_says_where_they_belong(here: Machine) -> None:
    said = here.flanpy("exec", "one", "host1", "ip", "route", status=2)
    assert "put -- before the command: flanpy lab exec one host1 -- ip route" in said


@pytest.mark.parametrize("where", [("one", "host1"), ("--lab", "one", "host1"), ("host1", "--lab", "one")])
def test_exec_takes_its_lab_in_every_way(here: Machine, where: tuple[str, ...]) -> None:
    here.flanpy("exec", *where, "--", "true")


def test_exec_finds_the_flanpy_that_runs_here_without_a_path(here: Machine) -> None:
    argv = [*FLANPY, "lab", "exec", "one", "host1", "--", "flanpy", "status"]
    assert "lease" in here.sandbox.run(None, argv, env={**here.environment, "PATH": "/usr/bin:/bin"}).stdout


def test_exec_works_in_the_callers_directory(here: Machine) -> None:
    argv = [*FLANPY, "lab", "exec", "one", "host1", "--", "pwd"]
    assert here.sandbox.run(None, argv, env=here.environment, cwd="/usr/lib").stdout == "/usr/lib\n"


def test_a_cable_is_cut_and_joined_by_command(here: Machine) -> None:
    def cable() -> str:
        return host()["cable"]

    def agent() -> str:
        return host()["agent"]

    def host() -> dict[str, str]:
        found: dict[str, str] = json.loads(here.flanpy("status", "--lab", "one", "--output", "json"))["hosts"][0]
        return found

    here.flanpy("cut", "one", "host1")
    assert cable() == "cut"
    assert soon(lambda: agent() == "degraded", 30)
    here.flanpy("join", "--lab", "one", "host1")
    assert cable() == "plugged"
    assert "give --loss PERCENT, --rate MBIT or both" in here.flanpy("impair", "--lab", "one", "host1", status=2)
    assert "--loss 101: must be 0 to 100" in here.flanpy("impair", "one", "host1", "--loss", "101", status=2)


def test_an_agent_is_killed_and_started_again_by_command(here: Machine) -> None:
    here.flanpy("stop", "two", "host1", "--kill")
    assert "the agent of host1 does not run" in here.flanpy("stop", "two", "host1", status=9)
    here.flanpy("start", "two", "host1")
    assert "the agent of host1 runs already" in here.flanpy("start", "two", "host1", status=9)


def test_etcd_is_stopped_and_started_again_by_command(here: Machine) -> None:
    here.flanpy("stop", "two", "etcd")
    here.flanpy("start", "two", "etcd")
    assert "10.5." in here.flanpy("exec", "two", "host1", "--", "flanpy", "leases")


def test_logs_are_the_agents_own_words(here: Machine) -> None:
    assert "subnet.env written" in here.flanpy("logs", "--lab", "one", "host1")
    assert "serving client traffic" in here.flanpy("logs", "--lab", "one", "etcd")


def test_a_lab_whose_holder_was_killed_is_gone_with_everything(here: Machine) -> None:
    before = here.state()
    here.flanpy("up", "victim", "--hosts", "2", "--pods", "1")
    assert here.state() != before
    here.sandbox.signal(here.holder("victim"), signal.SIGKILL)
    assert here.becomes(before)
    assert "victim: no lab of this name (there are: one, two)" in here.flanpy("status", "--lab", "victim", status=9)
    assert not (here.labs / "victim").exists()


def test_a_start_that_is_killed_leaves_nothing(here: Machine) -> None:
    before = here.state()
    with here.start("up", "half", "--hosts", "2") as process:
        here.holder("half")
        process.kill()
    assert here.becomes(before)
    assert names(here) == ["one", "two"]
    assert not (here.labs / "half").exists()


def test_a_start_that_is_interrupted_says_that_nothing_is_left(here: Machine) -> None:
    before = here.state()
    with here.start("up", "half", "--hosts", "2") as process:
        here.holder("half")
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.read().endswith("\ninterrupted; everything is removed\n")
        assert process.wait(20) == 130
    assert here.becomes(before)


def test_down_ends_one_lab_and_no_other(here: Machine) -> None:
    before = here.state()
    here.flanpy("up", "short", "--hosts", "1", "--pods", "0")
    assert here.flanpy("down", "short") == "short: gone\n"
    assert here.becomes(before)
    assert names(here) == ["one", "two"]
