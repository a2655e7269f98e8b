"""Our chains of iptables and ip6tables: read by ``-save``, compared whole, written by one ``-restore --noflush`` a table."""

from __future__ import annotations

from flanpy.core.rules_iptables import SPOTS, Listed, Spot, of_family, parse_save, restore_text
from flanpy.errors import PlatformError
from flanpy.kernel.firewall_tool import LOCK_WAIT_S, demand, find_tool, run_tool
from flanpy.model import Network, Rule

FAMILIES = ((4, "iptables"), (6, "ip6tables"))


class IptablesFirewall:
    """The chains of the calling process's network namespace; ``variant`` "" is the machine's own choice, else ``nft`` or ``legacy``."""

    def __init__(self, variant: str = "") -> None:
        self._infix = f"-{variant}" if variant else ""

    def is_there(self) -> bool:
        """Whether iptables can be run here."""
        return self._tool("iptables", "restore") is not None

    def works(self) -> bool:
        """Whether it can be run, and this kernel has what it needs to read."""
        tool = self._tool("iptables", "save")
        return tool is not None and self.is_there() and run_tool(tool).status == 0

    def tells_of_changes(self) -> bool:
        """Whether this iptables is one over nftables, whose changes the kernel reports."""
        tool = self._tool("iptables")
        return tool is not None and "nf_tables" in run_tool(tool, "--version").output

    def ensure(self, spot: Spot, rules: tuple[Rule, ...], networks: tuple[Network, ...], *, sweep: bool) -> bool:
        """Make our chain here what these rules ask for; whether anything had to be done. ``sweep``: look where none are wanted, too."""
        changed = False
        for version, command in FAMILIES:
            own = of_family(rules, version)
            if not own and not (sweep and self._tool(command, "save")):
                continue
            try:
                there = self._read(command, spot, networks, whole=not own)
            except PlatformError:
                if own:
                    raise
                continue  # a family that this kernel does not have, and of which nothing is wanted
            if not there.is_good(spot, own):
                tool = self._needed(command, "restore")
                demand(tool, "--noflush", "-w", str(LOCK_WAIT_S), text=restore_text(spot, own, there))
                changed = True
        return changed

    def found(self) -> tuple[str, ...]:
        """Our chains that are there, in words."""
        return tuple(
            f"{command} -t {spot.table} chain {spot.chain}"
            for _, command in FAMILIES
            for spot in SPOTS
            if self._tool(command, "save") and self._read(command, spot, (), whole=True).has_chain
        )

    def _read(self, command: str, spot: Spot, networks: tuple[Network, ...], *, whole: bool) -> Listed:
        """Asking for a table by name loads it into a kernel with iptables-legacy; ``whole`` asks for those that are there."""
        tool = self._needed(command, "save")
        return parse_save(demand(tool, *(() if whole else ("-t", spot.table))), spot, networks)

    def _tool(self, command: str, verb: str = "") -> str | None:
        return find_tool(f"{command}{self._infix}-{verb}" if verb else f"{command}{self._infix}")

    def _needed(self, command: str, verb: str) -> str:
        tool = self._tool(command, verb)
        if tool is None:
            raise PlatformError(f"{command}{self._infix}-{verb} is not there; install it (Debian: iptables)")
        return tool
