"""One session with an etcd cluster: channels, login, time limits, and what gRPC's errors mean. Knows no keys and no leases.

Every call is bounded by ``call_timeout_s``. A call that was surely never sent is tried on the next target; one that may have been
sent is never repeated here (the store decides that). After any failure to answer, new calls go to the next target, so that
a member that is stuck or cut off from its leader does not keep us.

A login token is fetched when the first call needs it and again when etcd no longer takes it. It travels as plain call metadata,
because gRPC's call credentials need TLS.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flanpy.errors import StoreDenied, StoreError, StoreUnavailable
from flanpy.stores.etcd3_shim import load_etcd3
from flanpy.stores.etcd_options import EtcdOptions, Target, plan_targets

etcd3 = load_etcd3()
rpc: Any = etcd3.etcdrpc

import grpc  # noqa: E402 - after the shim, which sets up what gRPC reads at its import

__all__ = ["Link", "Session", "grpc", "is_certificate_trouble", "is_token_trouble", "rpc"]

MAX_RECEIVE_BYTES = 32 << 20
"""Of one response: etcd's own limit of a request is 1.5 MiB, an operator may raise it."""

_OPTIONS = [
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),  # without it a half-open connection is noticed after 65 s
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2000),  # the time limit of one connect
    ("grpc.max_reconnect_backoff_ms", 1000),  # the default of 120 s would keep us away from an etcd that has returned
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),  # etcd is on our own network, whatever http_proxy says
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel may be given the connection that was to be left
]

_SYSTEM_AUTHORITIES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))

_TRY_LATER = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.NOT_FOUND,  # of a lease: it was gone before it was used
    grpc.StatusCode.DATA_LOSS,
}
_UNANSWERED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_TOKEN_TROUBLE = ("invalid auth token", "auth store's revision is too old", "revision in header is too old")
_NEVER_SENT = ("failed to connect to all addresses", "DNS resolution failed", "Domain name not found")
_CERTIFICATE_TROUBLE = ("CERTIFICATE", "certificate", "TLSV1_ALERT", "SSL_ERROR_SSL", "verification check")


def _sleep_longer() -> None:
    """Let a thread that waits in gRPC for an answer wake by the answer alone.

    gRPC's synchronous calls look ten times a second whether a signal has come, which only the main thread could see; an idle watch
    so costs more CPU than all else of the agent. The constant is gRPC's own and private: without it nothing changes.
    """
    settings = vars(importlib.import_module("grpc._common"))
    if "MAXIMUM_WAIT_TIMEOUT" in settings:
        settings["MAXIMUM_WAIT_TIMEOUT"] = 5.0


_sleep_longer()


class Link:
    """A channel to one target and the etcd services on it."""

    def __init__(self, options: EtcdOptions, target: Target) -> None:
        self.target = target
        if target.authority:
            settings = [*_OPTIONS, ("grpc.default_authority", target.authority)]
            self.channel = grpc.secure_channel(target.address, _credentials(options), options=settings)
        else:
            self.channel = grpc.insecure_channel(target.address, options=_OPTIONS)
        self.kv = rpc.KVStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.auth = rpc.AuthStub(self.channel)


