"""``flanpy docker-opts``: dockerd's options for this node, from subnet.env. Reads and writes files; core.docker_opts makes the text."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from flanpy.cli.output import add_output_argument, show_json

DESCRIPTION = """\
Write dockerd's options for this node, from the subnet.env that `flanpy agent` (or flanneld) has written: --bip, --mtu and --ip-masq.
The flags are those of flannel's mk-docker-opts.sh. Without -i and -c both kinds of variables are written.
"""
EPILOG = """\
with systemd, in a drop-in of flanpy.service (which is started when it is ready):
  [Service]
  ExecStartPost=/usr/local/bin/flanpy docker-opts -c
and in one of docker.service:
  [Unit]
  Requires=flanpy.service
  After=flanpy.service
  [Service]
  EnvironmentFile=/run/docker_opts.env
  ExecStart=
  ExecStart=/usr/bin/dockerd -H fd:// $DOCKER_OPTS

exit status: 0 written, 2 wrong arguments, 3 subnet.env is missing or wrong (the file is left as it was), 5 it cannot be written
"""
DEFAULT_ENV_FILE = Path("/run/docker_opts.env")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    from flanpy.core.docker_opts import DEFAULT_KEY

    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("-f", metavar="FILE", dest="subnet_file", type=Path, help="subnet.env (default: /run/flannel/subnet.env)")
    parser.add_argument(
        "-d",
        metavar="FILE",
        dest="env_file",
        default=str(DEFAULT_ENV_FILE),
        help="the file to write, - to print (default: %(default)s)",
    )
    parser.add_argument("-i", dest="single", action="store_true", help="each option in a variable: DOCKER_OPT_MTU=...")
    parser.add_argument("-c", dest="combined", action="store_true", help="all options in one variable")
    parser.add_argument("-k", metavar="KEY", dest="key", default=DEFAULT_KEY, help="that variable (default: %(default)s)")
    parser.add_argument("-m", dest="no_ip_masq", action="store_true", help="do not write --ip-masq")
    parser.add_argument("--ipv6", action="store_true", help="also --ipv6 and --fixed-cidr-v6, where the node has an IPv6 subnet")
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, render, write."""
    from flanpy.agent import files
    from flanpy.core.docker_opts import docker_options, render, variables
    from flanpy.core.subnet_env import parse_subnet_env
    from flanpy.errors import ConfigError, PlatformError

    path = arguments.subnet_file or Path(os.environ.get("FLANPY_SUBNET_FILE") or "/run/flannel/subnet.env")
    text = files.read_text(path)
    if text is None:
        raise ConfigError(f"{path}: not there, or no text; it is written when the agent is ready (flanpy status --wait 30)")
    options = docker_options(parse_subnet_env(text), ip_masq=not arguments.no_ip_masq, ipv6=arguments.ipv6)
    both = arguments.single == arguments.combined
    values = variables(
        options,
        single=arguments.single or both,
        combined=arguments.combined or both,
        key=arguments.key,
        environment=os.environ,
    )
    to_file = arguments.env_file != "-"
    if to_file:
        try:
            files.write_atomically(Path(arguments.env_file), render(values))
        except OSError as error:
            raise PlatformError(f"-d {arguments.env_file}: cannot be written: {error.strerror}") from error
    if arguments.output == "json":
        show_json({"file": arguments.env_file if to_file else None, "variables": values})
    elif not to_file:
        sys.stdout.write(render(values))
    return 0
