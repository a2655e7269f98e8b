"""What the lab shows, as text: widths, interruptions, and figures that are too noisy."""

from dataclasses import replace

import pytest

from flanpy.lab.compare import Comparison
from flanpy.lab.screen import Screen
from flanpy.lab.status import HostStatus, LabStatus, PodStatus


def host(number: int, agent: str = "ready") -> HostStatus:
    pods = tuple(PodStatus(f"host{number}-pod{pod}", f"10.5.{100 + number}.{pod + 1}") for pod in (1, 2))
    return HostStatus(
        name=f"host{number}",
        underlay=f"172.31.9.{number}",
        cable="plugged",
        loss_percent=0.0,
        rate_mbit=0.0,
        subnet=f"10.5.{100 + number}.0/24",
        agent=agent,
        agent_pid=7,
        datapath="userspace",
        peers=2,
        problems=(),
        pods=pods,
    )


def shown(capsys: pytest.CaptureFixture[str], *hosts: HostStatus) -> list[str]:
    Screen().status(LabStatus("lab", 1, "http://172.31.9.254:2379", 2, "superpacket", "/tmp/logs", hosts))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_status_of_80_columns_has_a_line_for_each_host_and_its_pods(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(capsys, host(1), host(2, "degraded"))
    assert lines[-4:] == [
        "host1  172.31.9.1  plugged  10.5.101.0/24  ready     userspace      2",
        "host2  172.31.9.2  plugged  10.5.102.0/24  degraded  userspace      2",
        "host1-pod1 10.5.101.2  host1-pod2 10.5.101.3",
        "host2-pod1 10.5.102.2  host2-pod2 10.5.102.3",
    ]
    assert max(map(len, lines)) <= 80


def test_with_ipv6_subnets_and_pods_have_both_addresses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    pod = PodStatus("host1-pod1", "10.5.101.254", "fd00:5:0:7::fe")
    lines = shown(capsys, replace(host(1), subnet6="fd00:5:0:7::/64", pods=(pod,)))
    assert lines[-2:] == [
        "host1  172.31.9.1  plugged  10.5.101.0/24 fd00:5:0:7::/64  ready  userspace      2",
        "host1-pod1 10.5.101.254 fd00:5:0:7::fe",
    ]


def test_output_that_is_piped_is_as_wide_as_columns_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "word " * 24 + "end"
    for columns, lines in (("60", 3), ("200", 1)):
        monkeypatch.setenv("COLUMNS", columns)
        Screen().say(text)
        assert len(capsys.readouterr().out.splitlines()) == lines
    monkeypatch.delenv("COLUMNS")
    Screen().say(text)
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_says_that_nothing_stays(capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    with pytest.raises(type(error)), Screen() as screen:
        screen.working("etcd")
        raise error
    assert capsys.readouterr().out.splitlines()[-1] == "interrupted; everything is removed"


@pytest.mark.parametrize(("values", "noisy"), [((3.0, 1.0, 2.0), False), ((3.1, 1.0, 2.0), True)])
def test_rounds_that_are_more_than_three_times_apart_are_noise(values: tuple[float, ...], noisy: bool) -> None:
    assert Comparison("wire", {"flanpy": values, "plain routing": (1.0, 1.0, 1.0)}).noisy() is noisy
