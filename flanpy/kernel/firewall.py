"""Keeps masquerade and forward rules as they should be, by nft or iptables, and takes them away. Touches only what is ours.

Owned and called by the loop's thread. A check costs a process or two, so it is made when there is a reason: other rules are wanted,
the kernel has told of a change (``touched``), or it is time. Rules outlive the process; a restart finds them good and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

from flanpy.core.rules import Placement, place
from flanpy.core.rules_iptables import FORWARD, MASQUERADE
from flanpy.core.rules_nft import TABLE
from flanpy.kernel.firewall_iptables import IptablesFirewall
from flanpy.kernel.firewall_nft import NftFirewall
from flanpy.kernel.firewall_tool import find_tool
from flanpy.model import FirewallRules, FirewallTool, Rule

QUIET_S = 30.0
"""Seconds between checks where the kernel tells of changes."""


class Firewall:
    """Our rules in the network namespace of this process. ``resync_s``: seconds between checks where the kernel tells nothing."""

    def __init__(self, resync_s: float = 5.0, *, variant: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        nft = find_tool("nft")
        self._nft = NftFirewall(nft) if nft is not None else None
        self._iptables = IptablesFirewall(variant)
        self._there = (self._nft is not None, self._iptables.is_there())
        self.resync_s = resync_s
        self._clock = clock
        self._good: FirewallRules | None = None
        self._placement: Placement | None = None
        self._due_s = 0.0
        self.is_watched = False
        """Whether somebody calls ``touched`` when the kernel tells of a change."""

    @cached_property
    def _working(self) -> tuple[bool, bool]:
        """(nft, iptables): which of them work; asked when first needed, for nothing waits for it before the datapath runs."""
        return self._nft is not None and self._nft.works(), self._iptables.works()

    @cached_property
    def _iptables_tells(self) -> bool:
        return self._iptables.tells_of_changes()

    @property
    def placement(self) -> Placement | None:
        """Which tool keeps what, once that has been decided; None for a part without rules."""
        return self._placement

    def touched(self) -> None:
        """Somebody has changed something that may concern us."""
        self._due_s = 0.0

    def is_due(self) -> bool:
        """Whether it is time for a check though nothing was heard."""
        return self._good is not None and self._clock() >= self._due_s

    def converge(self, rules: FirewallRules) -> int:
        """Make our part of the firewall what ``rules`` say, if there is a reason to look; how many parts were changed.

        Raises PlatformError; whatever was there still is, for every step is whole or not at all.
        """
        if rules == self._good and self._clock() < self._due_s:
            return 0
        has_nft, has_iptables = self._usable(rules)
        placement = place(rules, has_nft=has_nft, has_iptables=has_iptables)
        sweep = rules != self._good
        self._good = None
        changed = self._apply(rules, placement, sweep)
        self._good, self._placement = rules, _used(rules, placement)
        self._due_s = self._clock() + (QUIET_S if self.is_watched and self._is_told(placement) else self.resync_s)
        return changed

    def _usable(self, rules: FirewallRules) -> tuple[bool, bool]:
        """(nft, iptables): those that work, unless one is asked for or none does; then those that are there, so that they say why."""
        asked = rules.tool != "auto" or (bool(rules.masquerade) and not any(self._working))
        return self._there if asked else self._working

    def _is_told(self, placement: Placement) -> bool:
        return "iptables" not in (placement.masquerade, placement.forward) or self._iptables_tells

    def _apply(self, rules: FirewallRules, placement: Placement, sweep: bool) -> int:
        """Masquerading goes where it belongs before it leaves where it was, so there is never a moment without."""
        steps = [self._apply_nft, self._apply_iptables]
        if placement.masquerade == "iptables":
            steps.reverse()
        return sum(step(rules, placement, sweep) for step in steps)

    def _apply_nft(self, rules: FirewallRules, placement: Placement, sweep: bool) -> int:
        masquerade, forward = _part("nft", rules, placement)
        wanted = bool(masquerade or forward)
        if self._nft is None or not (wanted or (sweep and self._working[0])):
            return 0
        return int(self._nft.ensure(masquerade, forward, rules.networks, sweep=sweep))

    def _apply_iptables(self, rules: FirewallRules, placement: Placement, sweep: bool) -> int:
        if not self._there[1]:
            return 0
        parts = zip((MASQUERADE, FORWARD), _part("iptables", rules, placement), strict=True)
        return sum(self._iptables.ensure(spot, part, rules.networks, sweep=sweep) for spot, part in parts)


def _part(tool: FirewallTool, rules: FirewallRules, placement: Placement) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """(masquerade, forward) as far as this tool keeps them."""
    return (
        rules.masquerade if placement.masquerade == tool else (),
        rules.forward if placement.forward == tool else (),
    )


def _used(rules: FirewallRules, placement: Placement) -> Placement:
    return Placement(placement.masquerade if rules.masquerade else None, placement.forward if rules.forward else None)


def remove_rules(variant: str = "") -> tuple[str, ...]:
    """Take away all rules of ours, of every family and tool; what was there, in words. For ``flanpy cleanup``."""
    found = find_rules(variant)
    if found:
        firewall = Firewall(variant=variant)
        firewall.converge(FirewallRules())
    return found


def find_rules(variant: str = "") -> tuple[str, ...]:
    """What ``remove_rules`` would take away."""
    nft, iptables = find_tool("nft"), IptablesFirewall(variant)
    table = (f"nft table inet {TABLE}",) if nft is not None and NftFirewall(nft).read() is not None else ()
    return table + (iptables.found() if iptables.is_there() else ())
