"""The agent's options: precedence, flannel's spellings, and every problem said at once."""

import argparse
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanpy.config import options
from flanpy.config.agent_flags import AGENT_FLAGS
from flanpy.config.flags import resolve
from flanpy.config.options import AgentOptions, add_agent_flags, load_agent_options, read_toml
from flanpy.errors import UsageError
from tests.support.flannel import FLANNELD_FLAGS


def load(*argv: str, environment: dict[str, str] | None = None) -> AgentOptions:
    parser = argparse.ArgumentParser()
    add_agent_flags(parser)
    return load_agent_options(parser.parse_args(argv), environment or {})


def problems(*argv: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(*argv, environment=environment)
    return str(caught.value).splitlines()


def test_every_flag_of_flanneld_is_there_and_has_flanneld_s_variable() -> None:
    flags = {flag.name: flag for flag in AGENT_FLAGS}
    for name in FLANNELD_FLAGS:
        assert f"FLANNELD_{name.replace('-', '_').upper()}" in flags[name].environment()


def test_defaults_are_flanneld_s() -> None:
    options = load()
    assert options.etcd_endpoints == ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    assert options.etcd_prefix == "/coreos.com/network"
    assert options.subnet_file == Path("/run/flannel/subnet.env")
    assert (options.subnet_lease_renew_margin, options.iptables_resync, options.healthz_port) == (60, 5, 0)
    assert (options.ip_masq, options.iptables_forward_rules) == (False, True)


def test_the_order_is_flag_flanpy_flanneld_file_default(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('healthz-port = 4\nspin-us = 4\nqueues = 4\niface = ["eth4"]\n')
    options = load(
        "--config",
        str(file),
        "--healthz-port",
        "1",
        environment={"FLANPY_HEALTHZ_PORT": "2", "FLANPY_SPIN_US": "2", "FLANNELD_IFACE": "eth3,eth5"},
    )
    assert (options.healthz_port, options.spin_us, options.queues, options.iface) == (1, 2, 4, ("eth3", "eth5"))
    assert options.log_level == "info"


@pytest.mark.parametrize("spelling", ["--ip-masq", "--ip-masq=true", "--ip-masq=1", "--ip-masq=T"])
def test_booleans_are_spelt_as_in_go(spelling: str) -> None:
    assert load(spelling).ip_masq


def test_a_boolean_is_turned_off_by_a_value() -> None:
    assert not load("--iptables-forward-rules=false").iptables_forward_rules
    assert not load("--no-source-check").source_check


def test_embedded_etcd_may_stand_without_an_address() -> None:
    assert load("--embedded-etcd").embedded_etcd == "127.0.0.1:2379"
    assert load("--embedded-etcd", "192.0.2.1:4000").embedded_etcd == "192.0.2.1:4000"
    assert load().embedded_etcd == ""


def test_all_problems_are_said_at_once_each_with_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('spin-us = -1\nifase = "eth0"\n')
    assert problems(
        "--config", str(file), "--public-ip", "1.2", "--iface-regex", "(", environment={"FLANNELD_HEALTHZ_PORT": "x"}
    ) == [
        "--iface-regex: '(' is not a regular expression: missing ), unterminated subpattern at position 0",
        "--public-ip: '1.2' is not an IPv4 address such as 192.0.2.7",
        f"{file}: spin-us: '-1' is not a whole number from 0 to 10000 (microseconds)",
        "FLANNELD_HEALTHZ_PORT: 'x' is not a whole number from 0 to 65535",
        f"{file}: ifase: unknown option; did you mean iface?",
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--etcd-keyfile", "k"], "--etcd-keyfile and --etcd-certfile belong together"),
        (["--etcd-password", "hush"], "--etcd-password needs --etcd-username"),
        (["--etcd-endpoints", "10.0.0.1:2379"], "is not a URL such as http://"),
        (["--subnet-lease-renew-margin", "1440"], "is not a whole number from 1 to 1439"),
        (["--datapath", "fast"], "is not one of auto, userspace, ebpf"),
        (["--config", "/nonexistent.toml"], "--config: /nonexistent.toml: No such file or directory"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(argv: list[str], said: str) -> None:
    assert said in problems(*argv)[0]


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_bytes(b"\xff\xfe")
    assert "not TOML" in problems("--config", str(file))[0]


def test_the_password_is_never_shown() -> None:
    options = load("--etcd-username", "root", "--etcd-password", "hush")
    assert options.etcd_password == "hush"
    assert "hush" not in repr(options)


NAMES = st.sampled_from([flag.name for flag in AGENT_FLAGS]) | st.text(max_size=12)
TOML = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, TOML, max_size=5))
def test_any_table_is_taken_or_refused_with_every_problem_on_a_line(values: dict[str, object]) -> None:
    try:
        resolved = resolve(AGENT_FLAGS, {}, {}, values, "file.toml")
    except UsageError as error:
        assert all(line.startswith("file.toml: ") for line in str(error).splitlines())
    else:
        assert set(values) <= {flag.name for flag in AGENT_FLAGS}
        assert set(resolved) == {flag.key for flag in AGENT_FLAGS}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_a_file_of_any_bytes_is_toml_or_refused_by_its_name(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            read_toml(Path(file.name))
        except UsageError as error:
            assert str(error).startswith(f"--config: {file.name}: not TOML: ")


def test_a_pipe_is_read_to_its_end_and_one_without_a_writer_holds_nobody(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="a pipe without a writer; give a regular file"):
        read_toml(pipe)
    reader, writer = os.pipe()
    os.write(writer, b'log-level = "debug"\n')
    os.close(writer)
    try:
        assert read_toml(Path(f"/dev/fd/{reader}")) == {"log-level": "debug"}
    finally:
        os.close(reader)


def test_a_pipe_whose_writer_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "PIPE_PATIENCE_S", 0.05)
    reader, writer = os.pipe()
    try:
        with pytest.raises(UsageError, match=r"no end of it within 0\.05 s"):
            read_toml(Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
        os.close(writer)
