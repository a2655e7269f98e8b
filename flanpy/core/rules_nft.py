"""Our nftables table as text for ``nft -f``, and back from ``nft -j list table``; no I/O.

    table inet flanpy
      chain postrouting   nat hook, priority srcnat   masquerade rules, a counter in each
      chain forward       filter hook                 forward rules

``replace_script`` keeps the chains and exchanges their rules within one transaction: a packet meets the old rules or the new ones, whole.
``recreate_script`` is for a table whose chains are not ours any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, cast

from flanpy.model import Network, Rule

TABLE = "flanpy"
FLANNEL_TABLES = (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6"))
"""Where flanneld keeps its rules when EnableNFTables is set."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain with its rules; a rule that we do not understand is None and equals none of ours."""

    name: str
    type: str
    hook: str
    priority: int
    policy: str
    rules: tuple[Rule | None, ...]

    @property
    def without_rules(self) -> Chain:
        """What can only be changed by making the chain anew."""
        return Chain(self.name, self.type, self.hook, self.priority, self.policy, ())


@dataclass(frozen=True, slots=True)
class Table:
    """Our table: its chains by name; ``strange`` counts objects in it that we never make (sets, maps, flow tables)."""

    chains: tuple[Chain, ...] = ()
    strange: int = 0


def table_of(masquerade: tuple[Rule, ...], forward: tuple[Rule, ...]) -> Table | None:
    """The table as it should be; None when there is nothing to put into it."""
    chains = []
    if forward:
        chains.append(Chain("forward", "filter", "forward", 0, "accept", forward))
    if masquerade:
        chains.append(Chain("postrouting", "nat", "postrouting", 100, "accept", masquerade))
    return Table(tuple(chains)) if chains else None


# ------------------------------------------------------------------------------------------------ to text


def script(wanted: Table | None, there: Table | None, strangers: Iterable[tuple[str, str]] = ()) -> str:
    """One transaction that makes our table the wanted one, and removes the tables ``strangers`` (family, name)."""
    parts = [f"delete table {family} {name}\n" for family, name in strangers]
    if wanted is None:
        return "".join(([f"delete table inet {TABLE}\n"] if there is not None else []) + parts)
    keeps = there is None or (not there.strange and _bare(there) <= _bare(wanted))
    return "".join([replace_script(wanted) if keeps else recreate_script(wanted), *parts])


def _bare(table: Table) -> set[Chain]:
    return {chain.without_rules for chain in table.chains}


def replace_script(table: Table) -> str:
    """Declare table and chains (nothing happens to those that are there), then exchange all rules."""
    bare = Table(tuple(chain.without_rules for chain in table.chains))
    return f"{_declaration(bare)}flush table inet {TABLE}\n{_declaration(table)}"


def recreate_script(table: Table) -> str:
    """Delete the table, whatever it is, and make it anew."""
    return f"table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n{_declaration(table)}"


def _declaration(table: Table) -> str:
    chains = "".join(_chain(chain) for chain in table.chains)
    return f"table inet {TABLE} {{\n{chains}}}\n"


def _chain(chain: Chain) -> str:
    head = f"\t\ttype {chain.type} hook {chain.hook} priority {chain.priority}; policy {chain.policy};\n"
    rules = "".join(f"\t\t{_line(rule)}\n" for rule in chain.rules if rule is not None)
    return f"\tchain {chain.name} {{\n{head}{rules}\t}}\n"


def _line(rule: Rule) -> str:
    family = "ip6" if rule.version == 6 else "ip"
    parts = [f"meta mark & {rule.mark:#x} == {rule.mark:#x}"] if rule.mark else []
    for field, operator, network in (
        ("saddr", "", rule.source),
        ("saddr", "!= ", rule.not_source),
        ("daddr", "", rule.destination),
        ("daddr", "!= ", rule.not_destination),
    ):
        if network is not None:
            parts.append(f"{family} {field} {operator}{network}")
    verdict = f"{rule.action} fully-random" if rule.fully_random else rule.action
    return " ".join((*parts, "counter", verdict, f'comment "{rule.comment}"'))


