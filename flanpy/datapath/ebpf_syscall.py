"""bpf(2), and nothing above it: maps, programs, links and pins as file descriptors; no policy, no layout of ours.

Talks to the kernel by itself, so that no library is needed at run time. Descriptors are owned by ``Fd`` values; every
call raises OSError as the kernel gave it, and ``load_program`` raises ``Rejected`` with the verifier's log.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY, PROG_LOAD, OBJ_PIN, OBJ_GET = 0, 1, 2, 3, 4, 5, 6, 7
PROG_TEST_RUN, OBJ_INFO, PROG_QUERY, LINK_CREATE, LINK_UPDATE = 10, 15, 16, 28, 29

ARRAY, PERCPU_HASH, PERCPU_ARRAY, ARRAY_OF_MAPS, DEVMAP = 2, 5, 6, 12, 14
SCHED_CLS = 3
TCX_INGRESS, TCX_EGRESS = 46, 47
F_NO_PREALLOC, F_RDONLY, F_MMAPABLE, F_INNER_MAP = 1 << 0, 1 << 3, 1 << 10, 1 << 12
LINK_REPLACE = 4

LOG_BYTES = 4 << 20
PROGRAMS_MAX = 64
"""The kernel's limit for one hook (BPF_MPROG_MAX)."""
_NUMBERS = {"x86_64": 321, "aarch64": 280}
_NUMBER = _NUMBERS.get(platform.machine())
_libc = ctypes.CDLL(None, use_errno=True)


class Rejected(OSError):
    """The verifier refused a program; ``log`` is what it wrote, its end first read."""

    def __init__(self, error: int, name: str, log: str) -> None:
        super().__init__(error, f"{name}: {os.strerror(error)}")
        self.log = log


class Fd:
    """A file descriptor of a BPF object; closed with the value that owns it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        """The descriptor, for calls that want a number."""
        return self.number

    def close(self) -> None:
        """Close it; safe to call twice."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1

    def __enter__(self) -> Fd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def call(command: int, attributes: bytes | bytearray) -> int:
    """One bpf(2). The kernel may write into the attributes when a bytearray is given. Raises OSError."""
    buffer = ctypes.create_string_buffer(bytes(attributes), len(attributes))
    result = int(_libc.syscall(*_arguments(command, buffer)))
    if result < 0:
        raise _error()
    if isinstance(attributes, bytearray):
        attributes[:] = buffer.raw
    return result


def _arguments(command: int, attributes: ctypes.Array[ctypes.c_char]) -> tuple[object, ...]:
    """Of syscall(2), for a call with these attributes."""
    if _NUMBER is None:
        raise OSError(errno.ENOSYS, f"bpf(2): its number on {platform.machine()} is not known here")
    return ctypes.c_long(_NUMBER), ctypes.c_long(command), attributes, ctypes.c_ulong(len(attributes))


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _name(text: str) -> bytes:
    return text.encode()[:15]


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a map is made of; two maps of one shape can stand for each other."""

    type: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int = 0


def create_map(name: str, shape: MapShape, inner: Fd | None = None) -> Fd:
    """A new map; ``inner`` is the template of a map of maps."""
    inner_fd = inner.number if inner is not None else 0
    numbers = (shape.type, shape.key_bytes, shape.value_bytes, shape.entries, shape.flags, inner_fd, 0)
    return Fd(call(MAP_CREATE, struct.pack("=7I16s", *numbers, _name(name))))


def map_shape(fd: Fd) -> MapShape:
    """The shape of an existing map."""
    kind, _, key_bytes, value_bytes, entries, flags = struct.unpack_from("=6I", info(fd, 80))
    return MapShape(kind, key_bytes, value_bytes, entries, flags)


Key = int | bytes
"""A number of 32 bits, as the keys of arrays are; or the key's own bytes."""


