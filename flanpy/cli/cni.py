"""``flanpy cni``: puts the CNI plugin in its place; without a subcommand it is the plugin (``cni.entry`` starts faster)."""

from __future__ import annotations

import argparse
from pathlib import Path

from flanpy.cli.output import add_output_argument, show, show_json

EPILOG = """\
examples:
  flanpy cni install --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d
  flanpy cni install --bin-dir /opt/cni/bin --name flanpy --name flannel     serve configs of type flannel too
  flanpy cni conflist                                                        print the network config list

Without a subcommand this is the plugin itself: CNI_COMMAND and the other variables of the specification say what to do, the
network config comes on stdin, the result or error goes to stdout. Runtimes start the installed file, which does the same.
docs/cni.md has the keys of the config and what each command does.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their flags."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="cni_command", metavar="install|conflist")
    install = commands.add_parser("install", help="write the plugin's executable, and the network config list if asked for")
    install.add_argument(
        "--bin-dir", type=Path, default=Path("/opt/cni/bin"), help="the runtime's plugins (default: /opt/cni/bin)"
    )
    install.add_argument(
        "--name", action="append", help="name of the executable: flanpy or flannel; repeatable (default: flanpy)"
    )
    install.add_argument("--conf-dir", type=Path, help="also write 10-flanpy.conflist there, for example /etc/cni/net.d")
    install.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="copy interpreter, libraries and flanpy to DIR for the plugin, for hosts without Python: /opt/flanpy/cni",
    )
    install.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="in a container: where the host's root is mounted; all other paths are the host's (default: /)",
    )
    add_output_argument(install)
    commands.add_parser("conflist", help="print the network config list that --conf-dir would write")


def run(arguments: argparse.Namespace) -> int:
    """Install, print, or be the plugin."""
    match arguments.cni_command:
        case "install":
            from flanpy.cni import install as installer

            names = tuple(arguments.name or ("flanpy",))
            where = {"bundle_dir": arguments.bundle, "root": arguments.root}
            written = [str(path) for path in installer.install(arguments.bin_dir, names, arguments.conf_dir, **where)]
            if arguments.output == "json":
                show_json({"written": written})
            else:
                show(written)
        case "conflist":
            from flanpy.cni import install as installer

            print(installer.conflist_text(), end="")
        case _:
            from flanpy.cni import entry

            return entry.main()
    return 0
