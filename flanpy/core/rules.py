"""Masquerade and forward rules: from network, own subnet and options to what our part of the firewall should be; no I/O.

With P our subnet and N the network, for each family, in this order (the first that fits decides):

    masquerade   1  marked 0x4000 (kube-proxy masquerades it itself)   return        forward   N -> any   accept
                 2  P -> N                                             return                  any -> N   accept
                 3  N -> P                                             return
                 4  not N -> P                                         return
                 5  N -> not multicast                                 masquerade
                 6  not N -> N                                         masquerade

The meaning is flannel's; ``core.rules_nft`` and ``core.rules_iptables`` know the two languages. A returned packet is left to the rules
of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from flanpy.errors import PlatformError
from flanpy.model import FLANNEL_ROUTE_PROTOCOL, FirewallRules, FirewallTool, Network, NetworkConfig, Route, Rule, Subnets

KUBE_MARK = 0x4000
"""kube-proxy's mark on what it masquerades itself."""
MULTICAST: dict[int, Network] = {4: IPv4Network("224.0.0.0/4"), 6: IPv6Network("ff00::/8")}

BLACKHOLE_METRIC = 4096
"""Worse than the route by which a bridge or a pod has (a part of) the subnet, so that it takes only what nothing else does."""


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """What the operator wants of the rules; names as the flags'."""

    ip_masq: bool = False
    fully_random: bool = True
    forward_rules: bool = True
    tool: FirewallTool = "auto"


def plan_rules(config: NetworkConfig, own: Subnets, options: RuleOptions) -> FirewallRules:
    """The rules of this node. EnableNFTables puts all in nft, unless this node's own option says otherwise."""
    pairs = tuple(_families(config, own))
    masquerade = [rule for network, subnet in pairs for rule in _masquerade(network, subnet, options.fully_random)]
    marked = Rule("marked by kube-proxy", "return", mark=KUBE_MARK)
    return FirewallRules(
        masquerade=(marked, *masquerade) if options.ip_masq and masquerade else (),
        forward=tuple(rule for network, _ in pairs for rule in _forward(network)) if options.forward_rules else (),
        networks=tuple(sorted({network for pair in pairs for network in pair}, key=lambda network: (network.version, network))),
        tool="nft" if options.tool == "auto" and config.enable_nftables else options.tool,
    )


def blackholes(own: Subnets) -> frozenset[Route]:
    """Routes that drop what is for an address of our subnets that nothing here has, so that it does not go round."""
    return frozenset(Route(subnet, "", metric=BLACKHOLE_METRIC, kind="blackhole") for subnet in _subnets(own))


def flannel_blackholes(own: Subnets) -> frozenset[Route]:
    """The same as flanneld writes them: without a metric, so that such a route stands before that of a bridge which comes later."""
    return frozenset(Route(subnet, "", kind="blackhole", protocol=FLANNEL_ROUTE_PROTOCOL) for subnet in _subnets(own))


def _subnets(own: Subnets) -> list[Network]:
    return [subnet for subnet in (own.ipv4, own.ipv6) if subnet is not None]


def _families(config: NetworkConfig, own: Subnets) -> Iterator[tuple[Network, Network]]:
    """(network, own subnet) of each family that has both."""
    if config.network is not None and own.ipv4 is not None:
        yield config.network, own.ipv4
    if config.ipv6_network is not None and own.ipv6 is not None:
        yield config.ipv6_network, own.ipv6


def _masquerade(network: Network, subnet: Network, fully_random: bool) -> Iterator[Rule]:
    multicast = MULTICAST[network.version]
    yield Rule("own subnet to network", "return", source=subnet, destination=network)
    yield Rule("network to own subnet", "return", source=network, destination=subnet)
    yield Rule("outside to own subnet", "return", not_source=network, destination=subnet)
    yield Rule("network to outside", "masquerade", source=network, not_destination=multicast, fully_random=fully_random)
    yield Rule("outside to network", "masquerade", not_source=network, destination=network, fully_random=fully_random)


def _forward(network: Network) -> Iterator[Rule]:
    yield Rule("from network", "accept", source=network)
    yield Rule("to network", "accept", destination=network)


# ------------------------------------------------------------------------------------------------ which tool does what


@dataclass(frozen=True, slots=True)
class Placement:
    """Which tool keeps which part; None: no tool is there for it, and none is needed badly enough to give up."""

    masquerade: FirewallTool | None
    forward: FirewallTool | None


def place(rules: FirewallRules, *, has_nft: bool, has_iptables: bool) -> Placement:
    """Who keeps what on a machine with these tools. Raises PlatformError when what is asked for is missing.

    Where nobody has chosen, masquerading goes to nft (one transaction, and the kernel tells of changes) and forwarding to iptables:
    an accept in a table of our own cannot overrule the DROP policy that Docker gives to iptables' FORWARD; only one in there can.
    """
    wanted = bool(rules.masquerade or rules.forward)
    match rules.tool:
        case "nft" if has_nft or not wanted:
            return Placement("nft", "nft")
        case "nft":
            raise PlatformError("nft is not there, and EnableNFTables or --firewall asks for it; install it (Debian: nftables)")
        case "iptables" if has_iptables or not wanted:
            return Placement("iptables", "iptables")
        case "iptables":
            raise PlatformError("--firewall iptables: iptables-restore is not there; install it (Debian: iptables)")
    if rules.masquerade and not (has_nft or has_iptables):
        raise PlatformError("--ip-masq: neither nft nor iptables is there; install one of them (Debian: nftables)")
    nft, iptables = ("nft" if has_nft else None), ("iptables" if has_iptables else None)
    return Placement(nft or iptables, iptables or nft)  # type: ignore[arg-type]
