"""Network namespaces for tests: made without a name in the file system, so that nothing is left behind however a test ends.

A namespace lives as long as its descriptor is open or a thread or socket is in it; the kernel removes it, with its devices, when the
last of them goes. ``inside`` moves the calling thread alone; other threads stay where they are.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Namespace:
    """An open network namespace."""

    fd: int

    @property
    def path(self) -> str:
        """A path that tools of other processes can enter it by (``nsenter --net=PATH``), while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside and return its standard output."""
        with inside(self):
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, lines: str) -> None:
        """Run lines of ``ip`` (each without that word) in one process: ten times as fast as a script of them."""
        with inside(self):
            done = subprocess.run(["ip", "-batch", "-"], input=lines, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise AssertionError(f"ip -batch: exit {done.returncode}: {done.stderr.strip()}")

    def script(self, text: str) -> None:
        """Run the lines of a shell script inside; the first that fails is an error."""
        self.run("sh", "-euc", text)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)} (root is needed)")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new network namespace with ``lo`` up; gone with the block."""
    opened: list[int] = []
    problems: list[OSError] = []

    def make() -> None:
        if _libc.unshare(_CLONE_NEWNET):
            code = ctypes.get_errno()
            problems.append(OSError(code, f"unshare: {os.strerror(code)} (root is needed)"))
        else:
            opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make, name="make-namespace")
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
    try:
        made = Namespace(opened[0])
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        os.close(opened[0])


@contextmanager
def inside(where: Namespace) -> Iterator[None]:
    """The calling thread is in this namespace for the length of the block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(where.fd)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


@contextmanager
def without_net_admin() -> Iterator[None]:
    """The calling thread has no effective CAP_NET_ADMIN for the length of the block."""
    before = _capabilities()
    _set_capabilities((before[0] & ~_NET_ADMIN_BIT, *before[1:]))
    try:
        yield
    finally:
        _set_capabilities(before)


_CAPABILITY_V3 = 0x20080522
_NET_ADMIN_BIT = 1 << 12
_Words = tuple[int, ...]


def _capabilities() -> _Words:
    """effective, permitted, inheritable of capabilities 0..31, then of 32..63 (capget(2))."""
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITY_V3, 0), (ctypes.c_uint32 * 6)()
    if _libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    return tuple(data)


def _set_capabilities(words: _Words) -> None:
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITY_V3, 0), (ctypes.c_uint32 * 6)(*words)
    if _libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")
