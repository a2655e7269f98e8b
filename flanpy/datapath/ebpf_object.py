"""Reads the compiled BPF object: its programs, the maps they ask for, and where the map descriptors have to go.

Pure: bytes in, values out. Knows as much of ELF as clang's BPF objects need: 64 bit, one section a program (``tc/NAME``),
a section ``maps`` of four words a map, relocations R_BPF_64_64 against those, and sections ``license`` and ``layout`` (a word).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

_MACHINE_BPF, _RELOCATIONS, _SYMBOLS, _R_BPF_64_64 = 247, 9, 2, 1
_LOAD_IMMEDIATE, _PSEUDO_MAP_FD = 0x18, 1


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as the object declares it."""

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program's instructions, and the (byte offset, map name) of every map it uses."""

    name: str
    instructions: bytes
    maps: tuple[tuple[int, str], ...]

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions with the descriptors of the maps in their places."""
        code = bytearray(self.instructions)
        for offset, name in self.maps:
            if code[offset] != _LOAD_IMMEDIATE:
                raise ValueError(f"{self.name}: the relocation at byte {offset} is not at a 64-bit load")
            code[offset + 1] = (code[offset + 1] & 0x0F) | _PSEUDO_MAP_FD << 4
            struct.pack_into("=i", code, offset + 4, descriptors[name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class BpfObject:
    """All of a compiled object."""

    programs: dict[str, ProgramSpec]
    maps: dict[str, MapSpec]
    licence: bytes
    layout: int
    """FP_BPF_LAYOUT of csrc/bpf/layout.h; 0 of an object that tells none."""


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    type: int
    data: bytes
    link: int
    info: int


def parse_object(data: bytes) -> BpfObject:
    """Read an object. Raises ValueError when it is not one of ours or is cut short."""
    try:
        sections = _sections(data)
        symbols = _symbols(sections)
        maps = _maps(sections, symbols)
        programs = {section.name[3:]: _program(index, section, sections, symbols) for index, section in _programs(sections)}
        licence = next(section.data for section in sections if section.name == "license")
        layout = next((struct.unpack("=I", section.data)[0] for section in sections if section.name == "layout"), 0)
    except (struct.error, IndexError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError(f"BPF object: {error or 'a section is missing'}") from error
    return BpfObject(programs, maps, licence.rstrip(b"\0"), layout)


def _sections(data: bytes) -> list[_Section]:
    order = 1 if sys.byteorder == "little" else 2
    if data[:6] != b"\x7fELF\x02" + bytes([order]) or struct.unpack_from("=H", data, 18)[0] != _MACHINE_BPF:
        raise ValueError("BPF object: not an ELF file for BPF of this machine's byte order")
    (table,) = struct.unpack_from("=Q", data, 40)
    entry_bytes, count, names_index = struct.unpack_from("=HHH", data, 58)
    headers = [struct.unpack_from("=IIQQQQIIQQ", data, table + index * entry_bytes) for index in range(count)]
    names = _slice(data, headers[names_index])
    return [
        _Section(_text(names, header[0]), header[1], _slice(data, header) if header[1] != 8 else b"", header[6], header[7])
        for header in headers
    ]


def _slice(data: bytes, header: tuple[int, ...]) -> bytes:
    if header[4] + header[5] > len(data):
        raise ValueError("BPF object: a section reaches past the end of the file")
    return data[header[4] : header[4] + header[5]]


def _text(names: bytes, offset: int) -> str:
    return names[offset : names.index(b"\0", offset)].decode()


def _symbols(sections: list[_Section]) -> list[tuple[str, int, int]]:
    """(name, section index, value) of each symbol, in the order of the table."""
    table = next(section for section in sections if section.type == _SYMBOLS)
    names = sections[table.link].data
    entries = struct.iter_unpack("=IBBHQQ", table.data)
    return [(_text(names, name), section, value) for name, _, _, section, value, _ in entries]


def _maps(sections: list[_Section], symbols: list[tuple[str, int, int]]) -> dict[str, MapSpec]:
    index = next(index for index, section in enumerate(sections) if section.name == "maps")
    named = [(name, value) for name, section, value in symbols if section == index and name]
    return {name: MapSpec(name, *struct.unpack_from("=IIII", sections[index].data, value)) for name, value in named}


def _programs(sections: list[_Section]) -> list[tuple[int, _Section]]:
    return [(index, section) for index, section in enumerate(sections) if section.name.startswith("tc/")]


def _program(index: int, section: _Section, sections: list[_Section], symbols: list[tuple[str, int, int]]) -> ProgramSpec:
    tables = [other for other in sections if other.type == _RELOCATIONS and other.info == index]
    maps = []
    for offset, kind in (entry for table in tables for entry in struct.iter_unpack("=QQ", table.data)):
        if kind & 0xFFFFFFFF != _R_BPF_64_64:
            raise ValueError(f"BPF object: {section.name} has a relocation of kind {kind & 0xFFFFFFFF}, which needs a linker")
        maps.append((offset, symbols[kind >> 32][0]))
    return ProgramSpec(section.name[3:], section.data, tuple(maps))
