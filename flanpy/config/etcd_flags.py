"""The flags by which every command finds etcd; flanneld's, with flanneld's defaults."""

from __future__ import annotations

import re

from flanpy.config.flags import Flag
from flanpy.model import DEFAULT_PREFIX

DEFAULT_ENDPOINTS = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
"""flanneld's default: the old client port and today's."""


def _endpoints(text: str) -> tuple[str, ...]:
    endpoints = tuple(part.strip() for part in text.split(",") if part.strip())
    bad = [part for part in endpoints if not re.fullmatch(r"https?://[^\s/]+/?", part)]
    if bad or not endpoints:
        raise ValueError(f"{(bad or [text])[0]!r} is not a URL such as http://10.0.0.1:2379")
    return endpoints


ETCD_FLAGS = (
    Flag("etcd-endpoints", "etcd endpoints, comma-separated", DEFAULT_ENDPOINTS, _endpoints, "URL,...", "etcd"),
    Flag("etcd-prefix", "where everything lies in etcd", DEFAULT_PREFIX, str, "PREFIX", "etcd"),
    Flag("etcd-keyfile", "private key of our client certificate", "", str, "FILE", "etcd"),
    Flag("etcd-certfile", "our client certificate", "", str, "FILE", "etcd"),
    Flag("etcd-cafile", "certificate authority of the etcd servers", "", str, "FILE", "etcd"),
    Flag("etcd-username", "user name in etcd", "", str, "NAME", "etcd"),
    Flag(
        "etcd-password",
        "its password; FLANPY_ETCD_PASSWORD keeps it out of the process list",
        "",
        str,
        "TEXT",
        "etcd",
        secret=True,
    ),
)
"""The etcd flags, shared by every command that talks to etcd."""
