"""`flanpy docker-opts`: what flannel's mk-docker-opts.sh writes, read back as a shell and as dockerd do."""

import argparse
import json
import os
import subprocess
from ipaddress import IPv4Interface, IPv6Network
from pathlib import Path

import pytest

from flanpy.cli.main import main

ENV = """FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.72.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ={}
"""
DUAL = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("subnet.env").write_text(ENV.format("true"))
    for name in [name for name in os.environ if name.startswith("DOCKER_OPT")]:
        monkeypatch.delenv(name)


def written(*flags: str) -> str:
    assert main(["docker-opts", "-f", "subnet.env", "-d", "docker.env", *flags]) == 0
    return Path("docker.env").read_text()


def sourced(name: str) -> str:
    """The variable as a shell has it after reading the file; split into words as dockerd's unit does."""
    return subprocess.run(
        ["sh", "-ec", f'. ./docker.env; printf %s "${name}"'], capture_output=True, text=True, check=True
    ).stdout


def boolean(text: str) -> bool:
    """As Go's strconv.ParseBool, which dockerd's flags go through."""
    return {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}[text.lower()]


def as_dockerd(words: str) -> dict[str, object]:
    """The options by dockerd's own reference: --bip and --fixed-cidr-v6 are CIDRs, --mtu a number, --ip-masq and --ipv6 booleans."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--bip", type=IPv4Interface)
    parser.add_argument("--mtu", type=int)
    parser.add_argument("--ip-masq", type=boolean)
    parser.add_argument("--ipv6", action="store_const", const=True)
    parser.add_argument("--fixed-cidr-v6", type=IPv6Network)
    return {name: value for name, value in vars(parser.parse_args(words.split())).items() if value is not None}


def test_without_flags_there_are_single_variables_and_all_in_one() -> None:
    assert written() == (
        'DOCKER_OPT_BIP="--bip=10.5.72.1/24"\n'
        'DOCKER_OPT_IPMASQ="--ip-masq=false"\n'
        'DOCKER_OPT_MTU="--mtu=1472"\n'
        'DOCKER_OPTS="--bip=10.5.72.1/24 --ip-masq=false --mtu=1472"\n'
    )
    assert Path("docker.env").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("-i",), ["DOCKER_OPT_BIP", "DOCKER_OPT_IPMASQ", "DOCKER_OPT_MTU"]),
        (("-c",), ["DOCKER_OPTS"]),
        (("-c", "-k", "OPTIONS"), ["OPTIONS"]),
        (("-i", "-m"), ["DOCKER_OPT_BIP", "DOCKER_OPT_MTU"]),
        (("-ic", "-m"), ["DOCKER_OPT_BIP", "DOCKER_OPT_MTU", "DOCKER_OPTS"]),
    ],
)
def test_the_flags_choose_as_those_of_flannel_s_script(flags: tuple[str, ...], names: list[str]) -> None:
    assert [line.split("=")[0] for line in written(*flags).splitlines()] == names


@pytest.mark.parametrize(("flannel", "docker"), [("true", False), ("false", True)])
def test_docker_masquerades_exactly_where_the_agent_does_not(flannel: str, docker: bool) -> None:
    Path("subnet.env").write_text(ENV.format(flannel))
    written("-c")
    assert as_dockerd(sourced("DOCKER_OPTS")) == {"bip": IPv4Interface("10.5.72.1/24"), "mtu": 1472, "ip_masq": docker}


def test_ipv6_is_given_where_it_is_asked_for_and_there() -> None:
    written("-c", "--ipv6")
    assert "ipv6" not in as_dockerd(sourced("DOCKER_OPTS"))
    Path("subnet.env").write_text(ENV.format("true") + DUAL)
    written("-c", "--ipv6", "-m")
    assert as_dockerd(sourced("DOCKER_OPTS")) == {
        "bip": IPv4Interface("10.5.72.1/24"),
        "mtu": 1472,
        "ipv6": True,
        "fixed_cidr_v6": IPv6Network("fd00:5:0:7::/64"),
    }
    written("-c", "-m")
    assert "ipv6" not in as_dockerd(sourced("DOCKER_OPTS"))


def test_more_options_come_from_the_environment_and_stay_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_OPTS", "--debug")
    monkeypatch.setenv("DOCKER_OPT_LABEL", '--label="a$(touch hacked)`touch hacked`\\b"\nX=1')
    written()
    label = '--label="a$(touch hacked)`touch hacked`\\b" X=1'
    assert sourced("DOCKER_OPT_LABEL") == label
    assert sourced("DOCKER_OPTS") == f"--debug --bip=10.5.72.1/24 --ip-masq=false {label} --mtu=1472"
    assert not Path("hacked").exists()


def test_a_dash_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docker-opts", "-f", "subnet.env", "-d", "-", "-i", "-m"]) == 0
    assert capsys.readouterr().out == 'DOCKER_OPT_BIP="--bip=10.5.72.1/24"\nDOCKER_OPT_MTU="--mtu=1472"\n'


@pytest.mark.parametrize(
    ("text", "flags", "status", "message"),
    [
        (None, (), 3, "subnet.env: not there, or no text; it is written when the agent is ready"),
        ("FLANNEL_SUBNET=10.5.72.1/24\n", (), 3, "FLANNEL_MTU is missing, for example FLANNEL_MTU=1472"),
        (ENV.format("perhaps"), (), 3, "FLANNEL_IPMASQ='perhaps' is wrong"),
        (ENV.format("true"), ("-k", "A B"), 2, "-k A B: not the name of a variable, such as DOCKER_OPTS"),
        (ENV.format("true"), ("-d", "/proc/nowhere/docker.env"), 5, "-d /proc/nowhere/docker.env: cannot be written"),
    ],
)
def test_what_is_missing_or_wrong_is_said_and_leaves_the_file(
    text: str | None, flags: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("docker.env").write_text("before")
    if text is None:
        Path("subnet.env").unlink()
    else:
        Path("subnet.env").write_text(text)
    assert main(["docker-opts", "-f", "subnet.env", "-d", "docker.env", *flags]) == status
    assert message in capsys.readouterr().err
    assert Path("docker.env").read_text() == "before"


def test_as_json_the_variables_are_shown_and_the_file_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"DOCKER_OPTS": "--bip=10.5.72.1/24 --ip-masq=false --mtu=1472"}
    text = written("-c", "--output", "json")
    assert text == f'DOCKER_OPTS="{expected["DOCKER_OPTS"]}"\n'
    assert json.loads(capsys.readouterr().out) == {"file": "docker.env", "variables": expected}
    assert main(["docker-opts", "-f", "subnet.env", "-d", "-", "-c", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": None, "variables": expected}
