"""How to reach etcd: the options, their checks, and the gRPC targets that follow from them. No I/O, no gRPC.

An endpoint is a URL as flannel takes it: ``http://10.0.0.1:2379``, ``https://etcd-1.example:2379``, ``https://[fd00::1]:2379``.

Literal addresses without TLS make one target that holds them all: gRPC then tries one after the other within one call. Host
names (gRPC resolves them anew at each connect) and TLS (the name on the certificate belongs to one endpoint) make one target
each; the session goes through them.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from flanpy.errors import UsageError
from flanpy.model import DEFAULT_PREFIX

DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Everything a store needs to know of etcd; checked at construction, all strings as the operator gave them.

    ``call_timeout_s`` bounds each call; a watch that hears nothing for ``silence_s`` is given up, and is asked for a sign of life
    every ``progress_s``.
    """

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    prefix: str = DEFAULT_PREFIX
    cafile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)
    call_timeout_s: float = 5.0
    progress_s: float = 3.0
    silence_s: float = 7.0

    def __post_init__(self) -> None:
        if bool(self.certfile) != bool(self.keyfile):
            raise UsageError("etcd-certfile and etcd-keyfile go together: give both or neither")
        if bool(self.username) != bool(self.password):
            raise UsageError("etcd-username and etcd-password go together: give both or neither")
        if min(self.call_timeout_s, self.progress_s, self.silence_s) <= 0 or self.silence_s <= self.progress_s:
            raise UsageError("etcd timeouts must be above 0, and the watch's silence limit above its progress interval")
        _parse_endpoints(self)

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted: by the endpoints' scheme, or by the files when they have none."""
        return _parse_endpoints(self)[0].tls


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, taken apart; ``host`` is without brackets."""

    host: str
    port: int
    tls: bool

    @property
    def literal_version(self) -> int | None:
        """4 or 6 when the host is an address, None when it is a name."""
        try:
            return ip_address(self.host).version
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """What a gRPC channel is opened to; ``authority`` is the name that the certificate must hold ("" without TLS)."""

    address: str
    authority: str = ""


def normalise_prefix(prefix: str) -> str:
    """``/coreos.com/network``: one leading slash, no trailing one, no empty parts; "" stands for etcd's root."""
    path = posixpath.normpath("/" + prefix.strip("/"))
    return "" if path == "/" else path


def plan_targets(options: EtcdOptions) -> tuple[Target, ...]:
    """The targets to try in turn. Literals without TLS appear once in each order, so that moving on reaches another member."""
    endpoints = _parse_endpoints(options)
    versions = {endpoint.literal_version for endpoint in endpoints}
    if endpoints[0].tls or len(versions) > 1 or None in versions:
        return tuple(_single(endpoint) for endpoint in endpoints)
    turns = [endpoints[turn:] + endpoints[:turn] for turn in range(len(endpoints))]
    return tuple(Target(f"ipv{versions.copy().pop()}:" + ",".join(map(str, turn))) for turn in turns)


def _single(endpoint: Endpoint) -> Target:
    version = endpoint.literal_version
    address = f"dns:///{endpoint}" if version is None else f"ipv{version}:{endpoint}"
    return Target(address, str(endpoint) if endpoint.tls else "")


def _parse_endpoints(options: EtcdOptions) -> tuple[Endpoint, ...]:
    """Each endpoint once, in the order given; raises UsageError for what is not one, and for mixed schemes."""
    has_files = bool(options.cafile or options.certfile)
    endpoints = tuple(dict.fromkeys(_parse_endpoint(text.strip(), has_files) for text in options.endpoints))
    if not endpoints:
        raise UsageError("etcd-endpoints: none given; an example: http://127.0.0.1:2379")
    if len({endpoint.tls for endpoint in endpoints}) > 1:
        raise UsageError(f"etcd-endpoints: {','.join(options.endpoints)}: all must be http:// or all https://")
    if has_files and not endpoints[0].tls:
        raise UsageError(f"etcd-cafile/etcd-certfile are given, but {options.endpoints[0]} is not encrypted: write https://")
    return endpoints


def _parse_endpoint(text: str, has_files: bool) -> Endpoint:
    wrong = f"etcd-endpoints: {text!r} is not an endpoint; an example: http://10.0.0.1:{DEFAULT_PORT}"
    url = text if "://" in text else f"{'https' if has_files else 'http'}://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as exc:
        raise UsageError(f"{wrong} ({exc})") from exc
    extras = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not host or extras or not host.isprintable() or {" ", ","} & set(host):
        raise UsageError(wrong)
    return Endpoint(host, port, parts.scheme == "https")
