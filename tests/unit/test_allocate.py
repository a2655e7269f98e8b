"""Choosing a subnet: flannel's choice, overlaps of any length, against a slow oracle."""

import time
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.config.network import parse_network_config
from flanpy.core.allocate import choose_subnet, fits, is_free
from flanpy.errors import PoolExhausted
from flanpy.model import Subnets
from tests.support.networks import network

CONFIG = network("10.5.0.0/16")


def v4(text: str) -> IPv4Network:
    return IPv4Network(text)


def test_the_first_free_subnet_is_the_second_of_the_network() -> None:
    assert choose_subnet(CONFIG, (), None, lambda count: 0) == Subnets(v4("10.5.1.0/24"))


def test_one_of_the_first_hundred_free_is_picked() -> None:
    asked: list[int] = []
    taken = [v4("10.5.2.0/24"), v4("10.5.50.0/24")]
    chosen = choose_subnet(CONFIG, taken, None, lambda count: asked.append(count) or count - 1)  # type: ignore[func-returns-value]
    assert (asked, chosen) == ([100], Subnets(v4("10.5.102.0/24")))


def test_a_wider_window_spreads_those_who_lost_a_race() -> None:
    assert choose_subnet(CONFIG, (), None, lambda count: count - 1, window=200) == Subnets(v4("10.5.200.0/24"))


def test_the_previous_subnet_wins_when_free() -> None:
    previous = Subnets(v4("10.5.200.0/24"))
    assert choose_subnet(CONFIG, [v4("10.5.199.0/24"), v4("10.5.201.0/24")], previous, lambda count: 0) == previous


@pytest.mark.parametrize("previous", ["10.5.0.0/24", "10.6.1.0/24", "10.5.200.0/25", "10.5.7.0/24"])
def test_a_previous_subnet_that_is_taken_or_does_not_fit_is_passed_over(previous: str) -> None:
    chosen = choose_subnet(CONFIG, [v4("10.5.7.128/25")], Subnets(v4(previous)), lambda count: 0)
    assert chosen == Subnets(v4("10.5.1.0/24"))


def test_leases_of_another_length_are_respected() -> None:
    taken = [v4("10.5.0.0/22"), v4("10.5.4.1/32"), v4("10.5.6.0/23")]
    assert choose_subnet(CONFIG, taken, None, lambda count: 0) == Subnets(v4("10.5.5.0/24"))


def test_an_exhausted_pool_says_what_was_looked_for() -> None:
    config = network("10.5.0.0/28", 30)
    with pytest.raises(PoolExhausted, match=r"no free /30 from 10\.5\.0\.4 to 10\.5\.0\.12"):
        choose_subnet(config, [v4("10.5.0.0/28")], None, lambda count: 0)


def test_dual_stack_gets_one_of_each_and_keeps_what_it_can() -> None:
    config = parse_network_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}')
    previous = Subnets(v4("10.5.9.0/24"), IPv6Network("fd00:5:0:9::/64"))
    taken = [v4("10.5.9.0/24")]
    chosen = choose_subnet(config, taken, previous, lambda count: 0)
    assert chosen == Subnets(v4("10.5.1.0/24"), IPv6Network("fd00:5:0:9::/64"))
    assert fits(config, chosen) and not fits(config, Subnets(v4("10.5.1.0/24"))) and not fits(CONFIG, chosen)


BLOCKS = st.integers(24, 30).flatmap(
    lambda length: st.integers(0, (1 << (length - 23)) - 1).map(
        lambda at: IPv4Network((0x0A050000 + (at << (32 - length)), length))
    )
)


@given(taken=st.lists(BLOCKS, max_size=30), seed=st.integers(0, 1000))
def test_the_choice_is_one_of_the_slow_oracles(taken: list[IPv4Network], seed: int) -> None:
    config = network("10.5.0.0/23", 27)
    free = [
        subnet
        for subnet in list(v4("10.5.0.0/23").subnets(new_prefix=27))[1:]
        if not any(subnet.overlaps(other) for other in taken)
    ]
    if not free:
        with pytest.raises(PoolExhausted):
            choose_subnet(config, taken, None, lambda count: seed % count)
        return
    assert choose_subnet(config, taken, None, lambda count: seed % count) == Subnets(free[seed % len(free)])
    for subnet in v4("10.5.0.0/23").subnets(new_prefix=27):
        assert is_free(Subnets(subnet), taken) == (not any(subnet.overlaps(other) for other in taken))


def test_sixty_five_thousand_leases_are_no_burden() -> None:
    config = network("10.0.0.0/8")
    taken = [IPv4Network((0x0A000000 + (at << 8), 24)) for at in range(65535)]
    begin = time.perf_counter()
    chosen = choose_subnet(config, taken, None, lambda count: 0)
    assert chosen == Subnets(v4("10.255.255.0/24"))
    assert time.perf_counter() - begin < 2.0
