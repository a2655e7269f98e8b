"""What is said of a datapath at work (agent/running.py)."""

import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace
from typing import cast

import pytest

from flanpy.agent.datapaths import Choice
from flanpy.agent.running import Running
from flanpy.datapath import Datapath, DatapathSettings
from flanpy.errors import DatapathWaits
from flanpy.model import ForwardTable, Hop, TableEntry


def running_on(datapath: object) -> Running:
    settings = cast(DatapathSettings, SimpleNamespace(device="flannel0"))
    return Running(Choice("ebpf", "asked for"), settings, cast(Datapath, datapath))


def test_what_a_datapath_lacks_is_said_once_and_again_when_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    datapath = SimpleNamespace(degraded=("no GRO",), process=None, check=lambda *, closely: None)
    running = running_on(datapath)
    said: list[list[str]] = []
    running.say()
    for lacks in (("no GRO",), ("no GRO", "read-only"), ("no GRO", "read-only"), ("no GRO",), ("no GRO", "read-only")):
        datapath.degraded = lacks
        running.check()
        said.append([record.getMessage() for record in caplog.records if record.levelno == logging.WARNING])
        caplog.clear()
    assert said == [["datapath ebpf: no GRO"], ["datapath ebpf: read-only"], [], [], ["datapath ebpf: read-only"]]


def test_a_table_that_may_have_been_taken_is_not_left_in_use() -> None:
    """A peer goes and comes while the datapath hangs: the table without it has been sent, so the one before is sent again."""
    given: list[int] = []
    hangs: list[bool] = []

    def publish(table: ForwardTable) -> None:
        given.append(table.generation)
        if hangs:
            raise DatapathWaits("no answer yet")

    entry = TableEntry(IPv4Network("10.244.9.0/24"), Hop(IPv4Address("10.0.0.2"), 8285))
    full = ForwardTable(generation=1, entries=(entry,), local=(), mtu_bytes=1472)
    running = running_on(SimpleNamespace(publish=publish))
    assert running.publish(full)
    hangs.append(True)
    with pytest.raises(DatapathWaits):
        running.publish(replace(full, generation=2, entries=()))
    hangs.clear()
    assert [running.publish(replace(full, generation=number)) for number in (3, 4)] == [True, False]
    assert given == [1, 2, 3]
