"""Which kinds of devices this kernel can make."""

from __future__ import annotations

import subprocess

from tests.support.namespaces import inside, namespace


def has(kind: str, *words: str) -> bool:
    """Whether a device of this kind can be made; ``words`` are what ``ip link add`` wants besides."""
    with namespace() as made, inside(made):
        return subprocess.run(["ip", "link", "add", "p", "type", kind, *words], capture_output=True, check=False).returncode == 0


def has_wireguard() -> bool:
    """CONFIG_WIREGUARD"""
    return has("wireguard")


def has_ipip() -> bool:
    """CONFIG_NET_IPIP"""
    return has("ipip", "local", "192.0.2.1")
