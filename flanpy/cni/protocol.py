"""The CNI protocol: environment and stdin to a Request, errors and results to JSON. Pure; starts nothing, reads no file.

CNI_COMMAND  CNI_CONTAINERID  CNI_NETNS  CNI_IFNAME  CNI_PATH     stdin: the network config      stdout: result or error
ADD          needed           needed     needed      needed       needed                        result
CHECK        needed           needed     needed      needed       needed, with prevResult       nothing      (from 0.4.0)
DEL          needed           if known   needed      needed       needed                        nothing
GC           -                -          -           needed       needed, with attachments      nothing      (from 1.1.0)
STATUS       -                -          -           needed       needed                        nothing      (from 1.1.0)
VERSION      -                -          -           -            if given                      versions
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from flanpy.errors import CniError

JsonDict = dict[str, Any]
"""A JSON object of somebody else's making: passed on, looked into only by name."""

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Spec versions in their order; all that flannel's plugin takes, and 1.1.0."""
FIRST_VERSION = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")

# Codes of the specification, then our own.
INCOMPATIBLE_VERSION, UNSUPPORTED_FIELD, UNKNOWN_CONTAINER, INVALID_ENVIRONMENT, IO_FAILURE = 1, 2, 3, 4, 5
DECODING_FAILURE, INVALID_CONFIG, INVALID_NETNS, TRY_AGAIN_LATER, NOT_AVAILABLE = 6, 7, 8, 11, 50
DELEGATE_FAILURE, OUTSIDE_SUBNET, DEFECT = 100, 101, 999

MAX_CONFIG_BYTES = 1 << 20
"""Largest stdin that is read; real configs have a few hundred bytes."""
MAX_ARGS = 16384
MAX_ID_LENGTH = 200
"""Longest container id: with the interface's name it must fit into one file name (255 bytes)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_IFNAME = re.compile(r"[^\s/:\x00-\x1f\x7f]{1,15}")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one container: what the specification identifies an attachment by, besides the network."""

    container_id: str
    ifname: str


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request; ``attachment`` is None for the commands that are about no container."""

    command: str
    version: str
    attachment: Attachment | None
    netns: str
    path: str
    config: JsonDict
    arguments: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """CNI_ARGS."""


def parse_request(environment: Mapping[str, str], stdin: bytes) -> Request:
    """The request that a runtime makes; raises CniError with the specification's code."""
    command = environment.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        said = f"CNI_COMMAND={command[:40]!a} is" if command else "CNI_COMMAND is not set, it must be"
        raise CniError(INVALID_ENVIRONMENT, f"{said} {'none' if command else 'one'} of {', '.join(COMMANDS)}")
    config = parse_object(stdin, "stdin") if stdin.strip() or command != "VERSION" else {}
    version = config_version(config, command)
    if command == "VERSION":
        return Request(command, version, None, "", "", config)
    if not environment.get("CNI_PATH"):
        raise CniError(INVALID_ENVIRONMENT, "CNI_PATH is not set: it names the directories of the plugins, like /opt/cni/bin")
    if command in ("GC", "STATUS"):
        return Request(command, version, None, "", environment["CNI_PATH"], config)
    attachment = Attachment(_container_id(environment), _ifname(environment))
    netns = environment.get("CNI_NETNS", "")
    if command != "DEL" and not netns:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS is not set: {command} needs the path of the pod's network namespace")
    return Request(command, version, attachment, netns, environment["CNI_PATH"], config, _arguments(environment))


def _arguments(environment: Mapping[str, str]) -> Mapping[str, str]:
    """``A=1;B=2``; what has no = is passed over, as the delegates do with what they do not know."""
    items = (item.partition("=") for item in environment.get("CNI_ARGS", "")[:MAX_ARGS].split(";"))
    return MappingProxyType({name: value for name, mark, value in items if mark})


def _container_id(environment: Mapping[str, str]) -> str:
    text = environment.get("CNI_CONTAINERID", "")
    if not _NAME.fullmatch(text) or len(text) > MAX_ID_LENGTH:
        rule = f"must be 1 to {MAX_ID_LENGTH} letters, digits, _ . or -, the first a letter or digit"
        raise CniError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID={text[:80]!a} {rule}")
    return text


def _ifname(environment: Mapping[str, str]) -> str:
    text = environment.get("CNI_IFNAME", "")
    if not _IFNAME.fullmatch(text) or text in (".", "..") or len(text.encode("utf-8", "surrogateescape")) > 15:
        raise CniError(
            INVALID_ENVIRONMENT, f"CNI_IFNAME={text[:80]!a} must be an interface's name: 1 to 15 bytes, no / : or blank"
        )
    return text


def config_version(config: JsonDict, command: str) -> str:
    """The config's cniVersion, when it is one of ours and has this command; absent means 0.1.0, for VERSION the newest."""
    version = config.get("cniVersion") or "0.1.0"
    if command == "VERSION":
        return str(version) if config.get("cniVersion") in VERSIONS else VERSIONS[-1]
    if version not in VERSIONS:
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion: {version!a:.40} is not supported; supported are {', '.join(VERSIONS)}")
    if command in FIRST_VERSION and not at_least(version, FIRST_VERSION[command]):
        raise CniError(
            INCOMPATIBLE_VERSION, f"cniVersion: {version} does not know {command}; it came with {FIRST_VERSION[command]}"
        )
    return str(version)


def at_least(version: str, wanted: str) -> bool:
    """Whether a version of ``VERSIONS`` is this one or a later one."""
    return VERSIONS.index(version) >= VERSIONS.index(wanted)


def is_plugin_name(value: object) -> bool:
    """Whether this can be the file name of a plugin: no path, nothing hidden."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None and len(value) <= 100


def parse_object(text: bytes, what: str) -> JsonDict:
    """A JSON object; raises CniError (6) that says what is wrong with ``what``."""
    if len(text) > MAX_CONFIG_BYTES:
        raise CniError(DECODING_FAILURE, f"{what}: more than {MAX_CONFIG_BYTES} bytes is no network config")
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise CniError(DECODING_FAILURE, f"{what}: nested too deeply") from None
    except ValueError as error:
        raise CniError(DECODING_FAILURE, f"{what}: not JSON: {error!s:.200}") from error
    if not isinstance(value, dict):
        raise CniError(DECODING_FAILURE, f"{what}: must be a JSON object, is {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def render_error(error: CniError, version: str) -> str:
    """The error as the specification wants it on stdout."""
    answer: JsonDict = {"cniVersion": version, "code": error.code, "msg": str(error)}
    return json.dumps(answer | ({"details": error.details} if error.details else {}))
