"""``flanpy network``: what it prints, what it writes, what it refuses, and with which exit status."""

import argparse
import io
import json
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flanpy.cli import main as command
from flanpy.cli import network
from flanpy.config.network import parse_network_config
from flanpy.core.codec import encode_attributes
from flanpy.errors import ConfigError, StoreError
from flanpy.model import NodeAttributes, Record, RecordSet
from flanpy.stores.memory import MemoryStore

TEXT = b'{"Network": "10.5.0.0/16"}'
PREFIX = "/coreos.com/network"


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    network.add_arguments(parser)
    return parser.parse_args(list(words))


def with_lease(key: str = "subnets/10.5.7.0-24") -> MemoryStore:
    store = MemoryStore()
    store.create(key, encode_attributes(NodeAttributes(IPv4Address("192.0.2.1"))), 60)
    return store


def test_check_prints_every_setting_of_a_good_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["network", "check", "--json", TEXT.decode()]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Network         10.5.0.0/16",
        "SubnetLen       24",
        "SubnetMin       10.5.1.0",
        "SubnetMax       10.5.255.0",
        "EnableIPv4      true",
        "EnableIPv6      false",
        "EnableNFTables  false",
        "Backend.Type    udp",
        "Backend.Port    8285",
    ]


def test_check_prints_all_problems_and_exits_with_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text('{"Netwrk": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 70000}}')
    assert command.main(["network", "check", str(tmp_path / "bad.json")]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "Netwrk: unknown key; did you mean Network?",
        "Backend.Port: 70000 is not a UDP port (1..65535)",
        "Network: missing, for example 10.5.0.0/16",
    ]


def test_check_speaks_json_to_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["network", "check", "--output", "json", "--json", "{}"]) == 3
    assert json.loads(capsys.readouterr().out) == {"valid": False, "problems": ["Network: missing, for example 10.5.0.0/16"]}
    assert command.main(["network", "check", "--output", "json", "--json", TEXT.decode()]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["Backend"] == {"Type": "udp", "Port": 8285}


def test_check_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT + b"\n")))
    assert command.main(["network", "check", "-"]) == 0


@pytest.mark.parametrize("words", [[], ["file.json", "--json", "{}"], ["/nonexistent/file.json"]])
def test_a_config_that_is_not_given_or_not_readable_is_a_usage_error(words: list[str]) -> None:
    assert command.main(["network", "check", *words]) == 2


def test_a_wrong_etcd_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["network", "get", "--etcd-endpoints", "nonsense"]) == 2
    assert "--etcd-endpoints" in capsys.readouterr().err


def test_an_etcd_that_cannot_be_reached_is_a_store_error() -> None:
    assert command.main(["network", "get", "--etcd-endpoints", "http://127.0.0.1:1"]) == 4


def test_set_writes_the_text_as_it_was_given_and_get_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    store = MemoryStore()
    assert network.set_config(arguments("set", "--json", "-"), TEXT, store, PREFIX) == 0
    assert capsys.readouterr().out == f"{PREFIX}/config written: 10.5.0.0/16, udp\n"
    record = store.read("config")
    assert record is not None and (record.value, record.etcd_lease_id) == (TEXT, 0)
    assert network.get_config(arguments("get", "--output", "json"), store, PREFIX) == 0
    assert parse_network_config(capsys.readouterr().out) == parse_network_config(TEXT)
    assert network.get_config(arguments("get", "--raw"), store, PREFIX) == 0
    assert capsys.readouterr().out.encode() == TEXT + b"\n"


def test_set_writes_nothing_when_nothing_changes(capsys: pytest.CaptureFixture[str]) -> None:
    store = MemoryStore()
    first = store.put("config", TEXT)
    assert network.set_config(arguments("set"), TEXT, store, PREFIX) == 0
    assert store.read("config") == first and "nothing written" in capsys.readouterr().out


def test_set_refuses_a_wrong_config_before_it_touches_the_store() -> None:
    store = MemoryStore()
    store.server.set_unavailable()
    with pytest.raises(ConfigError, match="Network: missing"):
        network.set_config(arguments("set"), b"{}", store, PREFIX)


