"""Would this host's packet filter drop us? Reads what nft and iptables-save print into one form and judges it. Pure.

    nft -j list ruleset  ─┐
                          ├─▶ chains of the hooks input and forward ─▶ findings
    iptables-save        ─┘

A guess by what rules say, not a simulation: a rule that names our port, our network or our devices decides; where the filter drops
by default and no rule names them, that is worth a warning.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Ports = tuple[tuple[int, int], ...]
_DROPS = frozenset({"drop", "reject"})


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One rule: ``ports`` of UDP that it names (None: none), ``names`` of networks and devices, ``bare``: it has no condition."""

    verdict: str
    ports: Ports | None = None
    names: frozenset[str] = frozenset()
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain with the rules of the chains that it jumps to. ``nft``: its family, table and name, None where it is iptables's."""

    where: str
    hook: str
    policy: str
    rules: tuple[FilterRule, ...]
    nft: str | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What may drop us, and what lets us through: a rule in that very chain, for in nft no other chain can take a drop back."""

    reason: str
    cure: str


def port_problem(chains: Iterable[Chain], port: int) -> Obstacle | None:
    """Why UDP to this port may not come in; None when nothing speaks against it."""
    for chain in chains:
        if chain.hook == "input" and (reason := _fate(chain, lambda rule: _has_port(rule, port), f"UDP port {port}")):
            return Obstacle(reason, _accept(chain, f"-p udp --dport {port}", f"udp dport {port}"))
    return None


def forward_problem(chains: Iterable[Chain], network: str, devices: Iterable[str]) -> Obstacle | None:
    """Why packets between pods and the overlay may not be forwarded; None when nothing speaks against it."""
    ours = frozenset(devices)
    for chain in chains:
        if chain.hook == "forward" and (reason := _fate(chain, lambda rule: _is_about(rule, network, ours), network)):
            ways = (("-s", "saddr"), ("-d", "daddr"))
            return Obstacle(reason, "; ".join(_accept(chain, f"{old} {network}", f"ip {new} {network}") for old, new in ways))
    return None


def _accept(chain: Chain, iptables: str, nft: str) -> str:
    """The command for a rule before all others of this chain."""
    if chain.nft is not None:
        return f"nft insert rule {chain.nft} {nft} accept"
    return f"iptables -I {chain.hook.upper()} {iptables} -j ACCEPT"


def _fate(chain: Chain, concerns: Any, what: str) -> str | None:
    """The first rule that names us decides; then a rule without conditions; then the policy."""
    for rule in chain.rules:
        if concerns(rule) and rule.verdict in _DROPS:
            return f"{chain.where}: a rule drops {what}"
        if rule.verdict == "accept" and (rule.bare or concerns(rule)):
            return None
        if rule.bare and rule.verdict in _DROPS:
            return f"{chain.where} drops what no rule accepts, and none names {what}"
    return f"{chain.where} drops by policy, and no rule names {what}" if chain.policy == "drop" else None


def _has_port(rule: FilterRule, port: int) -> bool:
    return rule.ports is not None and any(low <= port <= high for low, high in rule.ports)


def _is_about(rule: FilterRule, network: str, devices: frozenset[str]) -> bool:
    return bool(rule.names & devices) or any(_covers(name, network) for name in rule.names)


def _covers(name: str, network: str) -> bool:
    try:
        wide, narrow = ipaddress.ip_network(name, strict=False), ipaddress.ip_network(network)
    except ValueError:
        return False
    return wide.version == narrow.version and wide.supernet_of(narrow)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ iptables-save


def from_iptables(text: str, tool: str = "iptables") -> list[Chain]:
    """The chains INPUT and FORWARD of the table filter in the output of iptables-save."""
    found = re.search(r"^\*filter$(.*?)^COMMIT$", text, re.MULTILINE | re.DOTALL)
    lines = found[1].splitlines() if found else []
    policies = dict(re.findall(r"^:(\S+) (\S+)", "\n".join(lines), re.MULTILINE))
    rules: dict[str, list[tuple[FilterRule, str]]] = {}
    for line in lines:
        if line.startswith("-A "):
            words = shlex.split(line)
            rules.setdefault(words[1], []).append(_iptables_rule(words[2:]))
    return [
        Chain(f"{tool}: chain {name}", hook, policies[name].lower(), tuple(_flat(name, rules, ())))
        for name, hook in (("INPUT", "input"), ("FORWARD", "forward"))
        if name in policies
    ]


def _iptables_rule(words: list[str]) -> tuple[FilterRule, str]:
    """A rule and where it jumps to. Conditions that are negated name nobody."""
    value = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("-") and words[at - 1 : at] != ["!"]}
    target = value.get("-j", value.get("-g", ""))
    udp = value.get("-p") == "udp"
    port_text = value.get("--dport") or value.get("--dports") or ""
    names = frozenset(value[word] for word in ("-s", "-d", "-i", "-o") if word in value)
    bare = not any(word in ("-s", "-d", "-i", "-o", "-p", "-m") for word in words)
    return FilterRule(target.lower(), _ports(port_text.split(",")) if udp and port_text else None, names, bare), target


def _ports(words: Iterable[str]) -> Ports:
    found = []
    for word in words:
        low, _, high = word.partition(":")
        if low.isdecimal():
            found.append((int(low), int(high) if high.isdecimal() else int(low)))
    return tuple(found)


# ------------------------------------------------------------------------------------------------ nft


def from_nft(ruleset: Mapping[str, Any]) -> list[Chain]:
    """The base chains of the hooks input and forward in ``nft -j list ruleset``, but for those that are iptables's."""
    items = ruleset.get("nftables", [])
    rules: dict[str, list[tuple[FilterRule, str]]] = {}
    for item in items:
        if rule := item.get("rule"):
            rules.setdefault(_chain_key(rule, rule["chain"]), []).append(_nft_rule(rule))
    chains = []
    for item in items:
        chain = item.get("chain")
        if chain and chain.get("hook") in ("input", "forward") and chain["family"] in ("ip", "inet") and not _is_iptables(chain):
            name = f"{chain['family']} {chain['table']} {chain['name']}"
            flat = tuple(_flat(_chain_key(chain, chain["name"]), rules, ()))
            chains.append(Chain(f"nft: chain {name}", chain["hook"], chain.get("policy", "accept"), flat, name))
    return chains


