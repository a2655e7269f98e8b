"""Secrets are taken out of what leaves the machine: planted ones of every form are gone, what is no secret stays."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.agent import bugreport
from flanpy.agent.bugreport import Part, gather, known_secrets, of_process, pack
from flanpy.core.secrets import REMOVED, remove_secrets

PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPLANTED\n-----END EC PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        "--etcd-password PLANTED",
        "--etcd-password=PLANTED --iface eth0",
        "FLANPY_ETCD_PASSWORD=PLANTED",
        'etcd-password = "PLANTED with spaces"',
        "password: 'PLANTED'",
        '{"PSK": "PLANTED", "Port": 1}',
        '{"PreSharedKey":"PLANTED\\"still"}',
        "PrivateKey = PLANTED",
        "private_key=PLANTED",
        "Authorization: Bearer PLANTED",
        "http://user:PLANTED@10.0.0.1:2379/v3",
        "token=PLANTED,next",
        PEM,
        PEM[:40] + "PLANTED",
        "AWS_SECRET_ACCESS_KEY=PLANTED",
        "passphrase:PLANTED",
    ],
)
def test_what_looks_like_a_secret_goes(text: str) -> None:
    found = remove_secrets(f"before {text}\nafter")
    assert "PLANTED" not in found
    assert REMOVED in found
    assert found.startswith("before ")


@pytest.mark.parametrize(
    "text",
    [
        "10.244.7.0/24 dev flannel0 proto 102",
        "etcd-endpoints = http://10.0.0.1:2379",
        '{"PublicKey": "x0k7Y2ZxwQ=="}',
        "meta secmark 5",
        "a path that passed",
        "http://10.0.0.1:2379/a@b",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert remove_secrets(text) == text


def test_a_known_value_goes_wherever_it_stands() -> None:
    assert remove_secrets("xhunter22y hunter2 hunter", ["hunter2", "hunter22", ""]) == f"x{REMOVED}y {REMOVED} hunter"
    assert remove_secrets("to be or not", ["to"]) == "to be or not"


@given(st.text(min_size=8, max_size=20, alphabet="abcdefgh0123456789"), st.text(max_size=30), st.text(max_size=30))
def test_no_surroundings_save_a_known_value(secret: str, before: str, after: str) -> None:
    assert secret not in remove_secrets(before + secret + after, [secret]).replace(REMOVED, "")


def test_secrets_are_known_from_environment_options_file_and_keys(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('etcd-password = "from-the-file"\netcd-username = "joe"\n')
    (tmp_path / "wireguard-key").write_text("d2lyZWd1YXJkLXByaXZhdGUta2V5LWJhc2U2NA==\n")
    environment = {"FLANPY_ETCD_PASSWORD": "from-the-environment", "FLANPY_CONFIG": str(tmp_path / "agent.toml"), "HOME": "/root"}
    assert known_secrets(environment, {"state-dir": str(tmp_path)}) == {
        "from-the-environment",
        "from-the-file",
        "d2lyZWd1YXJkLXByaXZhdGUta2V5LWJhc2U2NA==",
    }
    assert of_process(None) == frozenset()


def test_the_archive_holds_every_part_and_says_what_is_missing() -> None:
    parts = [Part("a.txt", "ä\n"), Part("b.txt", "", "not there: no such tool")]
    with tarfile.open(fileobj=io.BytesIO(pack(parts, "report"))) as archive:
        texts = {entry.name: (archive.extractfile(entry) or io.BytesIO()).read().decode() for entry in archive}
    assert list(texts) == ["report/contents.txt", "report/a.txt"]
    assert texts["report/a.txt"] == "ä\n"
    assert "b.txt" in texts["report/contents.txt"]
    assert "not there: no such tool" in texts["report/contents.txt"]


def test_without_an_agent_the_rest_is_gathered(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_text("wrong password=PLANTED-1 for hunter2-PLANTED\n")
    parts = {
        part.name: part for part in gather(tmp_path, {"FLANPY_ETCD_PASSWORD": "hunter2-PLANTED", "FLANPY_IFACE": "eth0"}, log)
    }
    assert parts["agent-status.json"].problem.startswith("not there: no agent answers")
    assert parts["environment.txt"].text == f"FLANPY_ETCD_PASSWORD={REMOVED}\nFLANPY_IFACE=eth0\n"
    assert "flanpy" in parts["versions.txt"].text
    assert json.loads(parts["doctor.txt"].text)
    assert not [part.name for part in parts.values() if "PLANTED" in part.text + part.problem]


def test_what_could_not_be_had_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bugreport, "TOOLS", {"nothing": ("no-such-tool-of-ours",)})
    monkeypatch.setattr(bugreport, "FILES", (str(tmp_path / "gone"), str(tmp_path)))
    problems = [
        part.problem for part in gather(tmp_path, {}, tmp_path / "agent.log") if "agent-" not in part.name and part.problem
    ]
    assert problems == [
        "not there: no-such-tool-of-ours is not installed",
        f"not there: {tmp_path / 'gone'}: No such file or directory",
        f"not there: {tmp_path}: Is a directory",
        f"not there: {tmp_path / 'agent.log'}: No such file or directory",
    ]
