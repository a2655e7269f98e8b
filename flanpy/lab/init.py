"""PID 1 of a sandbox: makes the namespaces, mounts what belongs to them, then only reaps and waits for its own end.

Run as a script by ``flanpy.lab.sandbox`` (``python -I -S init.py``), so it imports the standard library alone and nothing of
flanpy. It starts nothing, opens no device and never touches the mounts of the machine: every mount follows MS_PRIVATE.

    caller ── starts ──> launcher: unshare(user?, mount, network, PID), fork, "pid N", exit
                            └──> PID 1: mounts /proc /sys /run, brings lo up, "ready", reaps until
                                 SIGTERM, SIGKILL, or the end of the lifeline (the caller has died
                                 before it said "detach" there)

When it ends, the kernel kills every process of the PID namespace and frees all the namespaces with their devices and mounts.
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

LIBC = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int, what: str) -> None:
    """unshare(2), with a message that names what was refused."""
    if LIBC.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), f"unshare of the {what} namespace: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data and data.encode())
    if LIBC.mount(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"mount {kind or 'bind'} on {target}: {os.strerror(ctypes.get_errno())}")


def become_root_of_a_user_namespace() -> None:
    """Map our own uid and gid to root of a new user namespace; needs no privilege where the kernel allows it at all."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER, "user")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def mount_private_views() -> None:
    """Own /proc, /sys and /run, and a hosts file that the lab may write; /sys stays the machine's where that is refused."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    with suppress(OSError):
        mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount("bpf", "/sys/fs/bpf", "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    lab = Path("/run/lab")
    lab.mkdir()
    hosts = lab / "hosts"
    etc_hosts = Path("/etc/hosts")
    if etc_hosts.exists():
        hosts.write_bytes(etc_hosts.read_bytes())
        mount(str(hosts), str(etc_hosts), None, MS_BIND)


def bring_loopback_up() -> None:
    """ip link set lo up, by ioctl."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def reap_until_the_end(lifeline: int) -> None:
    """Collect every orphan of the namespace; return at SIGTERM or when the lifeline's other end is closed.

    A byte on the lifeline cuts it: from then on only SIGTERM and SIGKILL end the sandbox.
    """
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    poller = select.poll()
    poller.register(wake_read, select.POLLIN)
    poller.register(lifeline, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if lifeline in ready:
            if not os.read(lifeline, 1):
                return
            poller.unregister(lifeline)
        if wake_read in ready and signal.SIGTERM in os.read(wake_read, 4096):
            return
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def be_pid_one(report: int, lifeline: int) -> None:
    """The life of PID 1; ``report`` gets one line: ready, or what failed."""
    try:
        os.setsid()
        mount_private_views()
        bring_loopback_up()
    except OSError as error:
        os.write(report, f"error {error.strerror}\n".encode())
        return
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.chdir("/")
    os.write(report, b"ready\n")
    os.close(report)
    reap_until_the_end(lifeline)


def launch(report: int, lifeline: int) -> None:
    """Enter the new namespaces, fork PID 1 and tell its pid."""
    try:
        if os.geteuid() != 0:
            become_root_of_a_user_namespace()
        unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID, "mount, network and PID")
    except OSError as error:
        os.write(report, f"error {error.strerror}\n".encode())
        return
    pid = os.fork()
    if pid == 0:
        be_pid_one(report, lifeline)
        os._exit(0)
    os.write(report, f"pid {pid}\n".encode())


if __name__ == "__main__":
    launch(int(sys.argv[1]), int(sys.argv[2]))
