"""One file a backend: (own lease, peers) to the desired state of this machine. This file finds the one that a config names.

``BACKENDS`` maps each type that this version runs to its module; the modules are pure and have the functions of ``Backend``.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Protocol, cast

from flanpy.backends import udp
from flanpy.core.membership import View
from flanpy.errors import ConfigError
from flanpy.model import DesiredState, FlanpyInfo, Lease, NetworkConfig, NodeAttributes, Uplink


class Backend(Protocol):
    """What each backend module offers."""

    def attributes(self, public_ip: IPv4Address, info: FlanpyInfo | None = None) -> NodeAttributes:
        """What the lease of a node with this backend says."""

    def mtu_bytes(self, uplink: Uplink) -> int:
        """The largest packet of a pod."""

    def plan(
        self, config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int, device: str = ...
    ) -> DesiredState:
        """The desired state of this machine."""


BACKENDS: Mapping[str, Backend] = MappingProxyType({"udp": cast(Backend, udp)})


def find(backend_type: str) -> Backend:
    """The backend of this type; raises ConfigError when this version cannot run it."""
    if backend_type not in BACKENDS:
        raise ConfigError(f"Backend.Type: this version cannot run {backend_type} (it runs: {', '.join(sorted(BACKENDS))})")
    return BACKENDS[backend_type]
