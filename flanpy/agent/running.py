"""A datapath at work, as ``machine`` holds it: what it was opened for, the table that it has, and what is said of its restarts."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from flanpy.agent.datapaths import Choice
from flanpy.agent.logs import event
from flanpy.datapath import Datapath, DatapathSettings
from flanpy.errors import DatapathError
from flanpy.model import Address, DesiredState, ForwardTable

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Running:
    """Owned by the loop's thread; ``restarts`` of its process, and what it does without (``told``), are those that have been said.

    ``table`` is the last that it is known to have taken; ``in_doubt``: it may have taken a later one since, which it has not confirmed.
    """

    choice: Choice
    settings: DatapathSettings
    datapath: Datapath
    table: ForwardTable | None = None
    in_doubt: bool = False
    restarts: int = 0
    told: tuple[str, ...] = ()

    def check(self, *, closely: bool = True) -> None:
        """Raise DatapathError when the datapath cannot go on; a process that it had to start anew, and what it lacks now, is said."""
        self.datapath.check(closely=closely)
        self._say_degraded()
        process = self.datapath.process
        if process is not None and process.restarts != self.restarts:
            self.restarts = process.restarts
            log.warning(
                "datapath %s; process %d has taken its place",
                process.ended,
                process.pid,
                extra=event("datapath_restarted", ended=process.ended, pid=process.pid, restarts=process.restarts),
            )

    def publish(self, table: ForwardTable) -> bool:
        """Give it this table; whether that was necessary. A number alone makes no other table."""
        if not self.in_doubt and self.table is not None and replace(self.table, generation=table.generation) == table:
            return False
        self.in_doubt = True
        self.datapath.publish(table)
        self.table, self.in_doubt = table, False
        return True

    def widens(self, table: ForwardTable) -> bool:
        """Whether larger packets may pass by this table than by the one in use."""
        return self.table is not None and table.mtu_bytes > self.table.mtu_bytes

    def say(self) -> None:
        """Tell which datapath has been opened, why, and what it does without."""
        choice, process = self.choice, self.datapath.process
        told = f"; process {process.pid} {'adopted' if process.adopted else 'started'}" if process is not None else ""
        device = self.settings.device
        log.info(
            "datapath %s on %s: %s%s",
            choice.kind,
            device,
            choice.reason,
            told,
            extra=event("datapath_started", kind=choice.kind, device=device, reason=choice.reason, process=told[2:]),
        )
        self._say_degraded()

    def _say_degraded(self) -> None:
        """What is new of it; what is over can be said again."""
        before, self.told = self.told, self.datapath.degraded
        for line in self.told:
            if line not in before:
                kind = self.choice.kind
                log.warning("datapath %s: %s", kind, line, extra=event("datapath_degraded", kind=kind, reason=line))


def datapath_settings(
    desired: DesiredState,
    underlay: Address,
    port: int,
    *,
    queues: int,
    source_check: bool,
    spin_us: int,
    ebpf_bypass: bool = False,
) -> DatapathSettings:
    """The settings of the datapath that carries this desired state's tunnel."""
    tunnel = desired.tunnel
    if tunnel is None:
        raise DatapathError("this backend has no tunnel device")
    own = [interface.ip for interface in tunnel.addresses]
    return DatapathSettings(
        device=tunnel.name,
        tunnel_address=next((ip for ip in own if isinstance(ip, IPv4Address)), None),
        tunnel_address6=next((ip for ip in own if isinstance(ip, IPv6Address)), None),
        underlay_address=underlay,
        port=port,
        queues=queues,
        source_check=source_check,
        spin_us=spin_us,
        ebpf_bypass=ebpf_bypass,
    )
