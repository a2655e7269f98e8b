"""Puts the plugin where runtimes look for it: an executable file that starts flanpy's code with the interpreter of this installation.

The file names the interpreter and the directory of the package, and starts without the site module: that saves half of the time
and no PYTHON... variable of the runtime's reaches it. Python and flanpy must be there for the runtime too: on the host itself, or
in a bundle (``bundle``).
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import flanpy
from flanpy.cni import bundle
from flanpy.cni.protocol import is_plugin_name
from flanpy.errors import PlatformError, UsageError

NAMES = ("flanpy", "flannel")
MAX_SHEBANG_BYTES = 120
"""Longer first lines, and paths with blanks, are not understood by every kernel."""

CONFLIST = {
    "cniVersion": "1.0.0",
    "name": "cbr0",
    "plugins": [
        {"type": "flanpy", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
"""The network as flannel's manifest has it, so that host-local goes on with the addresses of that network."""
CONFLIST_NAME = "10-flanpy.conflist"

_BODY = """\
# The CNI plugin of flanpy {version}, written by `flanpy cni install`.
import sys
sys.path.append({package!r})
try:
    from flanpy.cni.entry import main
except ImportError as error:
    import json
    cure = "run `flanpy cni install` again"
    message = f"flanpy cannot be loaded from {{sys.path[-1]}}: {{error}}; {{cure}}"
    print(json.dumps({{"cniVersion": "1.0.0", "code": 5, "msg": message}}))
    raise SystemExit(1)
raise SystemExit(main())
"""


def plugin_text(interpreter: str, package: str) -> str:
    """The executable's text."""
    line = f"#!{interpreter} -IS\n"
    if len(line) > MAX_SHEBANG_BYTES or any(character.isspace() for character in interpreter):
        quoted = '"' + "".join(f"\\{character}" if character in '"\\$`' else character for character in interpreter) + '"'
        line = f"#!/bin/sh\n''':'\nexec {quoted} -IS \"$0\" \"$@\"\n'''\n"
    return line + _BODY.format(version=flanpy.__version__, package=package)


def conflist_text() -> str:
    """The network config list for /etc/cni/net.d."""
    return json.dumps(CONFLIST, indent=2) + "\n"


def bundled_text(directory: Path) -> str:
    """The executable's text when interpreter and package are in a bundle that the runtime sees at ``directory``."""
    line = f"#!/bin/sh\n''':'\nexec {bundle.command(directory)} -IS \"$0\" \"$@\"\n'''\n"
    return line + _BODY.format(version=flanpy.__version__, package=bundle.package(directory))


def below(root: Path, path: Path) -> Path:
    """Where a path of the host is when the host's root is mounted at ``root``."""
    return root / path.relative_to("/") if path.is_absolute() else root / path


def install(
    bin_dir: Path,
    names: tuple[str, ...] = ("flanpy",),
    conf_dir: Path | None = None,
    *,
    bundle_dir: Path | None = None,
    root: Path = Path("/"),
) -> list[Path]:
    """Write the executables, and the conflist and the bundle when asked for; returns what was written. Replaces whole files in one step.

    ``root`` is where the host is mounted when this runs in a container; all other paths are the host's.
    """
    for name in names:
        if name not in NAMES or not is_plugin_name(name):
            raise UsageError(f"--name {name}: must be one of {', '.join(NAMES)}; other plugins of that name would be overwritten")
    if bundle_dir is not None:
        bundle.bundle(below(root, bundle_dir))
        text = bundled_text(bundle_dir)
    else:
        text = plugin_text(sys.executable, str(Path(flanpy.__file__).resolve().parent.parent))
    wanted = [(below(root, bin_dir) / name, text, 0o755) for name in names]
    if conf_dir is not None:
        wanted.append((below(root, conf_dir) / CONFLIST_NAME, conflist_text(), 0o644))
    for path, content, mode in wanted:
        _write(path, content, mode)
    return [path for path, _, _ in wanted]


def _write(path: Path, text: str, mode: int) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.chmod(mode)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise PlatformError(
            f"{path}: cannot be written: {error.strerror}; are you root, and is it the runtime's directory?"
        ) from error