# ------------------------------------------------------------------------------------------------ from nft's JSON


def parse_table(text: str) -> Table:
    """What ``nft -j list table inet flanpy`` says. Raises ValueError when it is not that."""
    chains: list[Mapping[str, Any]] = []
    rules: dict[str, list[Rule | None]] = {}
    strange = 0
    for kind, body in _objects(text):
        match kind:
            case "chain":
                chains.append(body)
            case "rule":
                rules.setdefault(str(body.get("chain")), []).append(_rule(body))
            case "metainfo" | "table":
                pass
            case _:
                strange += 1
    found = [_parsed_chain(chain, tuple(rules.get(str(chain.get("name")), ()))) for chain in chains]
    return Table(tuple(sorted(found, key=lambda chain: chain.name)), strange)


def names_one_of(text: str, networks: Iterable[Network]) -> bool:
    """Whether a rule of a listed table is about one of these networks."""
    named = {network for kind, body in _objects(text) if kind == "rule" for network in _networks(body.get("expr"))}
    return not named.isdisjoint(networks)


def _objects(text: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    listed = json.loads(text)
    if not isinstance(listed, dict) or not isinstance(listed.get("nftables"), list):
        raise ValueError("no list of nftables objects")
    return [(kind, body) for item in listed["nftables"] for kind, body in item.items()]


def _parsed_chain(body: Mapping[str, Any], rules: tuple[Rule | None, ...]) -> Chain:
    texts = {key: str(body.get(key, "")) for key in ("name", "type", "hook", "policy")}
    priority = body.get("prio", 0)
    return Chain(
        texts["name"], texts["type"], texts["hook"], priority if isinstance(priority, int) else -1, texts["policy"], rules
    )


def _rule(body: Mapping[str, Any]) -> Rule | None:
    """The rule of a listed expression; None for any that we would not have written."""
    found: dict[str, Any] = {}
    try:
        for statement in body["expr"]:
            ((kind, detail),) = statement.items()
            for name, value in _statement(kind, detail).items():
                if name in found:
                    return None
                found[name] = value
        return Rule(comment=str(body.get("comment", "")), **found)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _statement(kind: str, detail: Any) -> Mapping[str, Any]:
    match kind:
        case "counter":
            return {}
        case "match":
            return _match(detail["op"], detail["left"], detail["right"])
        case "return" | "accept":
            return {"action": kind}
        case "masquerade" if detail is None:
            return {"action": kind}
        case "masquerade" if detail in ({"flags": "fully-random"}, {"flags": ["fully-random"]}):
            return {"action": kind, "fully_random": True}
    raise ValueError(kind)


def _match(operator: str, left: Any, right: Any) -> Mapping[str, Any]:
    match left:
        case {"&": [{"meta": {"key": "mark"}}, int(mask)]} if operator == "==" and right == mask:
            return {"mark": mask}
        case {"payload": {"protocol": "ip" | "ip6", "field": "saddr" | "daddr" as field}} if operator in ("==", "!="):
            name = "source" if field == "saddr" else "destination"
            return {name if operator == "==" else f"not_{name}": _network(right)}
    raise ValueError("a match of another kind")


def _network(right: Any) -> Network:
    if isinstance(right, str):
        return ip_network(right)
    prefix = right["prefix"]
    return ip_network(f"{prefix['addr']}/{prefix['len']}")


def _networks(expression: object) -> Iterable[Network]:
    """Every network that stands anywhere in an expression."""
    if isinstance(expression, list):
        return [network for item in expression for network in _networks(item)]
    if not isinstance(expression, dict):
        return []
    if "prefix" in expression:
        try:
            return [_network(expression)]
        except (ValueError, KeyError, TypeError):
            return []
    return [network for item in cast("dict[str, object]", expression).values() for network in _networks(item)]
