"""The cluster's network config, as the loop sees it: judged when it has been read, read again until there is a good one, watched then.

Called by the loop's thread. A changed config is said, not applied: every agent has to change, so the agents are restarted one after
the other (flannel's way too).
"""

from __future__ import annotations

import logging
import time

from flanpy.agent.logs import event
from flanpy.agent.machine import Machine
from flanpy.agent.own_lease import OwnLease
from flanpy.agent.state import CONFIG_RETRY_S, State
from flanpy.agent.underlay import Underlay
from flanpy.config.network import parse_network_config
from flanpy.config.options import AgentOptions
from flanpy.errors import ConfigError, InterfaceError, PlatformError, ResourceBusy
from flanpy.model import NetworkConfig

log = logging.getLogger(__name__)

CONFIG_REREAD_S = 60.0
"""How often a good network config is read again, should the watch have missed a change."""
HELD_LOOK_S = 0.05
"""How soon after a change in the kernel is looked whether what another process held is free: whoever ends lets go of it bit by bit."""


class ConfigReader:
    """Keeps ``state.config`` and what is wrong with it; the loop reads the text when the ``config`` timer fires."""

    def __init__(self, state: State, options: AgentOptions, underlay: Underlay, machine: Machine, own: OwnLease) -> None:
        self._state = state
        self._options = options
        self._underlay = underlay
        self._machine = machine
        self._own = own
        self._held = False

    def read(self, text: bytes | None) -> None:
        """What etcd has under ``config``, None when nothing: the first good one starts the leasing, another one later is said."""
        state = self._state
        if text == state.config_text and state.config is not None:
            if state.config_problem is not None:
                log.info("the network config is again what this agent runs by", extra=event("config_restored"))
            state.config_problem = None
            self._later()
            return
        self._held = False
        try:
            config = self._parse(text)
            if state.config is None:
                self._check_free(config)
                self._own.identify(config)
        except (ResourceBusy, InterfaceError) as error:
            self._held = True
            self._fails(f"{error}; nothing is leased before that, it will be tried again", "resource_held")
            return
        except (ConfigError, PlatformError) as error:
            self._fails(str(error))
            return
        if state.config is None:
            state.config_text, state.config, state.config_problem = text, config, None
            networks = " ".join(str(network) for network in (config.network, config.ipv6_network) if network is not None)
            log.info("network config: %s", networks, extra=event("config_read", network=networks))
            self._own.start(config)
        else:
            self._fails("the network config in etcd has changed; restart the agents, one after the other, to apply it")
        self._later()

    def _check_free(self, config: NetworkConfig) -> None:
        try:
            self._machine.check_free(config, self._underlay.uplink)
        except ResourceBusy:
            self._machine.prepare(config, self._underlay.uplink)
            raise

    def kernel_changed(self) -> None:
        """A flanneld that has ended took its device with it: an agent that has waited for that takes its place without delay."""
        state = self._state
        if self._held and state.config is None:
            state.config_wait_s = CONFIG_RETRY_S[0]
            soon_s = time.monotonic() + HELD_LOOK_S
            state.timers["config"] = min(state.timers.get("config", soon_s), soon_s)

    def retry(self) -> None:
        """Read again after a while, longer each time."""
        state = self._state
        state.timers["config"] = time.monotonic() + state.config_wait_s
        state.config_wait_s = min(2 * state.config_wait_s, CONFIG_RETRY_S[1])

    def _later(self) -> None:
        self._state.timers["config"] = time.monotonic() + CONFIG_REREAD_S

    def _parse(self, text: bytes | None) -> NetworkConfig:
        prefix = self._options.etcd_prefix
        if text is None:
            raise ConfigError(
                f"etcd has no network config at {prefix}/config; write one:  "
                """flanpy network set --json '{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}'"""
            )
        return parse_network_config(text)

    def _fails(self, problem: str, name: str = "config_refused") -> None:
        state = self._state
        if problem != state.config_problem:
            log.error("%s", problem, extra=event(name, problem=problem))
        state.config_problem = problem
        if state.config is None:
            self.retry()
        else:
            self._later()
