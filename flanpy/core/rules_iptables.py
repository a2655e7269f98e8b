"""Our iptables chains as text for ``iptables-restore --noflush``, and back from ``iptables-save``; no I/O.

    nat     POSTROUTING  -> FLANPY-POSTRTG   masquerade rules          one jump from the built-in chain, put first when it is missing
    filter  FORWARD      -> FLANPY-FWD       forward rules

iptables-restore commits a table whole: declaring a chain empties it within that commit, so a packet meets the old rules or the new
ones. Where our jump stands among others is not disputed later: whoever inserts above us meant to. flanneld's lines about our networks
are deleted in the same commit that brings ours.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from flanpy.model import Network, Rule


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one kind of rules lives."""

    table: str
    hook: str
    chain: str
    jump: str
    """The jump's comment."""


MASQUERADE = Spot("nat", "POSTROUTING", "FLANPY-POSTRTG", "flanpy masq")
FORWARD = Spot("filter", "FORWARD", "FLANPY-FWD", "flanpy forward")
SPOTS = (MASQUERADE, FORWARD)
_FLANNEL_CHAIN = {"nat": "FLANNEL-POSTRTG", "filter": "FLANNEL-FWD"}
_FLANNEL_COMMENTS = frozenset(("flanneld masq", "flanneld forward"))
_RULE_LINE = re.compile(r"-A (\S+) (.*)")


@dataclass(frozen=True, slots=True)
class Listed:
    """What one table has of ours, and what of flanneld's names our networks (``-A CHAIN …`` lines without the ``-A``)."""

    has_chain: bool = False
    rules: tuple[Rule | None, ...] = ()
    jumps: tuple[str, ...] = ()
    """Jumps to our chain, as they stand there, without ``-A``."""
    flannel_lines: tuple[str, ...] = ()
    flannel_chain: str | None = None

    def is_good(self, spot: Spot, rules: tuple[Rule, ...]) -> bool:
        """Whether this is what ``rules`` ask for, and flanneld's is gone."""
        jumps = (_jump(spot),) if rules else ()
        whole = (self.has_chain, self.rules, self.jumps) == (bool(rules), rules, jumps)
        return whole and not self.flannel_lines and self.flannel_chain is None


def of_family(rules: Iterable[Rule], version: int) -> tuple[Rule, ...]:
    """The rules for iptables (4) or ip6tables (6)."""
    chosen = tuple(rule for rule in rules if rule.version in (None, version))
    return chosen if any(rule.version == version for rule in chosen) else ()


# ------------------------------------------------------------------------------------------------ to text


def restore_text(spot: Spot, rules: tuple[Rule, ...], there: Listed) -> str:
    """One commit that makes this table's part of ours what ``rules`` ask for; no rules: chain and jumps go."""
    lines = [f"*{spot.table}"]
    if rules or there.has_chain:
        lines.append(f":{spot.chain} - [0:0]")
    lines += [f"-A {spot.chain} {_arguments(rule)}" for rule in rules]
    if not rules or there.jumps != (_jump(spot),):
        lines += [f"-D {jump}" for jump in there.jumps]
        if rules:
            lines.append(f"-I {spot.hook} 1 {_jump(spot).partition(' ')[2]}")
    if not rules and there.has_chain:
        lines.append(f"-X {spot.chain}")
    lines += [f"-D {line}" for line in there.flannel_lines]
    if there.flannel_chain is not None:
        lines += [f"-F {there.flannel_chain}", f"-X {there.flannel_chain}"]
    return "\n".join((*lines, "COMMIT", ""))


def _jump(spot: Spot) -> str:
    return f'{spot.hook} -m comment --comment "{spot.jump}" -j {spot.chain}'


def _arguments(rule: Rule) -> str:
    parts = []
    for option, network in (
        ("-s", rule.source),
        ("! -s", rule.not_source),
        ("-d", rule.destination),
        ("! -d", rule.not_destination),
    ):
        if network is not None:
            parts.append(f"{option} {network}")
    if rule.mark:
        parts.append(f"-m mark --mark {rule.mark:#x}/{rule.mark:#x}")
    parts.append(f'-m comment --comment "{rule.comment}" -j {rule.action.upper()}')
    return " ".join((*parts, "--random-fully") if rule.fully_random else parts)


# ------------------------------------------------------------------------------------------------ from iptables-save


def parse_save(text: str, spot: Spot, networks: Iterable[Network]) -> Listed:
    """What ``iptables-save`` says about one table."""
    section = _section(text, spot.table)
    chains = {line[1:].split(" ", 1)[0] for line in section if line.startswith(":")}
    lines = [matched.groups() for line in section if (matched := _RULE_LINE.fullmatch(line)) is not None]
    flannel = _FLANNEL_CHAIN[spot.table]
    theirs = {str(network) for network in networks}
    named = any(chain == flannel and not theirs.isdisjoint(rest.split()) for chain, rest in lines)
    chain_goes = flannel in chains and named
    return Listed(
        has_chain=spot.chain in chains,
        rules=tuple(_rule(rest) for chain, rest in lines if chain == spot.chain),
        jumps=tuple(f"{chain} {rest}" for chain, rest in lines if chain != spot.chain and _target(rest) == spot.chain),
        flannel_lines=tuple(
            f"{chain} {rest}"
            for chain, rest in lines
            if chain != flannel and _is_flannels(rest, flannel if chain_goes else "", theirs)
        ),
        flannel_chain=flannel if chain_goes else None,
    )


def _section(text: str, table: str) -> list[str]:
    """The lines of one table; none when it is not there."""
    found = re.search(rf"^\*{table}$(.*?)^COMMIT$", text, re.MULTILINE | re.DOTALL)
    return found[1].strip().splitlines() if found else []


def _target(rest: str) -> str:
    words = rest.split()
    return words[words.index("-j") + 1] if "-j" in words[:-1] else ""


def _is_flannels(rest: str, chain: str, networks: set[str]) -> bool:
    """Whether a line outside flanneld's chain is its jump there, or one of the older kind that names our networks."""
    if chain and _target(rest) == chain:
        return True
    try:
        words = shlex.split(rest)
    except ValueError:
        return False
    return not _FLANNEL_COMMENTS.isdisjoint(words) and not networks.isdisjoint(words)


def _rule(rest: str) -> Rule | None:
    """The rule of a saved line; None for any that we would not have written."""
    found: dict[str, Any] = {}
    try:
        words = iter(shlex.split(rest))
        for word in words:
            for name, value in _option(word, words).items():
                if name in found:
                    return None
                found[name] = value
        return Rule(**{"comment": "", **found})
    except (ValueError, TypeError, KeyError, StopIteration):
        return None


def _option(word: str, words: Iterator[str]) -> dict[str, Any]:
    match word:
        case "!" | "-s" | "-d":
            option = next(words) if word == "!" else word
            name = {"-s": "source", "-d": "destination"}[option]
            return {f"not_{name}" if word == "!" else name: ip_network(next(words))}
        case "-m" if next(words) in ("mark", "comment"):
            return {}
        case "--mark":
            return {"mark": _mark(*next(words).split("/"))}
        case "--comment":
            return {"comment": next(words)}
        case "-j":
            return {"action": _action(next(words))}
        case "--random-fully":
            return {"fully_random": True}
    raise ValueError(word)


def _mark(value: str, mask: str) -> int:
    if value != mask:
        raise ValueError(mask)
    return int(value, 16)


def _action(target: str) -> str:
    if target not in ("RETURN", "ACCEPT", "MASQUERADE"):
        raise ValueError(target)
    return target.lower()