def _key(key: Key) -> ctypes.Array[ctypes.c_char]:
    data = struct.pack("=I", key) if isinstance(key, int) else key
    return ctypes.create_string_buffer(data, len(data))


def update(fd: Fd, key: Key, value: bytes) -> None:
    """Store one element, of a per-CPU map all CPUs' values; one of a map of maps is swapped atomically and seen by every CPU on return."""
    key_buffer = _key(key)
    value_buffer = ctypes.create_string_buffer(value, len(value))
    call(MAP_UPDATE, struct.pack("=IIQQQ", fd.number, 0, _address(key_buffer), _address(value_buffer), 0))


def lookup(fd: Fd, key: Key, value_bytes: int) -> bytes:
    """Read one element; of a per-CPU map all CPUs' values, one behind the other. Raises FileNotFoundError where a hash has none."""
    key_buffer = _key(key)
    value_buffer = ctypes.create_string_buffer(value_bytes)
    call(MAP_LOOKUP, struct.pack("=IIQQQ", fd.number, 0, _address(key_buffer), _address(value_buffer), 0))
    return value_buffer.raw


class Reading:
    """One element of a map that is read again and again: all that does not change is made once. Raises OSError as ``lookup`` does."""

    def __init__(self, fd: Fd, key: Key, value_bytes: int) -> None:
        self._fd = fd
        self._key, self._value = _key(key), ctypes.create_string_buffer(value_bytes)
        self._attributes = _key(struct.pack("=IIQQQ", fd.number, 0, _address(self._key), _address(self._value), 0))
        self._arguments = _arguments(MAP_LOOKUP, self._attributes)

    def read(self) -> bytes:
        """The value as it is now."""
        if self._fd.number < 0:
            raise OSError(errno.EBADF, "the map has been closed")
        if _libc.syscall(*self._arguments) < 0:
            raise _error()
        return self._value.raw


def delete(fd: Fd, key: Key) -> None:
    """Remove one element of a hash. Raises FileNotFoundError."""
    key_buffer = _key(key)
    call(MAP_DELETE, struct.pack("=IIQQQ", fd.number, 0, _address(key_buffer), 0, 0))


def keys(fd: Fd, key_bytes: int) -> list[bytes]:
    """All keys of a hash that nobody changes meanwhile."""
    found: list[bytes] = []
    last, following = ctypes.create_string_buffer(key_bytes), ctypes.create_string_buffer(key_bytes)
    try:
        while True:
            before = _address(last) if found else 0
            call(MAP_NEXT_KEY, struct.pack("=IIQQQ", fd.number, 0, before, _address(following), 0))
            found.append(following.raw)
            last.raw = following.raw
    except FileNotFoundError:
        return found


def load_program(name: str, instructions: bytes, licence: bytes) -> Fd:
    """Load a tc program. Raises Rejected with the verifier's log, or OSError when the kernel would not even look at it."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    terms = ctypes.create_string_buffer(licence)

    def load(log_level: int, log: ctypes.Array[ctypes.c_char] | None) -> Fd:
        log_size, log_address = (len(log), _address(log)) if log is not None else (0, 0)
        head = (SCHED_CLS, len(instructions) // 8, _address(code), _address(terms), log_level, log_size, log_address, 0, 0)
        return Fd(call(PROG_LOAD, struct.pack("=IIQQIIQII16sII", *head, _name(name), 0, 0)))

    try:
        return load(0, None)
    except OSError as refusal:
        return _load_again(load, name, refusal)


def _load_again(load: object, name: str, refusal: OSError) -> Fd:
    """A refusal says little; ask once more, with a log."""
    assert callable(load)
    log = ctypes.create_string_buffer(LOG_BYTES)
    try:
        return load(1, log)  # type: ignore[no-any-return]
    except OSError as error:
        text = log.value.decode(errors="replace")
        raise Rejected(error.errno or refusal.errno or 22, name, text) from error


def info(fd: Fd, size: int) -> bytes:
    """What the kernel tells about an object; the meaning of the bytes depends on its type."""
    buffer = ctypes.create_string_buffer(size)
    call(OBJ_INFO, struct.pack("=IIQ", fd.number, size, _address(buffer)))
    return buffer.raw


def program_tag(fd: Fd) -> bytes:
    """The kernel's hash over a program's instructions; maps do not count in it."""
    return info(fd, 16)[8:16]


def object_id(fd: Fd) -> int:
    """The kernel's number of a program, map or link."""
    number: int = struct.unpack_from("=II", info(fd, 16))[1]
    return number