def _is_iptables(chain: Mapping[str, Any]) -> bool:
    return chain["table"] == "filter" and chain["family"] == "ip" and chain["name"] in ("INPUT", "FORWARD")


def _chain_key(item: Mapping[str, Any], name: str) -> str:
    return f"{item['family']} {item['table']} {name}"


def _nft_rule(rule: Mapping[str, Any]) -> tuple[FilterRule, str]:
    verdict, target, ports, names, bare = "", "", None, set(), True
    for part in rule.get("expr", []):
        if match := part.get("match"):
            bare = False
            if match.get("op") in ("==", "in"):
                ports = _nft_ports(match) or ports
                names |= set(_nft_names(match["right"]))
        for word in ("accept", "drop", "reject", "return"):
            verdict = word if word in part else verdict
        for word in ("jump", "goto"):
            target = _chain_key(rule, part[word]["target"]) if word in part else target
        bare = bare and "xt" not in part
    return FilterRule(verdict, ports, frozenset(names), bare), target


def _nft_ports(match: Mapping[str, Any]) -> Ports | None:
    left = match["left"].get("payload", {}) if isinstance(match["left"], dict) else {}
    if left.get("field") != "dport" or left.get("protocol") not in ("udp", "th"):
        return None
    right = match["right"]
    items = right.get("set", [right]) if isinstance(right, dict) else [right]
    ranges = (item["range"] if isinstance(item, dict) and "range" in item else [item, item] for item in items)
    return tuple((low, high) for low, high in ranges if isinstance(low, int) and isinstance(high, int))


def _nft_names(right: object) -> Iterator[str]:
    match right:
        case str():
            yield right
        case {"prefix": {"addr": address, "len": length}}:
            yield f"{address}/{length}"
        case {"set": list(items)}:
            for item in items:
                yield from _nft_names(item)


def _flat(name: str, rules: Mapping[str, list[tuple[FilterRule, str]]], above: tuple[str, ...]) -> Iterator[FilterRule]:
    """The rules of a chain, those of the chains that it jumps to in their place; no chain within itself."""
    for rule, target in rules.get(name, []):
        if target in rules and target not in above and len(above) < 16:
            yield from _flat(target, rules, (*above, name))
        else:
            yield rule
