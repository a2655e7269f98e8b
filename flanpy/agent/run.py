"""Composition root of ``flanpy agent``: puts the parts together, in this order, and takes them apart again.

    options -> directories, lock -> embedded etcd -> uplink -> store -> loop with its edges -> signal -> everything closed

Options, uplink and lock are checked before anything on the machine changes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING

from flanpy import __version__
from flanpy.agent import defects, files, privileges
from flanpy.agent.attached_watch import AttachedWatch
from flanpy.agent.control import ControlServer
from flanpy.agent.datapaths import Home, require_core
from flanpy.agent.events import DatapathLost, EventQueue, KernelChanged, ReloadAsked, RulesChanged, Stop
from flanpy.agent.executor import Executor
from flanpy.agent.health_place import HealthPlace
from flanpy.agent.logs import event, set_up
from flanpy.agent.loop import Loop
from flanpy.agent.machine import Machine
from flanpy.agent.notify import DescriptorStore, notify
from flanpy.agent.peer_paths import PeerPaths
from flanpy.agent.readiness import Readiness
from flanpy.agent.reload import Reload
from flanpy.agent.underlay import Underlay
from flanpy.agent.watcher import Watcher
from flanpy.config.options import AgentOptions
from flanpy.core import leasing
from flanpy.core.subnet_env import parse_subnet_env
from flanpy.datapath.process_user import datapath_user
from flanpy.errors import ConfigError, InterfaceError, PlatformError
from flanpy.kernel.firewall import Firewall
from flanpy.kernel.firewall_watch import RulesWatch
from flanpy.kernel.monitor import Monitor
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.platform import check_platform
from flanpy.kernel.uplink import UplinkSelection
from flanpy.model import FlanpyInfo, NodeAttributes, Subnets, Uplink

if TYPE_CHECKING:
    from flanpy.stores.etcd import EtcdStore

log = logging.getLogger(__name__)

FEATURES = frozenset({"ecn"})
"""What every flanpy receiver can take, whichever datapath runs."""


def run_agent(options: AgentOptions, load: Callable[[], AgentOptions]) -> int:
    """Run until SIGTERM or SIGINT; returns 0. ``load`` reads the options again, at SIGHUP.

    Raises FlanpyError with its exit code for what no retry can mend.
    """
    set_up(options.log_format, options.log_level)
    reload = Reload(options, load)
    reload.add(("log_format", "log_level"), lambda new: set_up(new.log_format, new.log_level))
    reload.add(("release_on_exit",), lambda new: None)  # looked at when the agent ends
    events: EventQueue = SimpleQueue()
    with ExitStack() as stack:
        stack.enter_context(_signals(events))
        stack.enter_context(defects.told(events))
        datapath_user(options.datapath_user)  # one that is not there is refused before anything changes
        log.info("flanpy agent %s", __version__, extra=event("starting", version=__version__))
        require_core()
        if not options.keep_capabilities:
            _give_up_capabilities(options)
        files.make_directory(options.run_dir, "--run-dir")
        files.make_directory(options.state_dir, "--state-dir")
        stack.enter_context(files.exclusive(options.run_dir))
        kernel = stack.enter_context(Kernel())
        _say_findings(options)
        underlay = Underlay(kernel, _selection(options))
        uplink = underlay.uplink
        log.info("%s %s", uplink.name, uplink.underlay, extra=event("uplink", name=uplink.name, address=str(uplink.underlay)))
        underlay.probe_address()
        if options.embedded_etcd:
            options = _start_etcd(options, stack)
            reload.begin_with(options)
        stopped_by, left = _run_loop(options, reload, underlay, kernel, events, stack)
        stays = (
            f"; {left} stay{'' if ' and ' in left or left.endswith('s') else 's'} (flanpy cleanup removes them)" if left else ""
        )
        log.info("stopped by %s%s", stopped_by, stays, extra=event("stopped", signal=stopped_by, left=left))
    return 0


def _run_loop(
    options: AgentOptions, reload: Reload, underlay: Underlay, kernel: Kernel, events: EventQueue, stack: ExitStack
) -> tuple[str, str]:
    """Returns the signal that ended it and what it leaves on this machine. What is opened first is closed last."""
    store = _open_store(options, stack)
    machine = _open_machine(options, kernel, events, stack)
    executor, watcher = Executor(store, events), Watcher(store, events, pods=options.pod_registry)
    readiness = Readiness(options.subnet_file, options.ip_masq)
    paths = PeerPaths(options.peer_probe_interval, options.peer_probe_port)
    stack.callback(paths.close)
    health = HealthPlace(events)
    stack.callback(health.close)
    reload.add(("teardown", "iptables_resync"), machine.use)
    reload.add(("ip_masq",), readiness.use)
    reload.add(("peer_probe_interval", "peer_probe_port"), paths.use)
    reload.add(("healthz_ip", "healthz_port"), health.use)
    loop = Loop(options, underlay, _identity(options, underlay.uplink), machine, executor, readiness, paths, reload, events)
    control = ControlServer(options.run_dir, events)
    stack.callback(control.close)
    monitor = Monitor(lambda what: events.put(KernelChanged(what)), kernel.ports)
    stack.callback(monitor.close)
    health.use(options)
    parts: list[Executor | Watcher | AttachedWatch] = [executor, watcher]
    if options.pod_registry:
        parts.append(AttachedWatch(options.cni_data_dir, events.put))
    for part in parts:
        stack.callback(part.close)
        part.start()
    control.start()
    stopped_by = loop.run()
    notify(STOPPING="1")
    if reload.options.release_on_exit:
        loop.release()
    return stopped_by, machine.left()


def _open_store(options: AgentOptions, stack: ExitStack) -> EtcdStore:
    from flanpy.stores.etcd import EtcdOptions, open_store

    store = open_store(
        EtcdOptions(
            endpoints=options.etcd_endpoints,
            prefix=options.etcd_prefix,
            cafile=_file(options.etcd_cafile),
            certfile=_file(options.etcd_certfile),
            keyfile=_file(options.etcd_keyfile),
            username=options.etcd_username,
            password=options.etcd_password,
        )
    )
    stack.callback(store.close)
    return store


def _open_machine(options: AgentOptions, kernel: Kernel, events: EventQueue, stack: ExitStack) -> Machine:
    descriptor_store = DescriptorStore(os.environ, os.getpid())
    stack.callback(descriptor_store.close)
    home = Home(options.run_dir, lambda: events.put(DatapathLost()), descriptor_store, datapath_user(options.datapath_user))
    stack.callback(home.close)
    machine = Machine(kernel, options.datapath, _firewall(options, events, stack), home, teardown=options.teardown)
    stack.callback(machine.close)
    return machine


def _firewall(options: AgentOptions, events: EventQueue, stack: ExitStack) -> Firewall:
    """The firewall, watched; where the kernel does not tell of changes it is looked at every ``--iptables-resync`` seconds."""
    firewall = Firewall(options.iptables_resync)
    try:
        watch = RulesWatch(lambda: events.put(RulesChanged()))
    except PlatformError as error:
        log.warning("%s; rules are checked every %d s", error, options.iptables_resync, extra=event("rules_unwatched"))
        return firewall
    stack.callback(watch.close)
    firewall.is_watched = True
    return firewall


def _give_up_capabilities(options: AgentOptions) -> None:
    files_of_flags = (options.etcd_cafile, options.etcd_certfile, options.etcd_keyfile)
    names = privileges.needed(options.datapath, files_of_flags)
    try:
        lacking = privileges.keep_only(names)
    except OSError as error:
        log.warning("capabilities: all are kept: %s", error, extra=event("capabilities_kept", reason=str(error)))
        return
    log.debug(
        "capabilities: %s; not held: %s", ", ".join(sorted(names)), ", ".join(lacking) or "none", extra=event("capabilities")
    )


def _file(name: str) -> Path | None:
    return Path(name) if name else None


@contextlib.contextmanager
def _signals(events: EventQueue) -> Iterator[None]:
    """SIGTERM and SIGINT become Stop events, SIGHUP one to reload; SimpleQueue.put is safe in a signal handler."""

    def handle(number: int, frame: FrameType | None) -> None:
        events.put(ReloadAsked() if number == signal.SIGHUP else Stop(signal.Signals(number).name))

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _selection(options: AgentOptions) -> UplinkSelection:
    return UplinkSelection(
        iface=options.iface,
        iface_regex=options.iface_regex,
        iface_can_reach=str(options.iface_can_reach) if options.iface_can_reach else None,
        public_ip=options.public_ip,
    )


def _say_findings(options: AgentOptions) -> None:
    found = check_platform()
    errors = [str(finding) for finding in found if finding.level == "error"]
    if errors:
        raise PlatformError("\n".join(errors))
    for finding in found:
        log.warning("%s", finding, extra=event("platform_finding", what=finding.what, cure=finding.cure))


def _start_etcd(options: AgentOptions, stack: ExitStack) -> AgentOptions:
    from flanpy.stores.server import EtcdServer, EtcdServerSettings

    url = f"http://{options.embedded_etcd}"
    server = stack.enter_context(EtcdServer(EtcdServerSettings(options.state_dir / "etcd", options.state_dir / "etcd.log", url)))
    log.info("embedded etcd at %s", url, extra=event("embedded_etcd", url=url))
    del server
    return replace(options, etcd_endpoints=(url,))


def _identity(options: AgentOptions, uplink: Uplink) -> leasing.Identity:
    if options.public_ip is not None and uplink.address is None:
        raise InterfaceError(f"--public-ip {options.public_ip}: {uplink.name} has no IPv4 address that it could lead to")
    node = files.node_id(options.state_dir)
    public_ip, public_ipv6 = options.public_ip or uplink.address, options.public_ipv6
    if public_ip is None:
        public_ipv6 = public_ipv6 or uplink.address6
    attributes = NodeAttributes(public_ip, public_ipv6, flanpy=FlanpyInfo(node, FEATURES))
    return leasing.Identity(
        node_id=node,
        attributes=attributes,
        previous=_previous_subnet(options),
        renew_margin_s=60.0 * options.subnet_lease_renew_margin,
        pick=random.SystemRandom().randrange,
    )


def _previous_subnet(options: AgentOptions) -> Subnets | None:
    """The subnet of an earlier run; a damaged file is said and ignored, for a lease can be had without it."""
    text = files.read_text(options.subnet_file)
    if text is None:
        return None
    try:
        return parse_subnet_env(text).subnets
    except ConfigError as error:
        log.warning("%s ignored: %s", options.subnet_file, error, extra=event("subnet_file_ignored", reason=str(error)))
        return None
