"""The udp backend with IPv6 inside, outside and both, through real agents, etcd and pods (``tests.support.six`` draws the topology)."""

from pathlib import Path

import pytest

from tests.support.clusters import eventually
from tests.support.six import HOSTS, six
from tests.support.transfers import transfer

COMBINATIONS = [("46", "4", 1472), ("46", "6", 1452), ("6", "4", 1472), ("6", "6", 1452), ("4", "6", 1452)]


@pytest.mark.parametrize(("inner", "outer", "mtu"), COMBINATIONS, ids=str)
def test_pods_of_two_hosts_talk_up_to_the_last_byte_of_the_mtu(inner: str, outer: str, mtu: int, tmp_path: Path) -> None:
    with six(tmp_path, "udp", inner, outer) as two:
        assert [two.env(host).mtu_bytes for host in HOSTS] == [mtu, mtu]
        for target in two.pods("host2-pod1"):
            eventually(lambda target=target: two.answers("host1-pod1", target), 10, f"{target} answers")
            headers = 48 if ":" in target else 28
            assert two.answers("host1-pod1", target, "-M", "do", "-s", str(mtu - headers))
            sent, arrived = transfer(two, "host1-pod1", "host2-pod1", target)
            assert sent == arrived
        counts = two.verdicts("host2")
        assert counts["decapsulated"] > 1000
        assert {name for name in counts if name.startswith("drop")} <= {"drop_martian"}, counts
