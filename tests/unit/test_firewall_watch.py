"""Which notifications of nftables concern us, from messages made by hand."""

import struct

import pytest

from flanpy.kernel.firewall_watch import concerns_us
from flanpy.kernel.messages import attribute, message, split

NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE, NEWGEN = 0, 2, 3, 5, 6, 8, 15
INET, IPV4, IPV6, ARP = 1, 2, 10, 3


def notification(kind: int, family: int, table: str, **names: str) -> bytes:
    numbers = {"rule_chain": 2, "chain_name": 3}
    named = b"".join(attribute(numbers[key], value.encode() + b"\0") for key, value in names.items())
    body = struct.pack(">BBH", family, 0, 7) + attribute(1, table.encode() + b"\0") + named
    return message(10 << 8 | kind, 0, 0, body)


def concerned(data: bytes) -> bool:
    return any(concerns_us(each) for each in split(memoryview(data)))


@pytest.mark.parametrize("kind", [NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE])
def test_whatever_happens_to_our_table_concerns_us(kind: int) -> None:
    assert concerned(notification(kind, INET, "flanpy"))
    assert not concerned(notification(kind, INET, "firewalld"))
    assert not concerned(notification(kind, IPV4, "flanpy")), "a table of that name in another family is somebody else's"


@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize(
    ("table", "chain", "hook"), [("nat", "FLANPY-POSTRTG", "POSTROUTING"), ("filter", "FLANPY-FWD", "FORWARD")]
)
def test_of_iptables_tables_only_our_chain_our_jump_and_the_whole_concern_us(
    family: int, table: str, chain: str, hook: str
) -> None:
    ours = [
        notification(DELTABLE, family, table),
        notification(DELCHAIN, family, table, chain_name=chain),
        notification(NEWRULE, family, table, rule_chain=chain),
        notification(DELRULE, family, table, rule_chain=chain),
        notification(DELRULE, family, table, rule_chain=hook),
    ]
    others = [
        notification(NEWTABLE, family, table),
        notification(DELCHAIN, family, table, chain_name="KUBE-SVC"),
        notification(NEWRULE, family, table, rule_chain=hook),
        notification(NEWRULE, family, table, rule_chain="KUBE-SVC"),
        notification(DELTABLE, ARP, table),
        notification(DELTABLE, family, "mangle"),
    ]
    assert [concerned(data) for data in ours] == [True] * 5
    assert [concerned(data) for data in others] == [False] * 6


def test_other_subsystems_and_messages_without_a_table_do_not_concern_us() -> None:
    assert not concerned(message(1 << 8 | DELTABLE, 0, 0, struct.pack(">BBH", INET, 0, 7) + attribute(1, b"flanpy\0")))
    assert not concerned(message(10 << 8 | NEWGEN, 0, 0, struct.pack(">BBH", 0, 0, 7) + attribute(1, struct.pack(">I", 7))))


def test_every_prefix_of_a_message_is_read_without_harm() -> None:
    data = notification(DELRULE, INET, "flanpy", rule_chain="postrouting")
    for end in range(len(data)):
        concerned(data[:end])
        concerned(struct.pack("=I", end) + data[4:end])
