"""Host names as this machine resolves them: bounded, and never a reason to fail."""

from ipaddress import ip_address

import pytest

from flanpy.agent.host_names import addresses_of


def test_the_hosts_file_is_read() -> None:
    assert ip_address("127.0.0.1") in addresses_of("localhost", within_s=30)


@pytest.mark.parametrize("text", ["", "two words", "a/b", "10.244.8.0/33", "aaaa…", "-x", "a" * 300, "\0", "x\n"])
def test_what_is_no_host_name_is_not_looked_up(text: str) -> None:
    assert addresses_of(text, within_s=0) == ()
