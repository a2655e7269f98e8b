"""Our table of nftables: reads it whole, compares it whole, writes it by one transaction. Touches no other table but flanneld's of ours."""

from __future__ import annotations

from collections.abc import Iterator

from flanpy.core.rules_nft import FLANNEL_TABLES, TABLE, Table, names_one_of, parse_table, script, table_of
from flanpy.errors import PlatformError
from flanpy.kernel.firewall_tool import demand, refused, run_tool
from flanpy.model import Network, Rule


class NftFirewall:
    """The table ``inet flanpy`` of the calling process's network namespace."""

    def __init__(self, nft: str) -> None:
        self._nft = nft
        self._accepted: tuple[Table | None, Table | None] | None = None

    def works(self) -> bool:
        """Whether this nft speaks JSON and this kernel has nftables."""
        return run_tool(self._nft, "-j", "list", "tables").status == 0

    def ensure(
        self, masquerade: tuple[Rule, ...], forward: tuple[Rule, ...], networks: tuple[Network, ...], *, sweep: bool
    ) -> bool:
        """Make the table what these rules ask for; whether anything had to be done. ``sweep``: look for flanneld's tables too.

        A table that this nft shows in words unknown to us right after we have written it counts as good if it has as many rules
        as we wrote: else it would be written again for ever.
        """
        wanted, there = table_of(masquerade, forward), self.read()
        strangers = tuple(self._flannels(networks)) if sweep else ()
        if not strangers and (there == wanted or (wanted, there) == self._accepted):
            return False
        text = script(wanted, there, strangers)
        demand(self._nft, "-f", "-", text=text)
        written = self.read()
        self._accepted = (wanted, written) if _shape(written) == _shape(wanted) else None
        return True

    def read(self) -> Table | None:
        """The table as it is; None when it is not there."""
        listed = self._list("inet", TABLE)
        try:
            return parse_table(listed) if listed is not None else None
        except ValueError as error:
            raise PlatformError(f"nft -j has not answered in JSON as expected ({error}); give --firewall iptables") from error

    def _list(self, family: str, name: str) -> str | None:
        argv = (self._nft, "-j", "list", "table", family, name)
        done = run_tool(*argv)
        if done.status and "No such file or directory" in done.complaint:
            return None
        if done.status:
            raise refused(argv, done)
        return done.output

    def _flannels(self, networks: tuple[Network, ...]) -> Iterator[tuple[str, str]]:
        """Tables that a flanneld of this node has left: those whose rules name our networks."""
        for family, name in FLANNEL_TABLES:
            listed = self._list(family, name)
            if listed is not None and names_one_of(listed, networks):
                yield family, name


def _shape(table: Table | None) -> list[tuple[object, int]] | None:
    """The chains, and how many rules each has."""
    return None if table is None else [(chain.without_rules, len(chain.rules)) for chain in table.chains]
