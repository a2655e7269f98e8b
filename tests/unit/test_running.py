"""What is said of a datapath at work (agent/running.py)."""

import logging
from types import SimpleNamespace
from typing import cast

import pytest

from flanpy.agent.datapaths import Choice
from flanpy.agent.running import Running
from flanpy.datapath import Datapath, DatapathSettings


def test_what_a_datapath_lacks_is_said_once_and_again_when_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    datapath = SimpleNamespace(degraded=("no GRO",), process=None, check=lambda: None)
    running = Running(
        Choice("ebpf", "asked for"), cast(DatapathSettings, SimpleNamespace(device="flannel0")), cast(Datapath, datapath)
    )
    said: list[list[str]] = []
    running.say()
    for lacks in (("no GRO",), ("no GRO", "read-only"), ("no GRO", "read-only"), ("no GRO",), ("no GRO", "read-only")):
        datapath.degraded = lacks
        running.check()
        said.append([record.getMessage() for record in caplog.records if record.levelno == logging.WARNING])
        caplog.clear()
    assert said == [["datapath ebpf: no GRO"], ["datapath ebpf: read-only"], [], [], ["datapath ebpf: read-only"]]
