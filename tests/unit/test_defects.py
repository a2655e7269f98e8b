"""Threads that end by a defect: what the log and the loop's queue have of them, and what the node says of itself then."""

import re
import threading
from pathlib import Path
from queue import SimpleQueue

import pytest

from flanpy.agent import defects
from flanpy.agent.events import Event, ThreadEnded

AGENT_SIDE = [Path(defects.__file__).parents[1] / folder for folder in ("agent", "kernel", "datapath")]
PASSING = {"control-client", "address-probe", "resolver"}
"""Threads that end by themselves: of one client, one look, one command."""


def end(name: str) -> None:
    def broken() -> None:
        raise IndexError("out of it")

    thread = threading.Thread(target=broken, name=name)
    thread.start()
    thread.join()


def test_a_thread_that_ends_is_logged_and_the_loop_hears_of_those_that_nothing_starts_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    before = threading.excepthook
    with defects.told(events):
        end("control-client")
        end("watcher")
    assert threading.excepthook is before
    assert [record.getMessage() for record in caplog.records] == [
        "thread control-client has ended: IndexError: out of it",
        "thread watcher has ended: IndexError: out of it",
    ]
    assert all("Traceback" in (record.exc_text or "") for record in caplog.records)
    assert (events.get_nowait(), events.empty()) == (ThreadEnded("watcher", "IndexError: out of it"), True)


def test_every_lasting_thread_of_the_agent_is_listed() -> None:
    texts = [path.read_text(encoding="utf-8") for folder in AGENT_SIDE for path in folder.glob("*.py")]
    named = {name for text in texts for name in re.findall(r'Thread\(.*\bname="([^"]+)"', text)}
    assert named - PASSING == defects.LASTING
