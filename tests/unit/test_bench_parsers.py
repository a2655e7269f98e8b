"""What the suite reads from /proc and from iperf3, on recorded text."""

import copy
from typing import Any

import pytest

from flanpy.bench.health import increase, parse_devices, parse_snmp
from flanpy.bench.machine import TICKS_A_SECOND, CpuTime, describe, parse_cpu_time
from flanpy.bench.tcp import received_gbit_s, received_gigabytes

SNMP = """\
Ip: Forwarding DefaultTTL InReceives InHdrErrors
Ip: 1 64 1000 3
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors
Udp: 10 1 5 10 4 0 2
TcpExt: SyncookiesSent TCPBacklogDrop
TcpExt: 0 9
"""
DEVICES = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    7    7    0     0          0         0      100       1    7    7    0     0       0          0
flannel0:   100       1    1    2    0     0          0         0      100       1    3    4    0     0       0          0
"""


def test_watched_counters_have_the_protocol_in_front() -> None:
    assert dict(parse_snmp(SNMP)) == {
        "IpInHdrErrors": 3,
        "UdpNoPorts": 1,
        "UdpRcvbufErrors": 4,
        "UdpSndbufErrors": 0,
        "UdpInCsumErrors": 2,
        "TcpExtTCPBacklogDrop": 9,
    }


def test_device_errors_and_drops_leave_loopback_out() -> None:
    assert dict(parse_devices(DEVICES)) == {
        "flannel0 rx_errors": 1,
        "flannel0 rx_dropped": 2,
        "flannel0 tx_errors": 3,
        "flannel0 tx_dropped": 4,
    }


def test_only_what_grew_counts_as_lost() -> None:
    assert increase({"a": 1, "b": 2}, {"a": 1, "b": 5, "c": 1}) == {"b": 3, "c": 1}


def test_cpu_time_is_work_without_idle_and_apart_from_what_was_stolen() -> None:
    time = parse_cpu_time("cpu  100 10 200 9999 888 5 25 40 0 0\ncpu0 ...")
    assert time == CpuTime(340 / TICKS_A_SECOND, 40 / TICKS_A_SECOND)
    assert time.since(CpuTime(1.0, 0.1)) == CpuTime(time.busy_s - 1.0, time.stolen_s - 0.1)


def test_the_machine_is_described_with_kernel_and_versions() -> None:
    machine = describe()
    assert {"kernel", "cpus", "cpu_model", "iperf3", "flanpy"} <= machine.keys()


def intervals(rates_gbit: list[float], *, sender: bool, key: str = "sum") -> list[dict[str, Any]]:
    return [
        {key: {"start": i / 10, "seconds": 0.1, "bytes": int(rate * 1e9 / 80), "sender": sender}}
        for i, rate in enumerate(rates_gbit)
    ]


FORWARD = {
    "intervals": intervals([9] * 20, sender=True),
    "server_output_json": {"intervals": intervals([1] * 5 + [8] * 15, sender=False)},
}


def test_throughput_is_what_the_receiver_took_after_the_warm_up() -> None:
    assert received_gbit_s(FORWARD, 0.5) == pytest.approx(8)


def test_gigabytes_are_of_the_whole_run() -> None:
    assert received_gigabytes(FORWARD) == pytest.approx((5 * 1 + 15 * 8) / 80)


def test_both_directions_are_added_each_at_its_receiver() -> None:
    both = copy.deepcopy(FORWARD)
    for mine, back in zip(both["intervals"], intervals([3] * 20, sender=False, key="sum_bidir_reverse"), strict=True):
        mine.update(back)
    assert received_gbit_s(both, 0.5) == pytest.approx(11)


def test_a_run_shorter_than_its_warm_up_has_no_throughput() -> None:
    assert received_gbit_s(FORWARD, 5.0) == 0.0
