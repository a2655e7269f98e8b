"""One end of a TCP stream of random content, each byte compared where it arrives: ``send ADDRESS BYTES SEED`` or ``receive BYTES SEED``.

Both ends make the same pool of random bytes from the seed and take each block of the stream from another place of it, so a block that is
lost, doubled, moved or changed cannot be taken for the right one. The receiver says ``ready`` when it listens, then one line of JSON:
``{"bytes": B, "seconds": S, "differs_at": null}``, or the position of the first byte that is not what was sent.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from typing import Any

PORT = 9011
POOL_BYTES = 32 << 20
BLOCK_BYTES = 1 << 20
STRIDE = 7_368_787
"""Prime, so that neighbouring blocks begin far from each other in the pool and no two soon at the same place."""
TIMEOUT_S = 30.0


def pool_of(seed: int) -> bytes:
    """The random bytes that the blocks are taken from."""
    return random.Random(seed).randbytes(POOL_BYTES + BLOCK_BYTES)


def block_of(pool: bytes, number: int, size: int) -> bytes:
    """Block ``number`` of the stream."""
    start = number * STRIDE % POOL_BYTES
    return pool[start : start + size]


def sizes(total: int) -> list[int]:
    """The sizes of all blocks: whole ones and what is left."""
    whole, rest = divmod(total, BLOCK_BYTES)
    return [BLOCK_BYTES] * whole + ([rest] if rest else [])


def first_difference(wanted: bytes, got: bytes | bytearray) -> int | None:
    """Where two blocks differ first, or None when they are equal."""
    if wanted == got:
        return None
    return next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))


def send(address: str, total: int, seed: int) -> None:
    """Send the whole stream."""
    pool = pool_of(seed)
    with socket.create_connection((address, PORT), timeout=TIMEOUT_S) as stream:
        for number, size in enumerate(sizes(total)):
            stream.sendall(block_of(pool, number, size))


def receive(total: int, seed: int) -> dict[str, Any]:
    """Take one stream and compare it; ends at the first difference."""
    pool = pool_of(seed)
    with socket.create_server(("", PORT)) as server:
        server.settimeout(TIMEOUT_S)
        print("ready", flush=True)
        stream, _ = server.accept()
    with stream:
        stream.settimeout(TIMEOUT_S)
        return compare(stream, pool, total)


def compare(stream: socket.socket, pool: bytes, total: int) -> dict[str, Any]:
    """Read ``total`` bytes of a stream and hold them against the pool."""
    started, done, block = time.monotonic(), 0, bytearray(BLOCK_BYTES)
    for number, size in enumerate(sizes(total)):
        filled = _fill(stream, memoryview(block)[:size])
        differs = first_difference(block_of(pool, number, size), block[:filled])
        if differs is not None:
            return {"bytes": done + filled, "seconds": time.monotonic() - started, "differs_at": done + differs}
        done += size
    return {"bytes": done, "seconds": time.monotonic() - started, "differs_at": None}


def _fill(stream: socket.socket, view: memoryview) -> int:
    filled = 0
    while filled < len(view) and (taken := stream.recv_into(view[filled:])):
        filled += taken
    return filled


def main(arguments: list[str]) -> None:
    """The command line of this end."""
    match arguments:
        case ["send", address, total, seed]:
            send(address, int(total), int(seed))
        case ["receive", total, seed]:
            print(json.dumps(receive(int(total), int(seed))), flush=True)
        case _:
            raise SystemExit("content_process: send ADDRESS BYTES SEED | receive BYTES SEED")


if __name__ == "__main__":
    main(sys.argv[1:])
