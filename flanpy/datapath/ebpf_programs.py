"""Finds the compiled object, makes or adopts its maps, and loads its programs into the kernel. Attaches nothing.

Maps found in the pin directory are adopted when their names carry this layout and their shapes are right; so the routes in
them, and the counters, go on. Otherwise new ones are made, and nothing of the old is touched: it goes on working until replaced.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.core_api import CURE
from flanpy.datapath.ebpf_layout import CHUNK_BYTES, LAYOUT
from flanpy.datapath.ebpf_object import BpfObject, MapSpec, parse_object
from flanpy.datapath.ebpf_pins import Pins
from flanpy.errors import SHORTAGES, DatapathError, PlatformError, reason_of

OBJECT = "overlay.bpf.o"
SNAPSHOT_FLAGS = bpf.F_MMAPABLE | bpf.F_INNER_MAP
LOG_TAIL_LINES = 40


@dataclass(frozen=True, slots=True)
class Loaded:
    """Maps and programs in the kernel; ``adopted`` when the maps are those of an earlier run."""

    maps: Mapping[str, bpf.Fd]
    programs: Mapping[str, bpf.Fd]
    adopted: bool

    def close(self) -> None:
        """Let go of the descriptors; what is pinned stays. Safe to call twice."""
        for fd in (*self.maps.values(), *self.programs.values()):
            fd.close()


def read_object() -> BpfObject:
    """The object that was built into this package. Raises PlatformError when it was built without one, or for another version."""
    try:
        data = Path(__file__).with_name(OBJECT).read_bytes()
    except FileNotFoundError as error:
        raise PlatformError(
            "ebpf: this build has no BPF object in it, for clang was missing: install clang (Debian: apt-get install clang), then "
            + CURE
        ) from error
    try:
        parsed = parse_object(data)
    except ValueError as error:
        raise PlatformError(f"ebpf: {OBJECT} of this build cannot be used: {error}; {CURE}") from error
    if parsed.layout != LAYOUT:
        raise PlatformError(f"ebpf: {OBJECT} is of another version of flanpy (layout {parsed.layout}, here {LAYOUT}); {CURE}")
    return parsed


def map_pin(name: str) -> str:
    """The pin of a map; the layout stands in it, so that another version's maps are never mistaken for ours."""
    return f"map{LAYOUT}_{name}"


def load(pins: Pins) -> Loaded:
    """Maps and programs, ready to be attached. Raises DatapathError; a verifier's log is kept in ``error.__notes__``."""
    parsed = read_object()
    maps = _adopted(parsed, pins)
    adopted = maps is not None
    if maps is None:
        maps = _fresh(parsed)
    programs: dict[str, bpf.Fd] = {}
    try:
        for name, program in parsed.programs.items():
            code = program.linked({name: fd.number for name, fd in maps.items()})
            programs[name] = bpf.load_program(name, code, parsed.licence)
    except OSError as error:
        Loaded(maps, programs, adopted).close()
        raise refused(error) from error
    return Loaded(maps, programs, adopted)


def refused(error: OSError) -> DatapathError:
    """What a failed load says to an operator; of the verifier's log the end, which names the instruction."""
    failure = DatapathError(f"ebpf: the kernel does not take the programs: {reason_of(error)}")
    if isinstance(error, bpf.Rejected):
        lines = error.log.rstrip().splitlines()
        failure = DatapathError(f"ebpf: the verifier refused {error.strerror}: {lines[-1] if lines else 'it wrote no log'}")
        failure.add_note("\n".join(lines[-LOG_TAIL_LINES:]))
    return failure


def snapshot_map(data: bytes) -> bpf.Fd:
    """A new map with a snapshot's bytes in it."""
    fd = bpf.create_map("fp_snapshot", bpf.MapShape(bpf.ARRAY, 4, CHUNK_BYTES, len(data) // CHUNK_BYTES, SNAPSHOT_FLAGS))
    try:
        with mmap.mmap(fd.number, len(data)) as view:
            view[:] = data
    except BaseException:
        fd.close()
        raise
    return fd


def publish(maps: Mapping[str, bpf.Fd], data: bytes) -> None:
    """Let every packet from now on meet this snapshot; the old one is freed when the last packet in it is through."""
    with snapshot_map(data) as fd:
        bpf.update(maps["fp_tables"], 0, struct.pack("=I", fd.number))


def _shape(spec: MapSpec) -> bpf.MapShape:
    """A hash makes its entries when they are wanted: on machines of many CPUs all of them would be a lot of memory."""
    flags = bpf.F_NO_PREALLOC if spec.type == bpf.PERCPU_HASH else 0
    return bpf.MapShape(spec.type, spec.key_bytes, spec.value_bytes, spec.entries, flags)


def _adopted(parsed: BpfObject, pins: Pins) -> dict[str, bpf.Fd] | None:
    """The pinned maps, all of them or None.

    Before Linux 5.19 a process without CAP_BPF may not even look for them (kernel.unprivileged_bpf_disabled)."""
    found: dict[str, bpf.Fd] = {}
    try:
        for name, spec in parsed.maps.items():
            fd = pins.open(map_pin(name))
            if fd is not None:
                found[name] = fd
            if fd is None or bpf.map_shape(fd) != _shape(spec):
                Loaded(found, {}, False).close()
                return None
    except OSError as error:
        Loaded(found, {}, False).close()
        raise DatapathError(
            f"ebpf: the kernel does not open the maps: {reason_of(error)} (see `flanpy datapath probe`)"
        ) from error
    return found


def _fresh(parsed: BpfObject) -> dict[str, bpf.Fd]:
    maps: dict[str, bpf.Fd] = {}
    try:
        with snapshot_map(bytes(CHUNK_BYTES)) as template:
            for name, spec in parsed.maps.items():
                maps[name] = bpf.create_map(name, _shape(spec), template if spec.type == bpf.ARRAY_OF_MAPS else None)
    except OSError as error:
        Loaded(maps, {}, False).close()
        hint = "" if error.errno in SHORTAGES else " (see `flanpy datapath probe`)"
        raise DatapathError(f"ebpf: the kernel does not make the maps: {reason_of(error)}{hint}") from error
    return maps