def test_set_refuses_a_config_that_held_subnets_do_not_fit_unless_forced(capsys: pytest.CaptureFixture[str]) -> None:
    store = with_lease()
    narrow = b'{"Network": "10.5.0.0/16", "SubnetLen": 25}'
    with pytest.raises(ConfigError) as caught:
        network.set_config(arguments("set"), narrow, store, PREFIX)
    assert caught.value.problems == (
        "10.5.7.0/24: leased, and does not fit the new config",
        "nothing written; --force writes it, and these nodes change their subnets",
    )
    assert store.read("config") is None
    assert network.set_config(arguments("set", "--force"), narrow, store, PREFIX) == 0
    assert capsys.readouterr().err == "warning: 10.5.7.0/24: leased, and does not fit the new config\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('{"Type": "udp"}', '{"Type": "vxlan"}', "Backend.Type: udp becomes vxlan"),
        ('{"Type": "udp"}', '{"Type": "udp", "Port": 9000}', "Backend.Port: 8285 becomes 9000"),
        ('{"Type": "vxlan"}', '{"Type": "vxlan", "VNI": 2}', "Backend.VNI: 1 becomes 2"),
    ],
)
def test_set_refuses_what_cuts_running_nodes_off_from_each_other_unless_forced(
    old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = with_lease()
    before = store.put("config", f'{{"Network": "10.5.0.0/16", "Backend": {old}}}'.encode())
    text = f'{{"Network": "10.5.0.0/16", "Backend": {new}}}'.encode()
    with pytest.raises(ConfigError) as caught:
        network.set_config(arguments("set"), text, store, PREFIX)
    line = f"{said} while 1 node holds a lease; until all agents are restarted, old and new nodes do not reach each other"
    assert caught.value.problems == (line, "nothing written; --force writes it")
    assert store.read("config") == before
    assert network.set_config(arguments("set", "--force"), text, store, PREFIX) == 0
    printed = capsys.readouterr()
    assert printed.err == f"warning: {line}\n"
    assert printed.out.endswith("\nrunning agents keep the old config until they are restarted\n")


def test_set_refuses_another_network_while_nodes_hold_leases() -> None:
    store = with_lease()
    store.put("config", TEXT)
    with pytest.raises(ConfigError) as caught:
        network.set_config(arguments("set"), b'{"Network": "10.9.0.0/16"}', store, PREFIX)
    assert caught.value.problems[0].startswith("Network: 10.5.0.0/16 becomes 10.9.0.0/16 while 1 node holds a lease;")
    assert caught.value.problems[1] == "10.5.7.0/24: leased, and does not fit the new config"


def test_set_of_another_backend_is_free_while_nobody_holds_a_lease() -> None:
    store = MemoryStore()
    store.put("config", TEXT)
    assert network.set_config(arguments("set"), b'{"Network": "10.9.0.0/16", "Backend": {"Type": "vxlan"}}', store, PREFIX) == 0


def test_set_tells_the_first_ten_of_many_misfits() -> None:
    store = MemoryStore()
    for number in range(15):
        store.put(f"subnets/10.9.{number}.0-24", b"{}")
    with pytest.raises(ConfigError) as caught:
        network.set_config(arguments("set"), TEXT, store, PREFIX)
    assert len(caught.value.problems) == 12 and caught.value.problems[10] == "and 5 more"


class Raced(MemoryStore):
    """A store in which somebody else writes the config right after it was read."""

    def __init__(self, write: Callable[[MemoryStore], Record | None]) -> None:
        super().__init__()
        self._write = write

    def list(self, directory: str) -> RecordSet:
        self._write(self)
        return super().list(directory)


def test_set_never_overwrites_what_somebody_else_wrote_meanwhile() -> None:
    other = b'{"Network": "10.9.0.0/16"}'
    store = Raced(lambda self: self.put("config", other))
    with pytest.raises(StoreError, match="was changed by somebody else meanwhile; nothing written"):
        network.set_config(arguments("set"), TEXT, store, PREFIX)
    record = store.read("config")
    assert record is not None and record.value == other


def test_get_without_a_config_says_how_to_write_one() -> None:
    with pytest.raises(
        ConfigError, match=r"^etcd has no network config at /coreos\.com/network/config; write one with: flanpy network set"
    ):
        network.get_config(arguments("get"), MemoryStore(), PREFIX)


def test_get_of_a_broken_config_tells_its_problems_and_raw_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    store = MemoryStore()
    store.put("config", b'{"Netwrk": 1}\xff')
    with pytest.raises(ConfigError, match="not UTF-8"):
        network.get_config(arguments("get"), store, PREFIX)
    assert network.get_config(arguments("get", "--raw"), store, PREFIX) == 0
    assert capsys.readouterr().out == '{"Netwrk": 1}\\xff\n'


def test_set_says_to_programs_what_it_has_done(capsys: pytest.CaptureFixture[str]) -> None:
    store = with_lease()
    assert network.set_config(arguments("set", "--output", "json"), TEXT, store, PREFIX) == 0
    assert json.loads(capsys.readouterr().out) == {"key": f"{PREFIX}/config", "written": True, "warnings": []}
    assert network.set_config(arguments("set", "--output", "json"), TEXT, store, PREFIX) == 0
    assert json.loads(capsys.readouterr().out)["written"] is False
    narrow = b'{"Network": "10.9.0.0/16"}'
    assert network.set_config(arguments("set", "--force", "--output", "json"), narrow, store, PREFIX) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["warnings"][-1] == "10.5.7.0/24: leased, and does not fit the new config"
    assert shown.err == ""
