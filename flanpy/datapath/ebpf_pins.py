"""The names in bpffs by which programs, maps and links outlive the agent: one directory for each device and network namespace.

    /sys/fs/bpf/flanpy/flannel0@1/   map1_fp_tables, map1_fp_counters, ...   prog_fp_encap, ...   link_fp_encap, ...

bpffs is one for the whole machine while devices belong to a network namespace, hence its cookie in the name: a number that the
kernel gives to no other namespace until the next boot (socket option SO_NETNS_COOKIE, Linux 5.14), which an inode is not. A dot in a
device's name becomes a colon, for bpffs keeps dots for itself.

What a namespace that has died has left is swept by whoever comes next: see ``find_dead``. Of tcx the links say whether their devices
live. Filters of clsact have none, so the devices that they hang at are written into a DEVMAP, ``devices``, which no packet ever
meets: the kernel takes a device out of every such map when it goes, with its namespace or alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.errors import DatapathWaits, PlatformError

BPFFS = Path("/sys/fs/bpf")
ROOT = BPFFS / "flanpy"
DEVICES, DEVICES_MAX = "devices", 4
READ_ONLY = f"bpffs is read-only: mount -o remount,rw {BPFFS}"
"""What is wrong, and the cure."""
TICKS_NS = 20_000_000
"""Two ticks of the slowest clock (HZ=100) by which the kernel writes times of change."""
_MAGIC = 0xCAFE4A11
_SO_NETNS_COOKIE = 71


class Pins:
    """One pin directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._held: int | None = None

    @classmethod
    def of(cls, device: str, root: Path = ROOT) -> Pins:
        """The pins of a device of the calling thread's network namespace."""
        return cls(root / f"{device.replace('.', ':')}@{namespace_cookie()}")

    def make(self) -> None:
        """The directory is there. Raises PlatformError when bpffs is not, or is not ours to write; see ``require_writable``."""
        mount_bpffs(BPFFS)
        self.require_writable()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise PlatformError(f"{self.directory}: {error.strerror}; the agent must be able to write to bpffs") from error

    @property
    def is_read_only(self) -> bool:
        """Whether names can neither be made nor removed: bpffs, or its mount here, is read-only."""
        try:
            return is_read_only(self.directory)
        except FileNotFoundError:
            return is_read_only(BPFFS)

    def changed(self) -> tuple[int, int, int, int]:
        """What changes when a name is made, removed or replaced, or the directory itself is: device, inode, links, time of change.

        Raises OSError: it is not there, or has changed so lately that the clock of its times (a tick) may hide another change.
        """
        status = self.directory.stat()
        if abs(time.time_ns() - status.st_mtime_ns) < TICKS_NS:
            raise OSError(errno.EAGAIN, f"{self.directory}: changed just now")
        return status.st_dev, status.st_ino, status.st_nlink, status.st_mtime_ns

    def require_writable(self) -> None:
        """Names can be made and removed. Raises as ``require_removable``, and PlatformError where no programs are either."""
        self.require_removable()
        if self.is_read_only:
            raise PlatformError(f"{self.directory}: {READ_ONLY}")

    def require_removable(self) -> None:
        """What programs of an earlier run are pinned can be adopted or removed. Raises DatapathWaits: they carry on until they can."""
        if self.is_read_only and any(name.startswith("prog_") for name in self.names()):
            raise DatapathWaits(
                f"{self.directory}: the programs there carry on, but can neither be adopted nor removed; {READ_ONLY}"
            )

    def hold(self) -> None:
        """The directory is there and not swept until ``release``, or until this process has ended. Raises as ``make``."""
        while self._held is None:
            self.make()
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.fstat(descriptor).st_nlink:  # not swept between the two
                    self._held = descriptor
                else:
                    os.close(descriptor)

    def release(self) -> None:
        """Undo ``hold``; safe to call twice."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def open(self, name: str) -> bpf.Fd | None:
        """The object of that name, or None."""
        try:
            return bpf.open_pin(self.directory / name)
        except FileNotFoundError:
            return None

    def look(self, name: str) -> bpf.Fd | None:
        """The program or map of that name, or None, to be looked at alone: also where bpffs is read-only."""
        try:
            return bpf.open_pin(self.directory / name, only_look=True)
        except FileNotFoundError:
            return None

    def put(self, name: str, fd: bpf.Fd) -> None:
        """Pin an object under a name, in the place of what may be there; the name is never missing in between."""
        fresh = self.directory / f"new_{name}"
        fresh.unlink(missing_ok=True)
        bpf.pin(fd, fresh)
        fresh.rename(self.directory / name)

    def remove(self, name: str) -> None:
        """Take a name away; the object goes when nothing else holds it."""
        path = self.directory / name
        if os.path.lexists(path):  # a read-only bpffs refuses to remove also what is not there
            path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """All names in the directory; empty when there is none."""
        if not self.directory.is_dir():
            return []
        return sorted(entry.name for entry in self.directory.iterdir())

    def clear(self) -> bool:
        """Remove all names and the directory; whether there was anything. What is attached by a link is detached by it."""
        names = self.names()
        for name in sorted(names, key=lambda name: not name.startswith("link_")):  # programs leave the devices first
            self.remove(name)
        if self.directory.is_dir():
            self.directory.rmdir()
            return True
        return False


def namespace_cookie() -> int:
    """The kernel's number of the calling thread's network namespace. Raises PlatformError on kernels without it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            (cookie,) = struct.unpack("=Q", asked.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
        except OSError as error:
            raise PlatformError(f"SO_NETNS_COOKIE: {error.strerror}; ebpf needs Linux 5.15 or newer") from error
    return int(cookie)


def remember_devices(pins: Pins, ifindexes: Sequence[int]) -> None:
    """These are the devices, of the calling thread's namespace, that the programs of this directory hang at. Raises OSError."""
    if _devices(pins) == tuple(ifindexes):
        return
    devices = pins.open(DEVICES)
    if devices is None:
        devices = bpf.create_map("fp_devices", bpf.MapShape(bpf.DEVMAP, 4, 4, DEVICES_MAX))
        pins.put(DEVICES, devices)
    with devices:
        for key in range(DEVICES_MAX):
            wanted = ifindexes[key] if key < len(ifindexes) else None
            there = _device(devices, key)
            if wanted is not None and wanted != there:
                bpf.update(devices, key, struct.pack("=I", wanted))
            elif wanted is None and there is not None:
                bpf.delete(devices, key)


def _devices(pins: Pins) -> tuple[int, ...] | None:
    """The devices that are remembered, or None: there is no map of them. A gap shows as a device less."""
    devices = pins.look(DEVICES)
    if devices is None:
        return None
    with devices:
        return tuple(found for key in range(DEVICES_MAX) if (found := _device(devices, key)) is not None)


def _device(devices: bpf.Fd, key: int) -> int | None:
    try:
        return int.from_bytes(bpf.lookup(devices, key, 4), sys.byteorder)
    except FileNotFoundError:
        return None


def sweep_dead(root: Path = ROOT) -> int:
    """Remove the directories of namespaces that are gone, and say how many."""
    return sum(sweep(directory) for directory in find_dead(root))


def find_dead(root: Path = ROOT) -> list[Path]:
    """The directories of namespaces that are gone.

    Gone: the directory knows devices, by its links or by its map, and the kernel says of each that it is no more. One whose programs
    hang anywhere still stays, and so does one that knows none.
    """
    dead = []
    for directory in sorted(root.iterdir()) if root.is_dir() else ():
        with contextlib.suppress(OSError):  # somebody else's, or swept by somebody else
            if _is_dead(directory):
                dead.append(directory)
    return dead


def sweep(directory: Path) -> bool:
    """Remove a dead directory; False: it is not dead, a process holds it, or it went by another hand."""
    try:
        return _sweep(directory)
    except OSError:
        return False


def _sweep(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_dead(directory) and Pins(directory).clear()
    finally:
        os.close(descriptor)


def _is_dead(directory: Path) -> bool:
    links = sorted(directory.glob("link_*"))
    for path in links:
        with bpf.open_pin(path) as link:
            if bpf.link_target(link)[1]:
                return False
    devices = _devices(Pins(directory))
    return bool(links) if devices is None else not devices


def is_bpffs(path: Path) -> bool:
    """Whether bpffs is mounted there."""

    class _Statfs(ctypes.Structure):
        _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_long * 31))

    result = _Statfs()
    library = ctypes.CDLL(None, use_errno=True)
    failed = bool(library.statfs(os.fsencode(path), ctypes.byref(result)))
    return not failed and int(result.type) & 0xFFFFFFFF == _MAGIC


def is_read_only(path: Path) -> bool:
    """Whether the file system there, or its mount, is read-only."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def mount_bpffs(path: Path) -> None:
    """bpffs is mounted there, by us if need be. Raises PlatformError with the cure."""
    if is_bpffs(path):
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700"):
        reason = os.strerror(ctypes.get_errno())
        raise PlatformError(f"{path}: bpffs is not mounted and cannot be ({reason}): `mount -t bpf bpf {path}` as root")
