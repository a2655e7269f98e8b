"""How commands without an agent reach etcd: the ``--etcd-…`` flags and their environment variables. Imports grpc when it opens."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from flanpy.config.etcd_flags import ETCD_FLAGS
from flanpy.config.flags import add_flags, resolve
from flanpy.stores import Store


def add_etcd_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags by which every command finds etcd."""
    add_flags(parser, ETCD_FLAGS, {"etcd": "etcd"})


def etcd_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Their values. Raises UsageError with every problem."""
    return resolve(ETCD_FLAGS, vars(arguments), os.environ, {})


def open_etcd(arguments: argparse.Namespace) -> Store:
    """Connect; the caller closes. Raises UsageError, StoreError."""
    from flanpy.stores.etcd import EtcdOptions, open_store

    flags = etcd_values(arguments)
    return open_store(
        EtcdOptions(
            endpoints=flags["etcd_endpoints"],
            prefix=flags["etcd_prefix"],
            cafile=_path(flags["etcd_cafile"]),
            certfile=_path(flags["etcd_certfile"]),
            keyfile=_path(flags["etcd_keyfile"]),
            username=flags["etcd_username"],
            password=flags["etcd_password"],
        )
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None
