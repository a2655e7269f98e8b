"""The worlds of the contract suite: the same tests run against the memory store and against a real etcd."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flanpy.stores import Store
from flanpy.stores.etcd import EtcdOptions, open_store
from flanpy.stores.memory import MemoryServer, MemoryStore
from flanpy.stores.server import free_port
from tests.support.etcd import PrivateEtcd, private_etcd

_numbers = itertools.count()


class World(ABC):
    """One kind of store, empty at first; all stores that it opens see the same records."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    @abstractmethod
    def open(self) -> Store:
        """Another client of the same records."""

    @abstractmethod
    def open_unreachable(self) -> Store:
        """A store whose server is not there."""

    @abstractmethod
    def open_denied(self) -> Store:
        """A store whose server refuses us."""

    @abstractmethod
    def compact(self, revision: int) -> None:
        """Forget history up to ``revision``, the current one."""

    @abstractmethod
    def leases(self) -> set[int]:
        """The living etcd leases that this world's stores have granted."""

    @abstractmethod
    def let_pass(self, seconds: float) -> None:
        """Let leases grow older; where real time does it, there is nothing to do."""


class MemoryWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.server = MemoryServer(lambda: self.now)

    def open(self) -> Store:
        return self._on(self.server)

    def open_unreachable(self) -> Store:
        server = MemoryServer()
        server.set_unavailable()
        return self._on(server)

    def open_denied(self) -> Store:
        server = MemoryServer()
        server.set_denied()
        return self._on(server)

    def compact(self, revision: int) -> None:
        self.server.compact()

    def leases(self) -> set[int]:
        return set(self.server.leases())

    def let_pass(self, seconds: float) -> None:
        self.now += seconds
        self.server.tick()

    def _on(self, server: MemoryServer) -> Store:
        return self.stack.enter_context(MemoryStore(server, progress_s=0.3))


class EtcdWorld(World):
    def __init__(self, etcd: PrivateEtcd, guarded: PrivateEtcd) -> None:
        super().__init__()
        self.etcd = etcd
        self.guarded = guarded
        self.prefix = f"/world/{next(_numbers)}"
        self.leases_before = etcd.leases()

    def open(self) -> Store:
        return self._on(self.etcd.options(self.prefix, progress_s=0.3))

    def open_unreachable(self) -> Store:
        return self._on(EtcdOptions((f"http://127.0.0.1:{free_port()}",)))

    def open_denied(self) -> Store:
        return self._on(self.guarded.options("/forbidden", username="node", password="secret"))

    def compact(self, revision: int) -> None:
        self.etcd.admin("/v3/kv/compaction", revision=revision, physical=True)

    def leases(self) -> set[int]:
        return self.etcd.leases() - self.leases_before

    def let_pass(self, seconds: float) -> None:
        pass

    def _on(self, options: EtcdOptions) -> Store:
        return self.stack.enter_context(open_store(options))


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateEtcd]:
    """One etcd for all tests that do it no harm; each uses a prefix of its own."""
    with private_etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateEtcd]:
    """One etcd with logins: user node may use /allowed and nothing else."""
    with private_etcd(tmp_path_factory.mktemp("guarded")) as running:
        running.enable_auth("/allowed")
        yield running


@pytest.fixture(params=["memory", "etcd"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = MemoryWorld() if request.param == "memory" else EtcdWorld(*map(request.getfixturevalue, ("etcd", "guarded")))
    with made.stack:
        yield made


@pytest.fixture
def store(world: World) -> Store:
    return world.open()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path
