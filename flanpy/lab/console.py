"""What ``lab exec`` and ``lab logs`` do with the caller's terminal: hand it to a command, or print a file that grows."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flanpy.errors import LabError
from flanpy.lab.cluster import IMPORT_PATH, Lab
from flanpy.lab.process import Entered, environment

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
POLL_S = 0.2
NOT_EXECUTABLE, NOT_FOUND = 126, 127
ETCD = "etcd"
"""The name of the place outside of all hosts, where etcd runs."""


def execute(lab: Lab, place: str, argv: Sequence[str]) -> int:
    """Run a command at a place with the caller's terminal; returns its exit status, as a shell would: 128 + N when signal N
    ended it, 127 when there is no such program, 126 when it cannot be executed.

    Ctrl-C reaches the command from the terminal; other signals to us are passed on.
    """
    if place not in (ETCD, *lab.sandbox.places()):
        raise LabError(
            f"{place}: no such host or pod in lab {lab.spec.name} (there are: {', '.join(lab.sandbox.places())}, {ETCD})"
        )
    surroundings = _surroundings(lab, place)
    if shutil.which(argv[0], path=surroundings["PATH"]) is None:
        return _refuse(argv[0], surroundings["PATH"])
    namespace = None if place == ETCD else place
    streams = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    process = lab.sandbox.popen(namespace, argv, env=surroundings, cwd=Path.cwd(), **streams)
    with _signals_passed_to(process):
        status = process.wait()
    return 128 - status if status < 0 else status


def _refuse(program: str, path: str) -> int:
    """Say why a program is not run; returns the exit status of a shell."""
    if shutil.which(program, mode=os.F_OK, path=path) or ("/" in program and Path(program).exists()):
        print(f"flanpy: {program}: may not be executed; it needs the mode of a program (chmod +x)", file=sys.stderr)
        return NOT_EXECUTABLE
    words = "not found on this machine; a lab has the programs of the machine and no others"
    print(f"flanpy: {program}: {words}", file=sys.stderr)
    return NOT_FOUND


def _surroundings(lab: Lab, place: str) -> dict[str, str]:
    """Variables by which a command finds the `flanpy` that runs here, `flanpy` the host's agent, and `etcdctl` etcd."""
    at_host = place in {host.name for host in lab.plan.hosts}
    found = lab.agent_settings(place) if at_host else {"ETCDCTL_ENDPOINTS": lab.etcd_url, "ETCDCTL_API": "3"}
    return {**found, **IMPORT_PATH, "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment()["PATH"]])}


@contextmanager
def _signals_passed_to(process: Entered) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_log(path: Path, *, follow: bool, goes_on: Callable[[], bool]) -> None:
    """Print a log; with ``follow`` go on until interrupted, or until ``goes_on`` says that nothing more can come."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise LabError(f"{path}: {os.strerror(error.errno or 0)}") from error
    with file:
        while True:
            last = not follow or not goes_on()
            sys.stdout.buffer.write(file.read())
            sys.stdout.buffer.flush()
            if last:
                return
            time.sleep(POLL_S)
