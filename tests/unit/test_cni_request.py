"""The CNI protocol: what a runtime may say, and the code and words that it gets when it says something else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.cni.protocol import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    MAX_CONFIG_BYTES,
    VERSIONS,
    Attachment,
    Request,
    parse_request,
    render_error,
)
from flanpy.errors import CniError

CONFIG = {"cniVersion": "1.0.0", "name": "cbr0", "type": "flanpy"}
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}


def refusal(stdin: object = CONFIG, **environment: str | None) -> tuple[int, str]:
    values = {key: value for key, value in {**ENVIRONMENT, **environment}.items() if value is not None}
    with pytest.raises(CniError) as caught:
        parse_request(values, stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode())
    return caught.value.code, str(caught.value)


def test_a_request_is_read_whole() -> None:
    assert parse_request(ENVIRONMENT, json.dumps(CONFIG).encode()) == Request(
        "ADD", "1.0.0", Attachment("c0ffee", "eth0"), "/run/netns/pod", "/opt/cni/bin", CONFIG
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_that_flannel_s_plugin_takes_is_taken(version: str) -> None:
    assert parse_request(ENVIRONMENT, json.dumps(CONFIG | {"cniVersion": version}).encode()).version == version


def test_a_config_without_a_version_is_the_first() -> None:
    assert parse_request(ENVIRONMENT, b'{"name": "cbr0"}').version == "0.1.0"


@pytest.mark.parametrize("stdin", [b"", b"{}", b"junk", b'{"cniVersion": "9.9.9"}'])
def test_version_needs_nothing_but_the_command(stdin: bytes) -> None:
    if stdin == b"junk":
        assert refusal(stdin, CNI_COMMAND="VERSION")[0] == DECODING_FAILURE
    else:
        assert parse_request({"CNI_COMMAND": "VERSION"}, stdin).version == "1.1.0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_COMMAND", None),
        ("CNI_COMMAND", "add"),
        ("CNI_CONTAINERID", None),
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_CONTAINERID", ".hidden"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_CONTAINERID", "a@b"),
        ("CNI_CONTAINERID", "a" * 201),
        ("CNI_IFNAME", None),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "sixteen-letters-"),
        ("CNI_NETNS", None),
        ("CNI_PATH", None),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str | None) -> None:
    code, message = refusal(**{name: value})
    assert code == INVALID_ENVIRONMENT
    assert name in message


@pytest.mark.parametrize(
    "stdin",
    [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b" " * (MAX_CONFIG_BYTES + 1), b'{"a":' * 50_000],
)
def test_what_is_no_config_is_refused_with_code_6(stdin: bytes) -> None:
    code, message = refusal(stdin)
    assert code == DECODING_FAILURE
    assert message.startswith("stdin: ")


@pytest.mark.parametrize("version", ["0.9.0", "1.2.0", "latest", 1, ["1.0.0"], {"a": 1}])
def test_an_unknown_version_is_refused_with_the_known_ones(version: object) -> None:
    code, message = refusal(CONFIG | {"cniVersion": version})
    assert code == INCOMPATIBLE_VERSION
    assert "supported are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0" in message


@pytest.mark.parametrize(("command", "version"), [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")])
def test_a_command_that_the_version_lacks_is_refused(command: str, version: str) -> None:
    code, message = refusal(CONFIG | {"cniVersion": version}, CNI_COMMAND=command)
    assert (code, message[: len("cniVersion")]) == (INCOMPATIBLE_VERSION, "cniVersion")


def test_del_needs_no_namespace() -> None:
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "CNI_NETNS"} | {"CNI_COMMAND": "DEL"}
    assert parse_request(environment, json.dumps(CONFIG).encode()).netns == ""


def test_an_error_is_what_the_specification_says() -> None:
    text = render_error(CniError(INVALID_CONFIG, "name: is wrong", "line 3"), "1.1.0")
    assert json.loads(text) == {"cniVersion": "1.1.0", "code": 7, "msg": "name: is wrong", "details": "line 3"}


@given(st.binary(max_size=300), st.dictionaries(st.sampled_from(sorted(ENVIRONMENT)), st.text(max_size=20)))
def test_whatever_comes_is_a_request_or_a_cni_error(stdin: bytes, environment: dict[str, str]) -> None:
    for command in ("ADD", "VERSION", "GC"):
        try:
            parse_request({**ENVIRONMENT, **environment, "CNI_COMMAND": command}, stdin)
        except CniError as error:
            assert error.code in range(1, 8)
