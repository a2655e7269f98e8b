"""Sees to it that every program hangs where it belongs, and nowhere else; pins programs and maps once they do.

The order matters: a program is swapped in before its pin is, and the maps get their names last, so that an adopter never finds
half of a set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.ebpf_attach import Spot, TcHooks
from flanpy.datapath.ebpf_pins import Pins, remember_devices
from flanpy.datapath.ebpf_programs import Loaded, map_pin

OPTIONAL = frozenset({"fp_bypass", "fp_merged"})
"""Programs that hang only where an option asks for them."""


def put_in_place(loaded: Loaded, spots: tuple[Spot, ...], pins: Pins, hooks: TcHooks) -> tuple[Loaded, int]:
    """Every program hangs in its place, ours and not another version: how many had to be put there. Raises OSError that says which.

    From then on the maps are pinned, and ``adopted`` in what is returned.
    """
    done = 0
    for spot in spots:
        with _naming(f"{spot.program} at interface {spot.ifindex}"):
            done += _attach(loaded, spot, pins, hooks)
    with _naming("programs that are not wanted any more"):
        hooks.sweep(spots)  # options change from one process to the next, and interfaces move
        for program in OPTIONAL - {spot.program for spot in spots}:
            pins.remove(f"prog_{program}")
    if hooks.name == "clsact":
        with _naming("the map of devices"):
            remember_devices(pins, [spot.ifindex for spot in spots])
    if done and not loaded.adopted:
        with _naming("pins"):
            _pin_maps(loaded, pins)
        loaded = replace(loaded, adopted=True)
    return loaded, done


def _pin_maps(loaded: Loaded, pins: Pins) -> None:
    """Ours under their names; those of another layout go, for no program uses them any more."""
    for name, fd in loaded.maps.items():
        pins.put(map_pin(name), fd)
    for name in set(pins.names()) - {map_pin(name) for name in loaded.maps}:
        if name.startswith("map"):
            pins.remove(name)


def _attach(loaded: Loaded, spot: Spot, pins: Pins, hooks: TcHooks) -> bool:
    program = loaded.programs[spot.program]
    pinned = pins.look(f"prog_{spot.program}")
    if pinned is not None:
        with pinned:
            same = loaded.adopted and bpf.program_tag(pinned) == bpf.program_tag(program)
            if same and hooks.attached(spot) == bpf.object_id(pinned):
                return False
    hooks.attach(spot, program)
    pins.put(f"prog_{spot.program}", program)
    return True


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
