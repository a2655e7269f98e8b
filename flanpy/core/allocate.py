"""Choose a subnet for this node: the previous one if it is free and fits, else a random one of the first free; no I/O.

flannel takes a random one of the first hundred free subnets from SubnetMin on; so do we. Whoever has lost a race asks with
a wider window, so that a thousand nodes that join at once spread out instead of meeting again.

Cost: O(m log m) for m taken subnets (sorted once into ranges of addresses), then O(window) to walk the gaps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from typing import TypeVar

from flanpy.errors import PoolExhausted
from flanpy.model import NetworkConfig, Subnets

FLANNEL_WINDOW = 100
"""How many free subnets flannel chooses among."""

Range = IPv4Network | IPv6Network
R = TypeVar("R", IPv4Network, IPv6Network)
Span = tuple[int, int]
"""Addresses as numbers, from the first up to, not including, the second."""


def choose_subnet(
    config: NetworkConfig,
    taken: Collection[Range],
    previous: Subnets | None,
    pick: Callable[[int], int],
    window: int = FLANNEL_WINDOW,
) -> Subnets:
    """A free subnet of each enabled family; ``pick(n)`` returns a number from 0 to n - 1. Raises PoolExhausted."""
    ipv4 = ipv6 = None
    if config.enable_ipv4:
        wanted = previous.ipv4 if previous else None
        ipv4 = _choose(config.subnet_min, config.subnet_max, wanted, _spans(taken, 4), pick, window)
    if config.enable_ipv6:
        wanted6 = previous.ipv6 if previous else None
        ipv6 = _choose(config.ipv6_subnet_min, config.ipv6_subnet_max, wanted6, _spans(taken, 6), pick, window)
    return Subnets(ipv4, ipv6)


def fits(config: NetworkConfig, subnets: Subnets) -> bool:
    """Whether a node could be given these subnets under this config: families, length, and between SubnetMin and SubnetMax."""
    return _within(subnets.ipv4, config.subnet_min, config.subnet_max) and _within(
        subnets.ipv6, config.ipv6_subnet_min, config.ipv6_subnet_max
    )


def is_free(subnets: Subnets, taken: Collection[Range]) -> bool:
    """Whether nobody holds these subnets, a part of them, or a range that contains them."""
    return all(
        not _overlaps(_span(subnet), _spans(taken, subnet.version))
        for subnet in (subnets.ipv4, subnets.ipv6)
        if subnet is not None
    )


def is_part(config: NetworkConfig, taken: Range) -> bool:
    """Whether a key's range can be a lease at all; one as wide as the network, or wider, is a slip and blocks nobody."""
    network = config.network if taken.version == 4 else config.ipv6_network
    return network is not None and taken.prefixlen > network.prefixlen


def _within(subnet: Range | None, low: Range | None, high: Range | None) -> bool:
    if subnet is None or low is None or high is None:
        return subnet is None and low is None
    return subnet.prefixlen == low.prefixlen and int(low.network_address) <= int(subnet.network_address) <= int(
        high.network_address
    )


def _choose(low: R | None, high: R | None, wanted: R | None, taken: list[Span], pick: Callable[[int], int], window: int) -> R:
    assert low is not None and high is not None, "a checked config has both ends of every enabled family"
    if wanted is not None and _within(wanted, low, high) and not _overlaps(_span(wanted), taken):
        return wanted
    candidates = list(islice(_free(_span(low), _span(high)[1], taken), window))
    if not candidates:
        raise PoolExhausted(
            f"no free /{low.prefixlen} from {low.network_address} to {high.network_address}: every one is leased "
            "or reserved (delete leases that nobody uses, or widen Network and SubnetMax)"
        )
    chosen = candidates[pick(len(candidates))]
    return type(low)((chosen, low.prefixlen))


def _free(first: Span, end: int, taken: list[Span]) -> Iterator[int]:
    """First addresses of the free subnets from ``first`` up to ``end``; ``taken`` is sorted and does not overlap."""
    candidate, size = first[0], first[1] - first[0]
    position = bisect_left(taken, first)
    position -= position > 0 and taken[position - 1][1] > candidate
    while candidate + size <= end:
        while position < len(taken) and taken[position][1] <= candidate:
            position += 1
        if position < len(taken) and taken[position][0] < candidate + size:
            candidate += -((candidate - taken[position][1]) // size) * size
        else:
            yield candidate
            candidate += size


def _spans(taken: Collection[Range], version: int) -> list[Span]:
    """The addresses taken, as sorted spans that do not touch each other."""
    merged: list[Span] = []
    for start, end in sorted(_span(subnet) for subnet in taken if subnet.version == version):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _span(subnet: Range) -> Span:
    first = int(subnet.network_address)
    return first, first + (1 << (subnet.max_prefixlen - subnet.prefixlen))


def _overlaps(span: Span, taken: list[Span]) -> bool:
    position = bisect_left(taken, (span[1], 0))
    return position > 0 and taken[position - 1][1] > span[0]
