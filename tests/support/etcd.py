"""A private real etcd for tests: a free loopback port, a directory of the test's own, gone when its block ends or its parent dies.

    with private_etcd(tmp_path) as etcd:           etcd.kill() (-9)   etcd.pause() / etcd.resume()   etcd.start_again()
        store = open_store(etcd.options())         etcd.admin("/v3/kv/compaction", revision=7)

``Relay`` is a TCP relay in front of it that can lose an answer, or a request, that holds a given sequence of bytes.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flanpy.stores.etcd_options import EtcdOptions
from flanpy.stores.server import EtcdServer, EtcdServerSettings, free_port
from tests.support.polling import eventually

DEADLINE_S = 15.0


@dataclass(slots=True)
class PrivateEtcd:
    """One etcd member under test."""

    settings: EtcdServerSettings
    server: EtcdServer
    token: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return self.settings.client_url

    def options(self, prefix: str = "/test", **changes: Any) -> EtcdOptions:
        """Options that reach this etcd below ``prefix``."""
        return EtcdOptions(endpoints=(self.url,), prefix=prefix, **changes)

    def kill(self) -> None:
        """Kill it with -9 and wait for its end."""
        os.kill(self.server.pid, signal.SIGKILL)
        eventually(lambda: not self.server.is_healthy(), DEADLINE_S, "etcd is dead")
        self.server.stop()

    def pause(self) -> None:
        """Stop its process: the connections stay open, nothing answers."""
        os.kill(self.server.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.server.pid}/task")
        eventually(
            lambda: all("State:\tT" in (task / "status").read_text() for task in tasks.iterdir()),
            DEADLINE_S,
            "all threads have stopped",
        )

    def resume(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)

    def start_again(self) -> None:
        """Start it after ``kill`` on the same port and data."""
        self.server = EtcdServer(self.settings)
        self.server.start()

    def admin(self, path: str, **body: Any) -> dict[str, Any]:
        """Call etcd's JSON gateway; bytes are given base64 as it wants them."""
        words = {name: base64.b64encode(word).decode() if isinstance(word, bytes) else word for name, word in body.items()}
        request = urllib.request.Request(
            self.url + path, json.dumps(words).encode(), {"Authorization": self.token} if self.token else {}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls))
        with direct.open(request, timeout=10) as answer:
            result: dict[str, Any] = json.loads(answer.read())
        return result

    def leases(self) -> set[int]:
        """The ids of all living leases."""
        return {int(lease["ID"]) for lease in self.admin("/v3/lease/leases").get("leases", [])}

    def enable_auth(self, *granted: str) -> None:
        """Users root and node (passwords: ``secret``); node may read and write below each of the ``granted`` prefixes."""
        for user in ("root", "node"):
            self.admin("/v3/auth/user/add", name=user, password="secret")
            self.admin("/v3/auth/role/add", name=user)
            self.admin("/v3/auth/user/grant", user=user, role=user)
        for prefix in granted:
            start = prefix.encode() + b"/"
            permission = {"permType": "READWRITE"} | {
                name: base64.b64encode(key).decode() for name, key in (("key", start), ("range_end", start[:-1] + b"0"))
            }
            self.admin("/v3/auth/role/grant", name="node", perm=permission)
        self.admin("/v3/auth/enable")
        self.token = self.admin("/v3/auth/authenticate", name="root", password="secret")["token"]


@contextmanager
def private_etcd(
    directory: Path, *extra: str, url: str = "", tls: ssl.SSLContext | None = None, **changes: Any
) -> Iterator[PrivateEtcd]:
    """Start an etcd with further flags ``extra``; it is healthy inside the block and gone after it, whatever happened."""
    port = free_port()
    settings = EtcdServerSettings(
        data_dir=directory / f"etcd-{port}",
        log_path=directory / f"etcd-{port}.log",
        client_url=url or f"http://127.0.0.1:{port}",
        restart=False,
        extra=("--bcrypt-cost=4", *extra),
    )
    etcd = PrivateEtcd(replace(settings, **changes), EtcdServer(replace(settings, **changes)), tls=tls)
    try:
        etcd.server.start()
        yield etcd
    finally:
        etcd.server.stop()


@contextmanager
def three_members(directory: Path) -> Iterator[tuple[PrivateEtcd, ...]]:
    """A cluster of three healthy members."""
    peers = {name: f"http://127.0.0.1:{free_port()}" for name in ("a", "b", "c")}
    cluster = ",".join(f"{name}={url}" for name, url in peers.items())
    members = []
    for name, peer_url in peers.items():
        settings = EtcdServerSettings(
            data_dir=directory / name,
            log_path=directory / f"{name}.log",
            client_url=f"http://127.0.0.1:{free_port()}",
            name=name,
            peer_url=peer_url,
            initial_cluster=cluster,
            restart=False,
            extra=("--heartbeat-interval=100", "--election-timeout=600"),
        )
        members.append(PrivateEtcd(settings, EtcdServer(settings)))
    try:
        for member in members:
            member.server.start(wait=False)
        for member in members:
            member.server.wait_healthy()
        yield tuple(members)
    finally:
        for member in members:
            member.server.stop()


class Relay:
    """Passes TCP connections on to ``port``, until bytes pass by that hold ``lose_answer_to`` or ``lose_request`` (once each).

    The first lets the request through, waits until ``was_applied`` says that it took effect, and cuts the connection instead of passing
    the answer on; the second cuts it before the request has gone through. ``hold`` is called before a request with ``hold_at`` in it
    passes (once).
    ``delay_s`` holds up everything that etcd says. HTTP/2 data frames carry keys and values in the clear, so they work as marks.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.lose_answer_to = b""
        self.was_applied: Callable[[], object] = lambda: True
        self.lose_request = b""
        self.hold_at = b""
        self.hold: Callable[[], object] = lambda: None
        self.delay_s = 0.0
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for end in self._open:
            _cut(end)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                losing = threading.Event()
                threading.Thread(target=self._requests, args=(client, server, losing), daemon=True).start()
                threading.Thread(target=self._answers, args=(client, server, losing), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        with suppress(OSError):  # the other direction has cut
            for chunk in _chunks(client):
                if self.hold_at and self.hold_at in chunk:
                    self.hold_at = b""
                    self.hold()
                if self.lose_request and self.lose_request in chunk:
                    self.lose_request = b""
                    break
                if self.lose_answer_to and self.lose_answer_to in chunk:
                    self.lose_answer_to = b""
                    losing.set()
                server.sendall(chunk)
                if losing.is_set():
                    eventually(self.was_applied, DEADLINE_S, "the request has taken effect")
                    break
        _cut(client)
        _cut(server)

    def _answers(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        with suppress(OSError):
            for chunk in _chunks(server):
                self._over.wait(self.delay_s)
                if not losing.is_set():
                    client.sendall(chunk)
        _cut(client)
        _cut(server)


def _chunks(end: socket.socket) -> Iterator[bytes]:
    try:
        while chunk := end.recv(65536):
            yield chunk
    except OSError:
        return


def _cut(end: socket.socket) -> None:
    with suppress(OSError):  # not connected any more
        end.shutdown(socket.SHUT_RDWR)
    end.close()
