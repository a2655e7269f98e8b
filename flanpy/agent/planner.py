"""From what the loop knows to one plan: who the peers are, what the machine should look like, how the datapath is to be opened.

Pure: it calls ``core`` and the backend's planner and puts their results together.
"""

from __future__ import annotations

from dataclasses import dataclass

from flanpy import backends
from flanpy.agent.machine import datapath_settings
from flanpy.config.options import AgentOptions
from flanpy.core.membership import Membership, View, view
from flanpy.datapath import DatapathSettings
from flanpy.errors import InterfaceError
from flanpy.model import DesiredState, Lease, NetworkConfig, Uplink


@dataclass(frozen=True, slots=True)
class Plan:
    """One pass's plan."""

    view: View
    desired: DesiredState
    settings: DatapathSettings


def make_plan(
    config: NetworkConfig, own: Lease, members: Membership, uplink: Uplink, options: AgentOptions, generation: int
) -> Plan:
    """Plan for this lease and these members. Raises ConfigError for a backend that this version cannot run, InterfaceError."""
    backend = backends.find(config.backend.type)
    seen = view(members, config, own.subnets, config.backend.type)
    desired = backend.plan(config, own, seen, uplink, generation)
    if uplink.address is None:
        raise InterfaceError(f"{uplink.name}: has no IPv4 address; the udp backend needs one")
    port = config.backend.options["Port"]
    assert isinstance(port, int)
    settings = datapath_settings(
        desired,
        uplink.address,
        port,
        queues=options.queues,
        source_check=options.source_check,
        spin_us=options.spin_us,
        ebpf_bypass=options.ebpf_bypass,
    )
    return Plan(seen, desired, settings)
