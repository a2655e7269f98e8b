"""The agent's files: node id, lock, subnet.env. All writes are whole or not at all (write beside, rename over).

Knows paths and bytes; what stands in subnet.env is rendered by ``core.subnet_env``.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from flanpy.core.x25519 import KEY_BYTES, clamped
from flanpy.errors import PlatformError, ResourceBusy

NODE_ID_FILE = "node-id"
TEXT_BYTES_MAX = 64 * 1024
WIREGUARD_KEY_FILE = "wireguard-key"
LOCK_FILE = "agent.lock"


def make_directory(path: Path, flag: str) -> None:
    """Create a directory (0700) with its parents. Raises PlatformError naming the flag that moves it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(f"{flag}: cannot create {path}: {error.strerror}; choose a directory that can be written") from error


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the whole file in one step: a reader sees the old text or the new, and a crash leaves either. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def read_text(path: Path) -> str | None:
    """The text of a regular file of at most ``TEXT_BYTES_MAX``, or None when there is none or it cannot be read as text.

    Never waits: a FIFO in its place would hold the agent for ever.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            data = file.read(TEXT_BYTES_MAX + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
        return data.decode() if data is not None and len(data) <= TEXT_BYTES_MAX else None
    except (OSError, UnicodeDecodeError):
        return None


def node_id(state_dir: Path) -> str:
    """This node's stable id: made once, then read for ever. A damaged file is replaced. Raises PlatformError if it cannot be kept."""
    path = state_dir / NODE_ID_FILE
    kept = (read_text(path) or "").strip()
    if re.fullmatch(r"[0-9a-f-]{36}", kept):
        return kept
    fresh = str(uuid.uuid4())
    try:
        write_atomically(path, fresh + "\n", 0o600)
    except OSError as error:
        raise PlatformError(
            f"--state-dir: cannot write {path}: {error.strerror}; without a kept node id a restart could take another subnet"
        ) from error
    return fresh


def wireguard_key(state_dir: Path) -> bytes:
    """This node's private WireGuard key: made once, then read for ever; flannel's WIREGUARD_KEY_FILE moves it. Raises PlatformError.

    A damaged file is not replaced: the operator may have a copy, and a new key would cut connections without need.
    """
    path = Path(os.environ.get("WIREGUARD_KEY_FILE") or state_dir / WIREGUARD_KEY_FILE)
    try:
        if not path.exists():
            fresh = clamped(os.urandom(KEY_BYTES))
            write_atomically(path, base64.b64encode(fresh).decode() + "\n", 0o600)
        key = base64.b64decode(path.read_text(encoding="ascii").strip(), validate=True)
    except (OSError, ValueError) as error:
        raise PlatformError(f"{path}: cannot keep the WireGuard key there: {error}") from error
    if len(key) != KEY_BYTES:
        raise PlatformError(f"{path}: not a WireGuard key as `wg genkey` prints it; restore it, or delete it for a new one")
    return key


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the lock of one agent per run directory. Raises ResourceBusy naming the process that has it."""
    path = run_dir / LOCK_FILE
    handle = _locked(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def unused(run_dir: Path) -> Iterator[None]:
    """No agent holds the lock, nor takes it in the meantime; writes nothing. Raises ResourceBusy naming the process that has it."""
    path = run_dir / LOCK_FILE
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise PlatformError(f"--run-dir: cannot open {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(path) from None
        yield
    finally:
        os.close(handle)


def _locked(path: Path) -> int:
    """The file that is at this path, locked: a cleanup may have removed the one that was opened before its lock was ours."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise PlatformError(f"--run-dir: cannot open {path}: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise PlatformError(f"--run-dir: {path} is not a regular file; remove it")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.lstat()):
                    return handle
        except BlockingIOError:
            os.close(handle)
            raise _held(path) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _held(path: Path) -> ResourceBusy:
    holder = (read_text(path) or "?").strip()
    return ResourceBusy(f"another flanpy agent runs here (process {holder}, lock {path}); stop it first")
