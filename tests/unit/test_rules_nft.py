"""Rules as nft scripts, whole, and back from what nft lists."""

import json
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from flanpy.core.rules_nft import Table, names_one_of, parse_table, script, table_of
from tests.unit.test_rules import FORWARD4, MARKED, RULES4, RULES6, N, P

WANTED = table_of((MARKED, *RULES4, *RULES6), FORWARD4)
CHAINS = """\
	chain forward {
		type filter hook forward priority 0; policy accept;
		ip saddr 10.244.0.0/16 counter accept comment "from network"
		ip daddr 10.244.0.0/16 counter accept comment "to network"
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		meta mark & 0x4000 == 0x4000 counter return comment "marked by kube-proxy"
		ip saddr 10.244.7.0/24 ip daddr 10.244.0.0/16 counter return comment "own subnet to network"
		ip saddr 10.244.0.0/16 ip daddr 10.244.7.0/24 counter return comment "network to own subnet"
		ip saddr != 10.244.0.0/16 ip daddr 10.244.7.0/24 counter return comment "outside to own subnet"
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 counter masquerade fully-random comment "network to outside"
		ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 counter masquerade fully-random comment "outside to network"
		ip6 saddr fd00:244:0:7::/64 ip6 daddr fd00:244::/48 counter return comment "own subnet to network"
		ip6 saddr fd00:244::/48 ip6 daddr fd00:244:0:7::/64 counter return comment "network to own subnet"
		ip6 saddr != fd00:244::/48 ip6 daddr fd00:244:0:7::/64 counter return comment "outside to own subnet"
		ip6 saddr fd00:244::/48 ip6 daddr != ff00::/8 counter masquerade fully-random comment "network to outside"
		ip6 saddr != fd00:244::/48 ip6 daddr fd00:244::/48 counter masquerade fully-random comment "outside to network"
	}
"""
BARE = """\
	chain forward {
		type filter hook forward priority 0; policy accept;
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
	}
"""
REPLACED = f"table inet flanpy {{\n{BARE}}}\nflush table inet flanpy\ntable inet flanpy {{\n{CHAINS}}}\n"
RECREATED = f"table inet flanpy {{\n}}\ndelete table inet flanpy\ntable inet flanpy {{\n{CHAINS}}}\n"
LISTED = {
    "nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "flanpy", "handle": 1}},
        {"chain": {"name": "forward", "handle": 2, "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}},
    ]
}


def rule(*expression: object, comment: str = "from network") -> dict[str, object]:
    return {"rule": {"family": "inet", "table": "flanpy", "chain": "forward", "comment": comment, "expr": list(expression)}}


def match(field: str, right: object, op: str = "==", protocol: str = "ip") -> dict[str, object]:
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


NETWORK = {"prefix": {"addr": "10.244.0.0", "len": 16}}
COUNTER = {"counter": {"packets": 3, "bytes": 252}}


def parsed(*rules: object) -> Table:
    return parse_table(json.dumps({"nftables": [*LISTED["nftables"], *rules]}))


def test_a_missing_table_and_one_with_other_rules_are_written_without_touching_the_chains() -> None:
    assert WANTED is not None
    older = Table(tuple(replace(chain, rules=chain.rules[:1]) for chain in WANTED.chains))
    assert [script(WANTED, there) for there in (None, older, Table(WANTED.chains[:1]))] == [REPLACED] * 3


def test_a_table_with_foreign_chains_or_objects_is_made_anew_in_one_transaction() -> None:
    assert WANTED is not None
    hooked = Table((replace(WANTED.chains[0], priority=-5), WANTED.chains[1]))
    dropping = Table((replace(WANTED.chains[0], policy="drop"),))
    assert [script(WANTED, there) for there in (hooked, dropping, Table(WANTED.chains, strange=1))] == [RECREATED] * 3


def test_no_rules_mean_no_table() -> None:
    assert table_of((), ()) is None
    assert script(None, WANTED) == "delete table inet flanpy\n"
    assert script(None, None) == ""


def test_a_chain_that_is_not_needed_any_more_goes_with_its_hook() -> None:
    assert script(table_of((), FORWARD4), WANTED).startswith("table inet flanpy {\n}\ndelete table inet flanpy\n")


def test_the_tables_of_flanneld_go_in_the_same_transaction() -> None:
    assert script(WANTED, None, [("ip", "flannel-ipv4")]) == f"{REPLACED}delete table ip flannel-ipv4\n"


def test_what_nft_lists_is_read_as_the_rules_that_it_stands_for() -> None:
    found = parsed(
        rule(match("saddr", NETWORK), COUNTER, {"accept": None}),
        rule(match("daddr", NETWORK), COUNTER, {"accept": None}, comment="to network"),
    )
    assert found == table_of((), FORWARD4)


@pytest.mark.parametrize(
    "changed",
    [
        rule(match("saddr", NETWORK), {"drop": None}),
        rule(match("saddr", NETWORK), match("saddr", NETWORK), {"accept": None}),
        rule(match("saddr", NETWORK, protocol="arp"), {"accept": None}),
        rule(match("saddr", NETWORK, op="<"), {"accept": None}),
        rule({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}, {"accept": None}),
        rule({"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 1]}, "right": 2}}, {"return": None}),
        rule(match("saddr", {"prefix": {"addr": "10.244.0.1", "len": 16}}), {"accept": None}),
        rule(match("saddr", {"set": []}), {"accept": None}),
        rule({"masquerade": {"flags": ["random", "persistent"]}}),
        rule(match("saddr", NETWORK)),
        {"rule": {"chain": "forward", "expr": 7}},
    ],
)
def test_a_rule_that_we_would_not_have_written_equals_none_of_ours(changed: object) -> None:
    assert parsed(changed).chains[0].rules == (None,)


def test_sets_and_maps_in_our_table_are_counted_as_strange() -> None:
    assert parsed({"set": {"name": "x"}}, {"map": {"name": "y"}}).strange == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nftables": 7}'])
def test_what_is_no_listing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_table(text)


def test_a_listed_table_names_our_networks_or_those_of_others() -> None:
    text = json.dumps({"nftables": [rule(match("saddr", NETWORK), {"return": None})]})
    assert names_one_of(text, (P, N))
    assert not names_one_of(text, (P, IPv4Network("10.0.0.0/8")))
