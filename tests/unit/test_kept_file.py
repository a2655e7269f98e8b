"""Kept leases outlive the agent: what is written, and what is believed of what is read."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.core.codec import decode_lease, encode_attributes, key_of
from flanpy.core.grace import Grace
from flanpy.core.kept_file import LEASES_MAX, TEXT_BYTES_MAX, parse, render
from flanpy.model import FlanpyInfo, KeptLease, NodeAttributes, Record, Subnets

BOTH = Grace(peer_s=30, loss_s=300)
BOOT = "b5a0"


def kept(number: int, until_s: float = 120.0, cause: str = "expired") -> tuple[str, KeptLease]:
    key = key_of(Subnets(IPv4Network((10 << 24 | number << 8, 24))))
    value = encode_attributes(NodeAttributes(IPv4Address("192.0.2.1"), flanpy=FlanpyInfo(f"node-{number}", frozenset({"ecn"}))))
    return key, KeptLease(decode_lease(Record(key, value, 5, 7, 77)), until_s, cause, 20)  # type: ignore[arg-type]


SOME = dict([kept(1), kept(2, 130.0), kept(3, 350.0, "lost")])


def changed(**changes: Any) -> str:
    """The text of one lease with something else in it."""
    text = json.loads(render(dict([kept(1)]), BOOT))
    text["kept"][0] |= changes
    return json.dumps(text)


def test_what_is_written_is_read_back_whole() -> None:
    assert parse(render(SOME, BOOT), BOOT, BOTH, 100.0) == SOME


def test_of_another_boot_nothing_is_kept() -> None:
    assert parse(render(SOME, BOOT), "another", BOTH, 100.0) == {}


def test_what_is_over_is_left_out_and_no_time_is_longer_than_todays_options_say() -> None:
    assert parse(render(SOME, BOOT), BOOT, BOTH, 125.0) == dict([kept(2, 130.0), kept(3, 350.0, "lost")])
    assert parse(render(SOME, BOOT), BOOT, Grace(peer_s=5, loss_s=10), 100.0) == dict(
        [kept(1, 105.0), kept(2, 105.0), kept(3, 110.0, "lost")]
    )
    assert parse(render(SOME, BOOT), BOOT, Grace(), 100.0) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "subnets/10.5.1.0-99"},
        {"key": 7},
        {"value": "{"},
        {"value": "\ud800"},
        {"value": None},
        {"created": -1},
        {"modified": 2**63},
        {"lease": True},
        {"since": 1.5},
        {"until_s": "1e9"},
        {"until_s": float("nan")},
        {"until_s": float("-inf")},
        {"until_s": -(10**400)},
        {"cause": "leaving"},
        {"cause": ["lost"]},
    ],
    ids=str,
)
def test_an_item_that_is_none_of_ours_is_left_out(changes: dict[str, Any]) -> None:
    assert parse(changed(), BOOT, BOTH, 100.0) == dict([kept(1)])
    assert parse(changed(**changes), BOOT, BOTH, 100.0) == {}


def test_one_bad_item_takes_no_other_along() -> None:
    text = json.loads(render(SOME, BOOT))
    text["kept"][1:1] = [None, [], {"key": {}}]
    assert parse(json.dumps(text), BOOT, BOTH, 100.0) == SOME


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version":2}', "[" * 100_000, " " * (TEXT_BYTES_MAX + 1), "9" * 5000])
def test_a_text_that_is_none_of_ours_keeps_nothing(text: str) -> None:
    assert parse(text, BOOT, BOTH, 100.0) == {}


def test_it_is_bounded_and_those_that_end_last_are_kept() -> None:
    many = dict(kept(number, 105.0 + number / 1000) for number in range(LEASES_MAX + 3))
    back = parse(render(many, BOOT), BOOT, BOTH, 100.0)
    assert back == {key: lease for key, lease in many.items() if lease.until_s >= many[kept(3)[0]].until_s}


@pytest.mark.parametrize("until_s", [float("inf"), 10**400], ids=["inf", "10**400"])
def test_an_endless_time_is_cut_to_the_grace(until_s: float) -> None:
    key, lease = kept(1)
    assert parse(changed(until_s=until_s), BOOT, BOTH, 100.0) == {key: replace(lease, until_s=130.0)}


@given(st.text() | st.recursive(st.none() | st.integers() | st.text() | st.floats(), st.lists).map(json.dumps))
def test_no_text_raises(text: str) -> None:
    assert parse(text, BOOT, BOTH, 100.0) == {}
