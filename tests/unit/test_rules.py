"""Masquerade and forward rules: what is planned, and who keeps it."""

from ipaddress import IPv4Network, IPv6Network

import pytest

from flanpy.config.network import parse_network_config
from flanpy.core.rules import RuleOptions, blackholes, flannel_blackholes, place, plan_rules
from flanpy.errors import PlatformError
from flanpy.model import FirewallRules, FirewallTool, NetworkConfig, Route, Rule, Subnets

N, P = IPv4Network("10.244.0.0/16"), IPv4Network("10.244.7.0/24")
N6, P6 = IPv6Network("fd00:244::/48"), IPv6Network("fd00:244:0:7::/64")
OWN = Subnets(P)
BOTH = Subnets(P, P6)
MARKED = Rule("marked by kube-proxy", "return", mark=0x4000)


def config(*, nft: bool = False, ipv6: bool = False) -> NetworkConfig:
    more = ', "EnableIPv6": true, "IPv6Network": "fd00:244::/48"' if ipv6 else ""
    return parse_network_config(f'{{"Network": "10.244.0.0/16", "EnableNFTables": {str(nft).lower()}{more}}}')


def masquerade(network, subnet, multicast, *, fully_random: bool = True) -> tuple[Rule, ...]:
    return (
        Rule("own subnet to network", "return", source=subnet, destination=network),
        Rule("network to own subnet", "return", source=network, destination=subnet),
        Rule("outside to own subnet", "return", not_source=network, destination=subnet),
        Rule("network to outside", "masquerade", source=network, not_destination=multicast, fully_random=fully_random),
        Rule("outside to network", "masquerade", not_source=network, destination=network, fully_random=fully_random),
    )


RULES4 = masquerade(N, P, IPv4Network("224.0.0.0/4"))
RULES6 = masquerade(N6, P6, IPv6Network("ff00::/8"))
FORWARD4 = (Rule("from network", "accept", source=N), Rule("to network", "accept", destination=N))
FORWARD6 = (Rule("from network", "accept", source=N6), Rule("to network", "accept", destination=N6))


def test_the_rules_of_one_family_stand_in_flannel_s_order() -> None:
    assert plan_rules(config(), OWN, RuleOptions(ip_masq=True)) == FirewallRules((MARKED, *RULES4), FORWARD4, (N, P))


def test_with_two_families_each_has_its_rules_and_the_mark_is_looked_at_once() -> None:
    planned = plan_rules(config(ipv6=True), BOTH, RuleOptions(ip_masq=True))
    assert planned == FirewallRules((MARKED, *RULES4, *RULES6), FORWARD4 + FORWARD6, (N, P, N6, P6))


def test_a_family_without_a_subnet_of_ours_has_no_rules() -> None:
    assert plan_rules(config(ipv6=True), OWN, RuleOptions(ip_masq=True)) == plan_rules(config(), OWN, RuleOptions(ip_masq=True))


def test_without_ip_masq_only_forwarding_is_accepted() -> None:
    assert plan_rules(config(), OWN, RuleOptions()) == FirewallRules((), FORWARD4, (N, P))


def test_nothing_is_wanted_when_both_are_off_but_our_networks_are_known() -> None:
    assert plan_rules(config(), OWN, RuleOptions(forward_rules=False)) == FirewallRules((), (), (N, P))


def test_ports_are_not_randomised_where_that_is_disabled() -> None:
    planned = plan_rules(config(), OWN, RuleOptions(ip_masq=True, fully_random=False))
    assert planned.masquerade == (MARKED, *masquerade(N, P, IPv4Network("224.0.0.0/4"), fully_random=False))


@pytest.mark.parametrize(
    ("enabled", "asked", "tool"),
    [(False, "auto", "auto"), (True, "auto", "nft"), (True, "iptables", "iptables"), (False, "nft", "nft")],
)
def test_the_node_s_own_choice_of_a_tool_goes_before_enable_nftables(enabled: bool, asked: FirewallTool, tool: str) -> None:
    assert plan_rules(config(nft=enabled), OWN, RuleOptions(tool=asked)).tool == tool


@pytest.mark.parametrize(
    ("tool", "has_nft", "has_iptables", "expected"),
    [
        ("auto", True, True, ("nft", "iptables")),
        ("auto", True, False, ("nft", "nft")),
        ("auto", False, True, ("iptables", "iptables")),
        ("nft", True, True, ("nft", "nft")),
        ("iptables", True, True, ("iptables", "iptables")),
    ],
)
def test_each_part_goes_where_it_has_its_effect(tool: FirewallTool, has_nft: bool, has_iptables: bool, expected) -> None:
    placement = place(FirewallRules(RULES4, FORWARD4, tool=tool), has_nft=has_nft, has_iptables=has_iptables)
    assert (placement.masquerade, placement.forward) == expected


@pytest.mark.parametrize(
    ("tool", "text"), [("nft", "Debian: nftables"), ("iptables", "Debian: iptables"), ("auto", "neither nft nor iptables")]
)
def test_a_tool_that_is_missing_is_an_error_with_its_cure(tool: FirewallTool, text: str) -> None:
    with pytest.raises(PlatformError, match=text):
        place(FirewallRules(RULES4, FORWARD4, tool=tool), has_nft=False, has_iptables=False)


def test_a_machine_without_any_firewall_needs_no_forward_rules() -> None:
    placement = place(FirewallRules((), FORWARD4), has_nft=False, has_iptables=False)
    assert (placement.masquerade, placement.forward) == (None, None)


def test_a_blackhole_of_flanneld_s_has_no_metric_and_its_protocol() -> None:
    assert flannel_blackholes(BOTH) == {Route(P, "", kind="blackhole", protocol=3), Route(P6, "", kind="blackhole", protocol=3)}


def test_a_blackhole_stands_behind_every_better_route_to_the_subnet() -> None:
    assert blackholes(BOTH) == {Route(P, "", metric=4096, kind="blackhole"), Route(P6, "", metric=4096, kind="blackhole")}
