"""A real etcd as a child process: started, waited for, restarted when it dies, stopped. Reads and writes no keys.

For ``flanpy agent --embedded-etcd`` (a trial, or the first node), the lab and the tests; a cluster of its own runs its own etcd.

One thread owns the process: it starts it, waits for it, and starts it again after a growing pause. It must live as long as the
process, because the kernel's parent-death signal follows the thread that started a child. etcd is started through
``setpriv --pdeathsig``, not by a hook between fork and exec, so that it is safe while gRPC threads live.
"""

from __future__ import annotations

import errno
import http.client
import json
import logging
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from flanpy.errors import PlatformError, ResourceBusy

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
"""Pause before the first restart, doubled at each one up to the longest; back to the first after ``STEADY_S`` of life."""
STEADY_S = 30.0
ALONE = ("--heartbeat-interval=20", "--election-timeout=100")
"""Flags of a member without others (ms): it elects itself, and with etcd's second for an election a start takes up to one, for nobody."""
PORT_PATIENCE_S = 2.0
"""How long a taken client port is waited for: an etcd whose parent was killed needs a moment to be gone."""


@dataclass(frozen=True, slots=True)
class EtcdServerSettings:
    """One etcd member. ``extra`` are further etcd flags (TLS, auth-token, auto-compaction, ...), they win over ours.

    ``peer_url`` "" takes a free loopback port; ``initial_cluster`` "" makes a cluster of this one member.
    """

    data_dir: Path
    log_path: Path
    client_url: str = "http://127.0.0.1:2379"
    advertise_client_url: str = ""
    peer_url: str = ""
    name: str = "flanpy"
    initial_cluster: str = ""
    binary: str = "etcd"
    restart: bool = True
    start_timeout_s: float = 15.0
    extra: tuple[str, ...] = ()


class EtcdServer:
    """A context manager: healthy inside, gone outside. ``start(wait=False)`` is for members that need each other."""

    def __init__(self, settings: EtcdServerSettings) -> None:
        self.settings = settings
        self.restarts = 0
        self._health_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._owner = threading.Thread(target=self._own, name=f"etcd-{settings.name}", daemon=True)
        self._failure: OSError | None = None
        self._ended_with = ""
        """Last words of the one that has ended; the log goes on with those of the next."""

    def __enter__(self) -> EtcdServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of etcd itself (setpriv has become it); raises PlatformError when it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise PlatformError(f"etcd {self.settings.name}: does not run; see {self.settings.log_path}")
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start etcd; raises PlatformError (not installed, does not come up) or ResourceBusy (the client port is taken)."""
        for program, package in ((self.settings.binary, "etcd-server"), ("setpriv", "util-linux")):
            if shutil.which(program) is None:
                raise PlatformError(f"{program} is not installed; on Debian: apt-get install {package}")
        _check_port_is_free(self.settings.client_url)
        self.settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.settings.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._owner.start()
        if wait:
            try:
                self.wait_healthy()
            except BaseException:
                self.stop()
                raise

    def wait_healthy(self) -> None:
        """Block until etcd answers and has a leader, at most ``start_timeout_s``; raises PlatformError with its last words."""
        deadline = time.monotonic() + self.settings.start_timeout_s
        while not self.is_healthy():
            if self._failure is not None:
                raise PlatformError(f"etcd {self.settings.name}: cannot start: {self._failure}") from self._failure
            gave_up = not self.settings.restart and self._started.is_set() and not self._owner.is_alive()
            if gave_up or time.monotonic() > deadline:
                problem = "ended at once" if gave_up else f"not healthy within {self.settings.start_timeout_s:g} s"
                words = self._ended_with or self._last_words()
                raise PlatformError(f"etcd {self.settings.name}: {problem}; {self.settings.log_path} ends: {words}")
            self._stopping.wait(0.05)

    def is_healthy(self) -> bool:
        """Whether etcd says so itself; asked on a loopback port of its own, so that TLS and logins do not matter."""
        connection = http.client.HTTPConnection("127.0.0.1", self._health_port, timeout=2)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse().read()
            return str(json.loads(answer)["health"]) == "true"
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop etcd: SIGTERM, and SIGKILL if it has not gone after ``STOP_TIMEOUT_S``; safe to call twice."""
        self._stopping.set()
        if self._owner.ident is None:
            return
        self._owner.join(STOP_TIMEOUT_S + 1)

    def _own(self) -> None:
        """The owner thread: a process, its end, a pause, the next one."""
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            started_at = time.monotonic()
            try:
                self._run_once()
            except OSError as exc:
                if not self._started.is_set():
                    self._failure = exc
                    return
                log.warning("etcd %s cannot be started again: %s", self.settings.name, exc)
            self._ended_with = self._last_words()
            if self._stopping.is_set() or not self.settings.restart:
                return
            pause_s = FIRST_PAUSE_S if time.monotonic() - started_at > STEADY_S else pause_s
            log.warning("etcd %s has ended, next start in %.1f s: %s", self.settings.name, pause_s, self._ended_with)
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self.restarts += 1

    def _run_once(self) -> None:
        with self.settings.log_path.open("ab") as log_file:
            self._process = process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log_file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._started.set()
        while process.poll() is None and not self._stopping.wait(0.05):
            pass
        if process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _command(self) -> list[str]:
        settings = self.settings
        peer_url = settings.peer_url or f"http://127.0.0.1:{free_port()}"
        flags = {
            "name": settings.name,
            "data-dir": str(settings.data_dir),
            "listen-client-urls": settings.client_url,
            "advertise-client-urls": settings.advertise_client_url or settings.client_url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": settings.initial_cluster or f"{settings.name}={peer_url}",
            "listen-metrics-urls": f"http://127.0.0.1:{self._health_port}",
            "auto-compaction-retention": "1h",
            "logger": "zap",
        }
        words = [*(() if settings.initial_cluster else ALONE), *(f"--{name}={value}" for name, value in flags.items())]
        return ["setpriv", "--pdeathsig", "KILL", "--", settings.binary, *words, *settings.extra]

    def _last_words(self) -> str:
        try:
            lines = self.settings.log_path.read_text(errors="replace").strip().splitlines()
        except OSError as exc:
            return f"(no log: {exc.strerror})"
        return " | ".join(lines[-3:])[-600:] or "(empty)"


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on right now; the kernel hands them out in turn, so the next caller gets another."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _check_port_is_free(url: str) -> None:
    """Raise ResourceBusy when the URL cannot be listened on; etcd itself would say it deep in its log."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 2379
    deadline = time.monotonic() + PORT_PATIENCE_S
    while (problem := _bind_problem(host, port)) is not None:
        if problem.errno != errno.EADDRINUSE or time.monotonic() > deadline:
            cure = "stop what holds that port, or give another address and port of this machine"
            raise ResourceBusy(f"etcd cannot listen on {url}: {problem.strerror}; {cure}") from problem
        time.sleep(0.05)


def _bind_problem(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as exc:
        return exc
    return None