class Session:
    """Makes calls for a store; every method is safe from any thread."""

    def __init__(self, options: EtcdOptions) -> None:
        self.options = options
        self._targets = plan_targets(options)
        self._links: dict[int, Link] = {}
        self._turn = 0
        self._token = ""
        self._closed = False
        self._lock = threading.RLock()
        self.link()

    def call(
        self,
        pick: Callable[[Link], Any],
        request: Any,
        doing: str,
        *,
        timeout_s: float | None = None,
        started: Callable[[Any], None] | None = None,
    ) -> Any:
        """Make one unary call; ``pick`` chooses its method of a link, ``started`` is given the call so that it can be cancelled.

        Raises the StoreError that fits; gRPC's own error is its ``__cause__``.
        """
        limit_s = timeout_s or self.options.call_timeout_s
        deadline = time.monotonic() + limit_s
        targets_left, may_log_in = len(self._targets), bool(self.options.username)
        while True:
            link, token = self.link(), ""
            try:
                token = self._login(link, max(0.01, deadline - time.monotonic()))
                future = pick(link).future(request, timeout=max(0.01, deadline - time.monotonic()), metadata=_metadata(token))
                if started is not None:
                    started(future)
                return future.result()
            except grpc.FutureCancelledError as exc:
                raise StoreUnavailable(self.explain(f"{doing}: cancelled")) from exc
            except ValueError as exc:  # gRPC's word for a closed channel; nothing was sent
                if self.link() is link:
                    raise StoreUnavailable(self.explain(f"{doing}: {exc}")) from exc
            except grpc.RpcError as exc:
                targets_left -= 1
                if may_log_in and token and is_token_trouble(exc):
                    may_log_in = False
                    self._forget(token)
                elif not (targets_left > 0 and self._was_never_sent(exc) and time.monotonic() < deadline):
                    self.give_up_on(link, exc)
                    raise self.translate(exc, doing, limit_s) from exc
                else:
                    self.give_up_on(link, exc)

    def link(self) -> Link:
        """The link that new calls take; raises StoreUnavailable after ``close``."""
        with self._lock:
            if self._closed:
                raise StoreUnavailable(self.explain("the store is closed"))
            if self._turn not in self._links:
                self._links[self._turn] = Link(self.options, self._targets[self._turn])
            return self._links[self._turn]

    def stream_metadata(self, link: Link) -> tuple[tuple[str, str], ...]:
        """Metadata of a watch: the login, and that a member which has lost its leader must say so instead of being silent."""
        return (*_metadata(self._login(link, self.options.call_timeout_s)), ("hasleader", "true"))

    def give_up_on(self, link: Link, error: grpc.RpcError) -> None:
        """Let new calls take the next target if this one did not answer; read the certificates again if TLS failed."""
        if error.code() not in _UNANSWERED:
            return
        with self._lock:
            if self._links.get(self._turn) is not link:
                return
            if link.target.authority and is_certificate_trouble(error):
                del self._links[self._turn]
                link.channel.close()
            self._turn = (self._turn + 1) % len(self._targets)

    def leave_links(self) -> tuple[Link, ...]:
        """Let new calls open new links; those that there were are the caller's to close, which ends what is under way on them."""
        with self._lock:
            left, self._links = tuple(self._links.values()), {}
        return left

    def close(self) -> None:
        """Close all channels; calls that are under way end with StoreUnavailable."""
        with self._lock:
            self._closed = True
            for link in self._links.values():
                link.channel.close()
            self._links.clear()

    def explain(self, problem: str) -> str:
        """``problem`` with the endpoints in front."""
        return f"etcd at {', '.join(self.options.endpoints)}: {problem}"

    def translate(self, error: grpc.RpcError, doing: str, limit_s: float) -> StoreError:
        """The StoreError for a failed call: what was being done, what etcd said, and what to check."""
        code, details = error.code(), error.details() or "no details"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            hint = "check that the members run, have a leader, and that nothing drops packets on the way"
            return StoreUnavailable(self.explain(f"{doing}: no answer within {limit_s:g} s; {hint}"))
        if code is grpc.StatusCode.UNAVAILABLE and is_certificate_trouble(error):
            hint = "check etcd-cafile, and that the certificate is valid and names this endpoint"
            return StoreDenied(self.explain(f"{doing}: TLS failed: {details}; {hint}"))
        if code in _TRY_LATER or "too many requests" in details:
            hint = "check that the members run and can be reached, and that --etcd-endpoints (FLANPY_ETCD_ENDPOINTS) names them"
            return StoreUnavailable(self.explain(f"{doing}: {details}; {hint}"))
        return StoreDenied(self.explain(f"{doing}: refused: {details}{self._denial_hint(details)}"))

    def _denial_hint(self, details: str) -> str:
        if "user name is empty" in details:
            return "; etcd asks for a login: give etcd-username and etcd-password"
        if "database space exceeded" in details:
            return "; compact and defragment etcd, then: etcdctl alarm disarm"
        if "permission denied" in details:
            user = f"user {self.options.username}" if self.options.username else "this certificate's user"
            return f"; give {user} a role with readwrite on the prefix {self.options.prefix}/"
        return ""

    def _login(self, link: Link, timeout_s: float) -> str:
        """The token, fetched when there is none; "" where no login is configured or etcd does not ask for one."""
        if not self.options.username or self._token:
            return self._token
        request = rpc.AuthenticateRequest(name=self.options.username, password=self.options.password)
        try:
            token: str = link.auth.Authenticate(request, timeout=timeout_s).token
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.FAILED_PRECONDITION and "not enabled" in (exc.details() or ""):
                return ""
            raise
        with self._lock:
            self._token = token
        return token

    def _forget(self, token: str) -> None:
        with self._lock:
            if self._token == token:
                self._token = ""

    @staticmethod
    def _was_never_sent(error: grpc.RpcError) -> bool:
        details = error.details() or ""
        return error.code() is grpc.StatusCode.UNAVAILABLE and any(mark in details for mark in _NEVER_SENT)


def is_token_trouble(error: grpc.RpcError) -> bool:
    """Whether a new login may help."""
    return any(mark in (error.details() or "") for mark in _TOKEN_TROUBLE)


def is_certificate_trouble(error: grpc.RpcError) -> bool:
    """Whether the TLS handshake failed (gRPC tells only in words)."""
    return any(mark in (error.details() or "") for mark in _CERTIFICATE_TROUBLE)


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("token", token),) if token else ()


def _credentials(options: EtcdOptions) -> Any:
    """TLS credentials from the files; without a cafile the system's certificate authorities are trusted, as flannel does."""
    cafile = options.cafile or next((path for path in _SYSTEM_AUTHORITIES if path.exists()), None)
    return grpc.ssl_channel_credentials(
        root_certificates=_read(cafile, "etcd-cafile"),
        private_key=_read(options.keyfile, "etcd-keyfile"),
        certificate_chain=_read(options.certfile, "etcd-certfile"),
    )


def _read(path: Path | None, option: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StoreDenied(f"{option}: cannot read {path}: {exc.strerror}") from exc
