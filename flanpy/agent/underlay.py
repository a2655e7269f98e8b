"""Follows the underlay interface: its address, MTU and state may change while the agent runs (DHCP, a replugged cable, a moved route).

Called by the loop's thread when the kernel has told of a change. While no interface fits, the last one stays in use (fail static) and
the reason is kept for the operator.
"""

from __future__ import annotations

import logging
import threading
from ipaddress import IPv4Address

from flanpy.agent.logs import event
from flanpy.errors import FlanpyError, InterfaceError
from flanpy.kernel.address_probe import other_holder
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.uplink import UplinkSelection, find_uplink
from flanpy.model import Uplink

log = logging.getLogger(__name__)


class Underlay:
    """The uplink in use; made at start, when an interface that does not fit ends the agent (InterfaceError)."""

    def __init__(self, kernel: Kernel, selection: UplinkSelection) -> None:
        self._kernel = kernel
        self._selection = selection
        self.uplink: Uplink = find_uplink(kernel, selection)
        self.problem: str | None = None

    def probe_address(self) -> None:
        """Have a thread ask whether another machine answers for our address, and warn if one does; nothing waits for it."""
        threading.Thread(target=_warn_of_another_holder, args=(self.uplink,), name="address-probe", daemon=True).start()

    def look(self) -> bool:
        """Look again; whether anything that matters to us has changed.

        A node that peers reach by IPv4 does not turn to IPv6 while its address is away: they would not find it there.
        """
        try:
            found = find_uplink(self._kernel, self._selection)
            if found.address is None and self.uplink.address is not None:
                raise InterfaceError(f"{found.name} has lost its IPv4 address")
        except FlanpyError as error:
            self._lost(str(error))
            return False
        if self.problem is not None:
            log.info("underlay: %s is back", found.name, extra=event("uplink_back", name=found.name))
        self.problem = None
        if found == self.uplink:
            return False
        log.warning(
            "underlay: now %s %s MTU %d (was %s %s MTU %d)",
            found.name,
            found.underlay,
            found.mtu_bytes,
            self.uplink.name,
            self.uplink.underlay,
            self.uplink.mtu_bytes,
            extra=event("uplink_changed", name=found.name, address=str(found.underlay), mtu_bytes=found.mtu_bytes),
        )
        moved = found.underlay != self.uplink.underlay
        self.uplink = found
        if moved:
            self.probe_address()
        return True

    def _lost(self, problem: str) -> None:
        if problem != self.problem:
            log.error(
                "underlay: %s; %s stays in use until one fits",
                problem,
                self.uplink.name,
                extra=event("uplink_lost", problem=problem),
            )
        self.problem = problem


def _warn_of_another_holder(uplink: Uplink) -> None:
    """IPv6 does this by itself (RFC 4862)."""
    if not isinstance(uplink.underlay, IPv4Address):
        return
    try:
        mac = other_holder(uplink.name, uplink.underlay)
    except OSError as error:
        log.debug("underlay: %s is not probed for: %s", uplink.underlay, error.strerror, extra=event("address_not_probed"))
        return
    if mac is not None:
        log.warning(
            "underlay: %s on the link of %s has the address %s too: other nodes reach one of the two; give one another address",
            mac,
            uplink.name,
            uplink.underlay,
            extra=event("address_taken", address=str(uplink.underlay), mac=mac, name=uplink.name),
        )