def pin(fd: Fd, path: Path) -> None:
    """Give an object a name in bpffs, so that it outlives us. Raises FileExistsError."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    call(OBJ_PIN, struct.pack("=QII", _address(text), fd.number, 0))


def open_pin(path: Path, *, only_look: bool = False) -> Fd:
    """The object behind a name in bpffs. Raises FileNotFoundError; OSError(EROFS) where bpffs is read-only.

    ``only_look``: also there, but not a link, and a map can only be read."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    return Fd(call(OBJ_GET, struct.pack("=QII", _address(text), 0, F_RDONLY if only_look else 0)))


def create_link(program: Fd, ifindex: int, attach_type: int) -> Fd:
    """Attach a program to a device (tcx, Linux 6.6); detached when the last reference to the link goes."""
    return Fd(call(LINK_CREATE, struct.pack("=IIIIIIQ", program.number, ifindex, attach_type, 0, 0, 0, 0)))


def update_link(link: Fd, program: Fd) -> None:
    """Put another program in a link's place, atomically. Raises OSError(ENOLINK) when the link has been detached."""
    call(LINK_UPDATE, struct.pack("=IIII", link.number, program.number, 0, 0))


def link_target(link: Fd) -> tuple[int, int]:
    """(program id, ifindex) of a tcx link; ifindex 0: detached by somebody, or the device is gone."""
    _, _, program, _, ifindex, _ = struct.unpack_from("=IIIIII", info(link, 32))
    return program, ifindex


def attached_programs(ifindex: int, attach_type: int) -> tuple[int, ...]:
    """The ids of all programs that hang at a device by tcx, in the order in which they see packets."""
    return attached_since(ifindex, attach_type)[1]


def attached_since(ifindex: int, attach_type: int) -> tuple[int, tuple[int, ...]]:
    """The same behind a number that every change there raises, and that begins anew where nothing has hung for a moment."""
    ids = (ctypes.c_uint32 * PROGRAMS_MAX)()
    attributes = bytearray(
        struct.pack("=IIIIQIIQQQQ", ifindex, attach_type, 0, 0, ctypes.addressof(ids), PROGRAMS_MAX, *5 * (0,))
    )
    call(PROG_QUERY, attributes)
    (count,), (revision,) = struct.unpack_from("=I", attributes, 24), struct.unpack_from("=Q", attributes, 56)
    return int(revision), tuple(ids[:count])


def test_run(program: Fd, packet: bytes, context: bytes = b"") -> tuple[int, bytes]:
    """Run a program once on a packet: (its return value, the packet after it)."""
    given = ctypes.create_string_buffer(packet, len(packet))
    result = ctypes.create_string_buffer(len(packet) + 256)
    words = ctypes.create_string_buffer(context, len(context)) if context else None
    context_at = _address(words) if words is not None else 0
    numbers = (
        program.number,
        0,
        len(packet),
        len(result),
        _address(given),
        _address(result),
        1,
        0,
        len(context),
        0,
        context_at,
        0,
    )
    attributes = bytearray(struct.pack("=IIIIQQIIIIQQ", *numbers))
    call(PROG_TEST_RUN, attributes)
    _, value, _, bytes_out = struct.unpack_from("=IIII", attributes)
    return value, result.raw[:bytes_out]
