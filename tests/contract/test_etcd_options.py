"""Endpoints and options of etcd: what is taken, what follows, what is refused; and that nobody pays for gRPC who does not use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flanpy.errors import UsageError
from flanpy.stores.etcd3_shim import load_etcd3, serialized_descriptor
from flanpy.stores.etcd_options import EtcdOptions, Target, normalise_prefix, plan_targets

ROOT = Path(__file__).resolve().parents[2]
CA = Path("/etc/ca.pem")


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        (EtcdOptions(), (Target("ipv4:127.0.0.1:2379"),)),
        (EtcdOptions(("10.0.0.1", " http://10.0.0.1:2379/ ")), (Target("ipv4:10.0.0.1:2379"),)),
        (
            EtcdOptions(("http://10.0.0.1:2379", "http://10.0.0.2:4001")),
            (Target("ipv4:10.0.0.1:2379,10.0.0.2:4001"), Target("ipv4:10.0.0.2:4001,10.0.0.1:2379")),
        ),
        (EtcdOptions(("http://[fd00::1]:2379",)), (Target("ipv6:[fd00::1]:2379"),)),
        (
            EtcdOptions(("http://10.0.0.1:2379", "http://[fd00::1]:2379", "http://etcd.example")),
            (Target("ipv4:10.0.0.1:2379"), Target("ipv6:[fd00::1]:2379"), Target("dns:///etcd.example:2379")),
        ),
        (
            EtcdOptions(("https://10.0.0.1:2379", "https://etcd.example:2379")),
            (Target("ipv4:10.0.0.1:2379", "10.0.0.1:2379"), Target("dns:///etcd.example:2379", "etcd.example:2379")),
        ),
        (EtcdOptions(("10.0.0.1:2379",), cafile=CA), (Target("ipv4:10.0.0.1:2379", "10.0.0.1:2379"),)),
    ],
)
def test_endpoints_become_targets(options: EtcdOptions, targets: tuple[Target, ...]) -> None:
    assert plan_targets(options) == targets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoints": ()}, "none given; an example: http://127.0.0.1:2379"),
        ({"endpoints": ("",)}, "'' is not an endpoint"),
        ({"endpoints": ("ftp://10.0.0.1",)}, "is not an endpoint; an example: http://10.0.0.1:2379"),
        ({"endpoints": ("http://10.0.0.1:x",)}, "is not an endpoint"),
        ({"endpoints": ("http://10.0.0.1:99999",)}, "is not an endpoint"),
        ({"endpoints": ("http://10.0.0.1:2379/v3",)}, "is not an endpoint"),
        ({"endpoints": ("http://u:p@10.0.0.1:2379",)}, "is not an endpoint"),
        ({"endpoints": ("http://10.0.0.1:2379,10.0.0.2:2379",)}, "is not an endpoint"),
        ({"endpoints": ("http://10.0.0.1", "https://10.0.0.2")}, "all must be http:// or all https://"),
        ({"cafile": CA}, "is not encrypted: write https://"),
        ({"endpoints": ("https://a",), "certfile": CA}, "etcd-certfile and etcd-keyfile go together"),
        ({"username": "u"}, "etcd-username and etcd-password go together"),
        ({"call_timeout_s": 0}, "must be above 0"),
        ({"progress_s": 8}, "silence limit above its progress interval"),
    ],
)
def test_wrong_options_are_refused_with_what_would_be_right(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EtcdOptions(**changes)


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(EtcdOptions(username="u", password="secret"))


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("/coreos.com/network", "/coreos.com/network"),
        ("coreos.com/network/", "/coreos.com/network"),
        ("//a//b/", "/a/b"),
        ("/", ""),
        ("", ""),
    ],
)
def test_a_prefix_has_one_leading_slash_and_no_trailing_one(text: str, prefix: str) -> None:
    assert normalise_prefix(text) == prefix


def test_stores_and_their_options_cost_no_grpc() -> None:
    code = "import sys, flanpy.stores, flanpy.stores.etcd_options, flanpy.stores.memory, flanpy.stores.server\n"
    code += "assert not {'grpc', 'etcd3', 'google.protobuf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=20)


def test_etcd3_speaks_the_watch_requests_of_etcd_3_4() -> None:
    rpc = load_etcd3().etcdrpc

    assert rpc.WatchRequest(progress_request={}).SerializeToString() == b"\x1a\x00"
    assert rpc.WatchCreateRequest(key=b"k", fragment=True).SerializeToString() == b"\x0a\x01k\x40\x01"
    assert rpc.WatchResponse.FromString(b"\x38\x01").fragment is True


def test_a_generated_file_without_a_descriptor_is_refused() -> None:
    assert serialized_descriptor("D = F(serialized_pb=_b('\\n\\xff'))") == b"\n\xff"
    assert serialized_descriptor("D = F(serialized_pb=b'\\n\\xff')") == b"\n\xff"
    with pytest.raises(ValueError, match="no serialized_pb"):
        serialized_descriptor("")
