"""Labs from start to end: ``temporary`` makes one for a block of code, ``start`` one that lives on, ``attach`` finds it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flanpy.errors import FlanpyError, UsageError
from flanpy.lab import registry
from flanpy.lab.cluster import Lab, Progress
from flanpy.lab.plan import MOST_PODS, check_name, plan_lab
from flanpy.lab.preflight import check_machine
from flanpy.lab.registry import LabSpec
from flanpy.lab.sandbox import Sandbox


def silent(_: str) -> None:
    """Progress that nobody watches."""


def check(spec: LabSpec) -> None:
    """Raise UsageError when there can be no such lab, LabError when not on this machine; changes nothing."""
    check_name(spec.name)
    plan_lab(spec.hosts, mode=spec.mode, mtu_bytes=spec.mtu_bytes)
    if not 0 <= spec.pods <= MOST_PODS:
        raise UsageError(f"--pods {spec.pods}: a host has 0 to {MOST_PODS} pods")
    check_machine(spec.datapath)


@contextmanager
def temporary(spec: LabSpec, progress: Progress = silent) -> Iterator[Lab]:
    """A lab for the length of the block: it ends with it, or with this process. After a FlanpyError its logs are kept."""
    check(spec)
    lock = registry.claim(spec.name)
    keep_logs = False
    try:
        with Sandbox.create(pass_fds=(lock,)) as sandbox:
            registry.record(spec, sandbox.pid)
            lab = Lab(spec, sandbox, registry.directory(spec.name) / "logs")
            lab.build(progress)
            yield lab
    except FlanpyError:
        keep_logs = True
        raise
    finally:
        os.close(lock)
        registry.forget(spec.name, keep_logs=keep_logs)


def start(spec: LabSpec, progress: Progress = silent) -> Lab:
    """Start a lab that lives on when this process has ended. After a FlanpyError nothing is left of it but its logs."""
    check(spec)
    lock = registry.claim(spec.name)
    sandbox: Sandbox | None = None
    done = keep_logs = False
    try:
        sandbox = Sandbox.create(pass_fds=(lock,))
        registry.record(spec, sandbox.pid)
        lab = Lab(spec, sandbox, registry.directory(spec.name) / "logs")
        lab.build(progress)
        sandbox.detach()
        done = True
        return lab
    except FlanpyError:
        keep_logs = True
        raise
    finally:
        if not done and sandbox is not None:
            sandbox.close()
        os.close(lock)
        if not done:
            registry.forget(spec.name, keep_logs=keep_logs)


def attach(name: str | None) -> Lab:
    """The living lab of that name, or the only one; LabError when there is none."""
    found = registry.find(name)
    return Lab(found.spec, Sandbox.adopt(found.holder), registry.directory(found.spec.name) / "logs")


def end(name: str | None) -> str:
    """End a lab and remove what it kept, or the logs that are left of one that has failed; returns its name."""
    if name is not None and registry.has_failed(name):
        registry.forget(name)
        return name
    found = registry.find(name)
    Sandbox.adopt(found.holder).close()
    registry.forget(found.spec.name)
    return found.spec.name
