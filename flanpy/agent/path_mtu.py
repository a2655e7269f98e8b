"""Measures how large a packet gets to an address whole: echo requests that must not be fragmented, of sizes that close in.

Takes a bounded time: a host that answers costs one round trip, one that does not about half a second. Over the underlay nothing is
sent to the overlay's own port, so no counter of a peer moves.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flanpy.agent.echo import Echo
from flanpy.model import Address

SMALL_BYTES = {4: 576, 6: 1280}
"""What every path must carry in one piece or another (RFC 791, RFC 8200); small enough to tell a dead path from a narrow one."""
ANSWER_S = 0.5
AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class PathMtu:
    """What was found: the largest packet that was answered, None when none was; ``reason`` says why not the whole."""

    mtu_bytes: int | None
    reason: str = ""


def measure_all(addresses: Collection[Address], mtu_bytes: int) -> dict[Address, PathMtu]:
    """Measure the paths to all of these, side by side, up to ``mtu_bytes``."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(addresses, pool.map(lambda address: measure(address, mtu_bytes), addresses), strict=True))


def measure(address: Address, mtu_bytes: int) -> PathMtu:
    """The path to one address: all at once, else halving the rest between what goes and what does not."""
    try:
        with Echo(address) as echo:
            return close_in(echo, mtu_bytes, SMALL_BYTES[address.version])
    except OSError as error:
        return PathMtu(None, error.strerror or str(error))


def close_in(echo: Echo, mtu_bytes: int, small_bytes: int) -> PathMtu:
    """The same on a socket that is open already. Raises OSError."""
    if echo.ask(mtu_bytes, ANSWER_S) is not None:
        return PathMtu(mtu_bytes)
    if mtu_bytes <= small_bytes or echo.ask(small_bytes, ANSWER_S) is None:
        return PathMtu(None, "no answer to ping (down, or a filter on the way)")
    goes, fails = small_bytes, mtu_bytes
    while fails - goes > 1:
        middle = (goes + fails) // 2
        goes, fails = (goes, middle) if echo.ask(middle, ANSWER_S) is None else (middle, fails)
    return PathMtu(goes, f"packets of more than {goes} bytes do not get there")
