"""The agent's hands: makes the devices, addresses, routes and datapath of this machine what the desired state says.

Owned and called by the loop's thread alone. ``converge`` is idempotent and does the same at start-up, after a change and after somebody
has removed our work: it looks at what is there and does what is missing. What fails is reported and left for the next call.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flanpy import backends
from flanpy.agent import files, obstacles, overlay, peer_traffic
from flanpy.agent.datapaths import (
    Choice,
    Home,
    ebpf_problem,
    features_left,
    open_datapath,
    remove_leftovers,
    running_process,
    ways,
)
from flanpy.agent.hooks import HookRunner, run_command
from flanpy.agent.logs import event
from flanpy.agent.peer_traffic import PeerTraffic
from flanpy.agent.running import Running
from flanpy.agent.taken import taken_addresses
from flanpy.backends import wireguard
from flanpy.backends.families import enabled_versions
from flanpy.config.options import AgentOptions
from flanpy.core.x25519 import public_key
from flanpy.datapath import DatapathSettings, DatapathStats, ProcessStatus
from flanpy.errors import DatapathError, DatapathWaits, FlanpyError, PlatformError, reason_of
from flanpy.kernel import links, stand_ins
from flanpy.kernel.firewall import Firewall
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.routes import list_routes
from flanpy.kernel.wireguard import WireguardDevices
from flanpy.model import (
    Address,
    DesiredState,
    ForwardTable,
    LocalFacts,
    Neighbour,
    NetworkConfig,
    Route,
    StandIns,
    Uplink,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pass has done: ``problems`` (empty: the machine is as desired), operations done and seconds taken."""

    problems: tuple[str, ...]
    changed: int
    seconds: float
    usable: bool = False
    """Whether this node can be used: what is wrong, if anything, concerns single peers."""
    waits: bool = False
    """Whether a datapath process is waited for, which will have answered or been replaced soon."""


