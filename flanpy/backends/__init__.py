"""One file a backend: (own lease, peers) to the desired state of this machine. This file finds the one that a config names.

``BACKENDS`` maps each type that this version runs to its module; the modules are pure and have the functions of ``Backend``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, cast

from flanpy.backends import alloc, extension, host_gw, ipip, udp, vxlan, wireguard
from flanpy.core.membership import View
from flanpy.errors import ConfigError
from flanpy.model import Command, DesiredState, Lease, LocalFacts, NetworkConfig, NodeAttributes, Uplink


class Backend(Protocol):
    """What each backend module offers."""

    TYPE: str
    """What the leases of its nodes carry as their backend type."""

    def attributes(self, base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
        """What our lease says, from what every lease says (``base``)."""

    def reached_by(self, config: NetworkConfig) -> tuple[int, ...]:
        """The IP versions of the underlay that every node needs; empty: either will do."""

    def screen(self, config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
        """The view without the peers that this backend cannot reach, each refused with its reason."""

    def plan(self, config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int) -> DesiredState:
        """The desired state of this machine, for a screened view."""


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "udp": cast(Backend, udp),
        "vxlan": cast(Backend, vxlan),
        "host-gw": cast(Backend, host_gw),
        "alloc": cast(Backend, alloc),
        "extension": cast(Backend, extension),
        "ipip": cast(Backend, ipip),
        "wireguard": cast(Backend, wireguard),
    }
)


def find(backend_type: str) -> Backend:
    """The backend of this type; raises ConfigError when this version cannot run it."""
    if backend_type not in BACKENDS:
        raise ConfigError(f"Backend.Type: this version cannot run {backend_type} (it runs: {', '.join(sorted(BACKENDS))})")
    return BACKENDS[backend_type]


def startup(config: NetworkConfig) -> Command | None:
    """The command that has to run before the lease is written, for the one backend that has one. Raises ConfigError."""
    return extension.startup(config) if config.backend.type == extension.TYPE else None
