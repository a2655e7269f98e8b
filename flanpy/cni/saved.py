"""What is kept for each attachment until its DEL: one file (0600), the delegate's config with a note of ours in it.

Files are named as flannel's plugin names them, so that a node can be switched while pods run, in both directions:

    <dataDir>/<container id>              eth0, the interface that every runtime gives a pod
    <dataDir>/<container id>@<ifname>     any other interface ("@" cannot be in a container id)

The note stands under the key ``flanpy``: {"ifname": …, "netns": …, "boot": …, "pod": {"namespace": …, "name": …}, "result": the
delegate's result, once there is one}. A file of flannel's has none. The agent reads these files too (``core.attached``). Writes are whole
or not at all, against kill -9; not flushed to disk, for pods do not outlive a power cut and a file that cannot be read is met as if
it were not there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flanpy.cni.protocol import IO_FAILURE, Attachment, JsonDict, is_plugin_name, parse_object
from flanpy.errors import CniError

FIRST_INTERFACE = "eth0"
NOTE = "flanpy"
ABANDONED_S = 3600
"""A half-written file of this age is nobody's any more."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One kept attachment; ``result`` None: its ADD did not come to its end, or flannel's plugin made it."""

    attachment: Attachment
    config: JsonDict
    netns: str = ""
    result: JsonDict | None = None
    pod: JsonDict = field(default_factory=dict)
    """Namespace and name, as far as the runtime has told them."""

    @property
    def by_flannel(self) -> bool:
        """Whether flannel's plugin wrote it: then the interface's name is a guess."""
        return not self.netns

    def is_one_of(self, attachments: Collection[Attachment]) -> bool:
        """Whether the attachment is listed; flannel's by the container alone."""
        if self.by_flannel:
            return any(self.attachment.container_id == valid.container_id for valid in attachments)
        return self.attachment in attachments


def store(directory: Path, saved: Saved) -> None:
    """Write or replace the file of an attachment. Raises CniError (5)."""
    note: JsonDict = {"ifname": saved.attachment.ifname, "netns": saved.netns, "boot": _boot(), "pod": saved.pod}
    note |= {"result": saved.result}
    path = _path(directory, saved.attachment)
    beside = directory / f".{path.name}.{os.getpid()}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({**saved.config, NOTE: note}, file)
            beside.replace(path)
        except BaseException:
            beside.unlink()
            raise
    except OSError as error:
        cure = "without it DEL could not give the address back; make dataDir writable, or choose another"
        raise CniError(IO_FAILURE, f"{path}: cannot be written: {error.strerror}; {cure}") from error


def load(directory: Path, attachment: Attachment) -> Saved | None:
    """What is kept for an attachment; None when nothing is, or nothing that can be read."""
    found = _read(_path(directory, attachment), attachment)
    if found is None and attachment.ifname != FIRST_INTERFACE:
        # flannel's plugin has one file a container, whatever the interface is called.
        others = _read(directory / attachment.container_id, attachment)
        return others if others is not None and others.by_flannel else None
    return found


def remove(directory: Path, saved: Saved) -> None:
    """Forget an attachment; what is gone already is well. Raises CniError (5)."""
    paths = [_path(directory, saved.attachment)]
    if saved.by_flannel:
        paths.append(directory / saved.attachment.container_id)
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CniError(IO_FAILURE, f"{path}: cannot be removed: {error.strerror}") from error


def all_saved(directory: Path) -> Iterator[Saved]:
    """Everything that is kept and can be read, in the order of the names."""
    for name in _names(directory):
        container_id, _, ifname = name.partition("@")
        if is_plugin_name(container_id[:1]):
            saved = _read(directory / name, Attachment(container_id, ifname or FIRST_INTERFACE))
            if saved is not None:
                yield saved


def sweep_abandoned(directory: Path) -> None:
    """Remove half-written files that a killed plugin has left."""
    for name in _names(directory):
        if name.startswith("."):
            with suppress(OSError):
                if time.time() - (directory / name).stat().st_mtime > ABANDONED_S:
                    (directory / name).unlink()


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError:
        return []


def _path(directory: Path, attachment: Attachment) -> Path:
    first = attachment.ifname == FIRST_INTERFACE
    return directory / (attachment.container_id if first else f"{attachment.container_id}@{attachment.ifname}")


def _read(path: Path, attachment: Attachment) -> Saved | None:
    try:
        config = parse_object(path.read_bytes(), str(path))
    except (OSError, CniError):
        return None
    note = config.pop(NOTE, None)
    if not is_plugin_name(config.get("type")):
        return None
    if not isinstance(note, dict):
        return Saved(attachment, config)
    ifname, result = note.get("ifname"), note.get("result")
    known = Attachment(attachment.container_id, ifname) if isinstance(ifname, str) and ifname else attachment
    pod = note.get("pod")
    netns = str(note.get("netns") or "")
    return Saved(known, config, netns, result if isinstance(result, dict) else None, pod if isinstance(pod, dict) else {})


def _boot() -> str:
    """Which boot of the machine this is: what is attached does not outlive it."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