class Machine:
    """Everything of ours on this machine; ``close`` lets go of the datapath."""

    def __init__(self, kernel: Kernel, kind: str, firewall: Firewall, home: Home, *, teardown: bool = False) -> None:
        self._kernel = kernel
        self._home = home
        self._kind = kind
        self._teardown = teardown
        self.firewall = firewall
        self._running: Running | None = None
        self._wanted = False
        self._proven: frozenset[tuple[int, int]] = frozenset()
        self._prepared = False
        self._swept = False
        self._devices: tuple[str, ...] = ()
        self._routed = False
        self._hooks = HookRunner()
        self._wireguard = WireguardDevices("")
        self._stood_in = True  # an earlier run may have left some
        self._announced: frozenset[Neighbour] = frozenset()

    def use(self, options: AgentOptions) -> None:
        """What becomes of the datapath when we end, and how often rules are looked at where nobody tells of changes."""
        self._teardown = options.teardown
        self.firewall.resync_s = options.iptables_resync

    def facts(self, node_id: str, config: NetworkConfig, state_dir: Path) -> LocalFacts:
        """What a backend has to know of this machine before there is a lease. Raises ConfigError or PlatformError."""
        startup = backends.startup(config)
        said = None if startup is None else run_command("PreStartupCommand", startup)
        public = ""
        if config.backend.type == wireguard.TYPE:
            private = files.wireguard_key(state_dir)
            self._wireguard = WireguardDevices(base64.b64encode(private).decode())
            public = base64.b64encode(public_key(private)).decode()
        return LocalFacts(node_id, overlay.vxlan_macs(self._kernel), said, public)

    def features_left(self, config: NetworkConfig) -> frozenset[str]:
        """What a datapath that an earlier run has left can take, if this run goes on with it."""
        return features_left() if config.backend.type == "udp" and self._kind != "userspace" else frozenset()

    def check_free(self, config: NetworkConfig, uplink: Uplink) -> None:
        """That nobody else has what the backend needs. Raises ResourceBusy, InterfaceError or PlatformError."""
        ours = running_process(self._home.run_dir) is not None or bool(self._home.descriptor_store.tun)
        obstacles.check_free(self._kernel, config, uplink, ours=ours)

    def prepare(self, config: NetworkConfig, uplink: Uplink) -> None:
        """Once, while somebody else has what the datapath needs: probe what opening it would, so that taking over is quick."""
        if self._prepared or config.backend.type != "udp" or self._kind == "userspace" or uplink.underlay is None:
            return
        self._prepared = True
        needed = frozenset((version, uplink.underlay.version) for version in enabled_versions(config))
        with suppress(FlanpyError, OSError):
            if ebpf_problem(uplink.underlay, needed, self._kernel) is None:
                self._proven |= needed

    def left(self) -> str:
        """What stays on this machine when the agent ends, in words; "" when nothing does."""
        carried = f"the {self.choice.kind} datapath" if self.choice is not None and not self._teardown else ""
        placement = self.firewall.placement
        parts = [
            carried,
            ", ".join(self._devices),
            "the routes" if self._routed and not self._devices else "",
            "the masquerade rules" if placement is not None and placement.masquerade else "",
            "the forward rules" if placement is not None and placement.forward else "",
        ]
        *most, last = [part for part in parts if part] or [""]
        return f"{', '.join(most)} and {last}" if most else last

    def converge(self, desired: DesiredState, settings: DatapathSettings | None) -> Outcome:
        """One pass; never raises, for what cannot be done now (no descriptor left, say) is done by a later pass."""
        started = time.monotonic()
        self._devices = tuple(link.name for link in desired.links)
        self._routed = any(not route.device or desired.table is None for route in desired.routes)
        problems: list[str] = []
        peer_problems: list[str] = []
        changed, waits = 0, False
        steps: dict[str, Callable[[], int]] = {
            "datapath": lambda: self._converge_datapath(desired, settings),
            "devices": lambda: overlay.ensure_links(self._kernel, desired, self._wireguard, problems),
            "routes": lambda: overlay.converge_routes(self._kernel, desired, problems, peer_problems),
            "routes of single pods": lambda: self._converge_stand_ins(desired),
            "rules": lambda: self._converge_rules(desired),
        }
        for what, step in steps.items():
            try:
                changed += step()
            except FlanpyError as error:
                problems.append(str(error))
                waits = waits or isinstance(error, DatapathWaits)
            except OSError as error:
                problems.append(f"{what}: {reason_of(error)}")
        peer_problems += taken_addresses(self._kernel, desired)
        essential, others = self._hooks.want(desired.hooks)
        problems += essential
        peer_problems += others
        return Outcome((*problems, *peer_problems), changed, time.monotonic() - started, not problems, waits)

    def _converge_datapath(self, desired: DesiredState, settings: DatapathSettings | None) -> int:
        self._wanted = settings is not None
        if settings is None or desired.table is None:
            return self._leave_datapath()
        changed = self._ensure_datapath(settings)
        if self._running is not None and self._running.widens(desired.table):
            changed += self._publish(desired.table)  # before the device lets larger packets through
        if desired.tunnel is not None:
            try:
                changed += bool(links.ensure_tunnel(self._kernel, desired.tunnel).changed)
            except PlatformError:
                gone = links.find_device(self._kernel, desired.tunnel.name) is None
                # workers without a table do not look at the TUN device, so they cannot tell that it has been removed
                if gone and self._running is not None and self._running.table is None:
                    self._close_datapath()
                raise
        return changed + self._publish(desired.table)

    def _converge_stand_ins(self, desired: DesiredState) -> int:
        """After the routes: who comes here because of an answer must be led on."""
        wanted = desired.stand_ins
        if wanted is None:
            return 0
        changed = self._stand_in(desired, wanted) if wanted.away or wanted.gateways or self._stood_in else 0
        fresh, self._announced = wanted.residents - self._announced, wanted.residents
        stand_ins.introduce(self._kernel, fresh)
        return changed

    def _stand_in(self, desired: DesiredState, wanted: StandIns) -> int:
        ours = [link.name for link in (desired.tunnel, *desired.links) if link is not None]
        changed = stand_ins.ensure_stand_ins(self._kernel, wanted, ours)
        self._stood_in = bool(wanted.away or wanted.gateways)
        return changed

    def _converge_rules(self, desired: DesiredState) -> int:
        """Masquerade and forward rules; they stay when the agent ends, so that its next start leaves no gap."""
        if desired.rules is None:
            return 0
        before = self.firewall.placement
        changed = self.firewall.converge(desired.rules)
        if (placement := self.firewall.placement) is not None and placement != before:
            kept = {"masquerade": placement.masquerade or "off", "forward": placement.forward or "off"}
            told = ", ".join(f"{part} {tool}" if tool == "off" else f"{part} by {tool}" for part, tool in kept.items())
            log.info("rules: %s", told, extra=event("rules_placed", **kept))
        return changed

    def _leave_datapath(self) -> int:
        """The kernel carries the packets: what an earlier run with a datapath has left goes, once."""
        if not self._swept:
            remove_leftovers(self._kernel, self._home)
            self._swept = True
        return 0

    def _ensure_datapath(self, settings: DatapathSettings) -> int:
        """Open the datapath when there is none, it has failed, or it was opened for something else; whether anything was done."""
        if (running := self._running) is not None:
            try:
                running.check()
            except DatapathWaits:
                raise
            except DatapathError as error:
                log.warning("%s; starting it anew", error, extra=event("datapath_failed", reason=str(error)))
                self._close_datapath()
            else:
                if running.settings == settings:
                    return 0
                self._close_datapath()
        choice, datapath = open_datapath(self._kind, settings, self._kernel, self._home, proven=self._proven)
        self._proven |= ways(settings) if choice.kind == "ebpf" else frozenset()
        self._running = Running(choice, settings, datapath)
        self._running.say()
        return 1

    def _publish(self, table: ForwardTable) -> int:
        if self._running is None:
            raise DatapathError("no datapath to publish a table to")
        return int(self._running.publish(table))

    def check(self) -> str | None:
        """Why the datapath is not alive, or None, also when none is wanted. Once a second; a pass looks more closely."""
        if self._hooks.news():
            return "a command has ended"
        if self._running is None:
            return "no datapath runs yet" if self._wanted else None
        try:
            self._running.check(closely=False)
        except (FlanpyError, OSError) as error:
            return str(error)
        return None

    @property
    def choice(self) -> Choice | None:
        """Which datapath runs and why, or None when none does."""
        return self._running.choice if self._running else None

    @property
    def degraded(self) -> tuple[str, ...]:
        """What the running datapath does without now."""
        return self._running.datapath.degraded if self._running else ()

    @property
    def process(self) -> ProcessStatus | None:
        """The process that carries the packets for userspace, or None when none does."""
        return self._running.datapath.process if self._running else None

    @property
    def features(self) -> frozenset[str] | None:
        """What the running datapath's receiver can take, for the lease; None when none runs."""
        return self._running.datapath.features if self._running else None

    def stats(self) -> DatapathStats | None:
        """The datapath's counters, or None when none runs."""
        return self._running.datapath.stats() if self._running else None

    def peer_traffic(self, desired: DesiredState, backend: str, peers: Sequence[Address]) -> PeerTraffic:
        """What each of these peers was sent and has sent."""
        if desired.table is None:
            return peer_traffic.of_kernel(desired, backend)
        return peer_traffic.of_datapath(self._running.datapath, peers) if self._running else peer_traffic.NOT_YET

    def routes(self) -> frozenset[Route]:
        """The kernel's routes of ours that are there. Raises PlatformError."""
        return list_routes(self._kernel)

    def _close_datapath(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.datapath.close()

    def close(self) -> None:
        """Let go of the datapath, which carries on unless it is to be torn down."""
        self._hooks.close()
        running, self._running = self._running, None
        if running is not None and self._teardown:
            try:
                running.datapath.teardown()
            except DatapathWaits as error:
                log.error("%s", error, extra=event("datapath_stays", reason=str(error)))
            self._home.descriptor_store.forget()
        elif running is not None:
            running.datapath.close()
