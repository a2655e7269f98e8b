"""From what the loop knows to one plan: who the peers are, what the machine should look like, how the datapath is to be opened.

Pure: it calls ``core`` and the backend's planner and puts their results together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flanpy import backends
from flanpy.agent.running import datapath_settings
from flanpy.backends.moved import Moved, with_moved
from flanpy.config.options import AgentOptions
from flanpy.core.membership import UDP, Membership, View, view
from flanpy.core.rules import RuleOptions, blackholes, flannel_blackholes, plan_rules
from flanpy.datapath import DatapathSettings
from flanpy.errors import InterfaceError
from flanpy.model import DesiredState, KeptLease, Lease, NetworkConfig, Uplink


@dataclass(frozen=True, slots=True)
class Plan:
    """One pass's plan."""

    view: View
    desired: DesiredState
    settings: DatapathSettings | None
    """How to open the datapath; None when the kernel carries the packets alone."""

    @property
    def generation(self) -> int | None:
        """Which table the datapath gets; None when there is no datapath."""
        return None if self.desired.table is None else self.desired.table.generation


def make_plan(
    config: NetworkConfig,
    own: Lease,
    members: Membership,
    kept: Mapping[str, KeptLease],
    uplink: Uplink,
    options: AgentOptions,
    generation: int,
    pods: Callable[[View], Moved] = lambda view: Moved(),
) -> Plan:
    """Plan for this lease, these members, and leases that are kept though they have vanished.

    ``pods`` says which single pods are outside of their nodes' subnets, for a screened view.

    Raises ConfigError for a backend that this version cannot run, InterfaceError.
    """
    backend = backends.find(config.backend.type)
    seen = backend.screen(config, own, view(members, config, own.subnets, backend.TYPE or UDP, kept), uplink)
    desired = with_moved(backend.plan(config, own, seen, uplink, generation), pods(seen), own.subnets, config)
    desired = _with_rules(desired, config, own, options)
    return Plan(seen, desired, None if desired.tunnel is None else _settings(config, desired, uplink, options))


def _with_rules(desired: DesiredState, config: NetworkConfig, own: Lease, options: AgentOptions) -> DesiredState:
    """The same for every backend: masquerade and forward rules, and a route that ends what is for nobody here."""
    wanted = RuleOptions(
        ip_masq=options.ip_masq,
        fully_random=not options.ip_masq_fully_random_disable,
        forward_rules=options.iptables_forward_rules,
        tool=options.firewall,
    )
    more = blackholes(own.subnets) if options.ip_blackhole_route else frozenset()
    return replace(
        desired,
        rules=plan_rules(config, own.subnets, wanted),
        routes=desired.routes | more,
        superseded=flannel_blackholes(own.subnets),
        own=own.subnets,
    )


def _settings(config: NetworkConfig, desired: DesiredState, uplink: Uplink, options: AgentOptions) -> DatapathSettings:
    if uplink.underlay is None:
        raise InterfaceError(f"{uplink.name}: has no address; the {config.backend.type} backend needs one")
    port = config.backend.options["Port"]
    assert isinstance(port, int)
    return datapath_settings(
        desired,
        uplink.underlay,
        port,
        queues=options.queues,
        source_check=options.source_check,
        spin_us=options.spin_us,
        ebpf_bypass=options.ebpf_bypass,
    )
