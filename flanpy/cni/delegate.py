"""Other plugins, started as a runtime would: found in CNI_PATH, executed without a shell, config on stdin, answer on stdout.

Their stderr is ours. An error that a plugin states goes on to the runtime with its code; one that dies without a word gets code 100.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from flanpy.cni.kept_address import MARK, plain_arguments
from flanpy.cni.protocol import (
    DELEGATE_FAILURE,
    INVALID_CONFIG,
    IO_FAILURE,
    TRY_AGAIN_LATER,
    VERSIONS,
    Attachment,
    JsonDict,
    at_least,
    is_plugin_name,
    parse_object,
)
from flanpy.errors import CniError

TIME_LIMIT_S = 120.0
"""A plugin that is not done by then is killed; runtimes give up at about the same time."""
TALKED_ABOUT = "1.0.0"
"""Up to this version plugins are taken to speak what the config says; for later ones they are asked."""


def find_plugin(name: str, search_path: str) -> Path:
    """The executable of this name in the directories of CNI_PATH. Raises CniError (7) that says where it was looked for."""
    if not is_plugin_name(name):
        raise CniError(INVALID_CONFIG, f"type: {name[:60]!a} cannot be a plugin's file name")
    for directory in filter(None, search_path.split(":")):
        path = Path(directory, name)
        if path.is_file() and os.access(path, os.X_OK):
            return path
    cure = "install the CNI plugins there (Debian: containernetworking-plugins, in /usr/lib/cni)"
    raise CniError(INVALID_CONFIG, f"{name}: no such plugin in CNI_PATH={search_path[:200]}; {cure}")


def call(command: str, config: JsonDict, search_path: str, attachment: Attachment | None = None, netns: str = "") -> JsonDict:
    """Run the plugin of ``config["type"]`` and return its result, {} where it prints none. Raises CniError."""
    return _call(command, config, search_path, str(config.get("type")), attachment, netns)


def spoken_version(wanted: str, plugins: Iterable[str], search_path: str) -> str:
    """The newest version up to ``wanted`` that all these plugins speak; they are asked only for versions after 1.0.0."""
    if not at_least(wanted, TALKED_ABOUT) or wanted == TALKED_ABOUT:
        return wanted
    common = set(VERSIONS[: VERSIONS.index(wanted) + 1])
    for plugin in plugins:
        answer = _call("VERSION", {"cniVersion": wanted}, search_path, plugin)
        common &= set(map(str, answer.get("supportedVersions") or ()))
    if not common:
        raise CniError(INVALID_CONFIG, f"{', '.join(plugins)}: no version of the specification in common")
    return max(common, key=VERSIONS.index)


def _call(
    command: str, config: JsonDict, search_path: str, plugin: str, attachment: Attachment | None = None, netns: str = ""
) -> JsonDict:
    path = find_plugin(plugin, search_path)
    environment = {**os.environ, "CNI_COMMAND": command, "CNI_NETNS": netns, "CNI_PATH": search_path}
    if config.get(MARK):
        environment["CNI_ARGS"] = plain_arguments(os.environ.get("CNI_ARGS", ""))
    if attachment is not None:
        environment |= {"CNI_CONTAINERID": attachment.container_id, "CNI_IFNAME": attachment.ifname}
    try:
        done = subprocess.run(
            [str(path)],
            input=json.dumps(config).encode(),
            stdout=subprocess.PIPE,
            env=environment,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CniError(TRY_AGAIN_LATER, f"{path}: {command} was not done after {TIME_LIMIT_S:g} s and was ended") from error
    except OSError as error:
        raise CniError(IO_FAILURE, f"{path}: cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        raise _failure(f"{plugin}: {command}", done.returncode, done.stdout)
    return parse_object(done.stdout, f"{plugin}: result of {command}") if done.stdout.strip() else {}


def _failure(what: str, status: int, stdout: bytes) -> CniError:
    """The error that a plugin states, or what can be said of one that stated none."""
    try:
        stated = parse_object(stdout, what)
    except CniError:
        said = stdout.decode("utf-8", "replace").strip()[-500:]
        ending = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return CniError(DELEGATE_FAILURE, f"{what}: {ending}, and no error that could be read (its stderr may say more)", said)
    code, details = stated.get("code"), stated.get("details")
    usable = code if isinstance(code, int) and code > 0 else DELEGATE_FAILURE
    return CniError(usable, f"{what}: {stated.get('msg') or 'failed'}", details if isinstance(details, str) else "")
