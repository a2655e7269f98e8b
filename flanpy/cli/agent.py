"""``flanpy agent``: run the agent of this node in the foreground."""

from __future__ import annotations

import argparse
import os

from flanpy.config.options import add_agent_flags, load_agent_options

DESCRIPTION = """\
Lease a subnet from etcd, learn the other nodes' subnets, and carry packets between the pods of this node and theirs.
Runs in the foreground until SIGTERM or SIGINT; SIGHUP, as `flanpy reload`, reads the options file again.
Flags, etcd keys, packets and subnet.env are flanneld's, so nodes of both work in
one cluster. Each flag can also be set by an environment variable (FLANPY_ETCD_ENDPOINTS; flanneld's FLANNELD_ETCD_ENDPOINTS is
accepted too) or in a TOML file given by --config. The order is: flag, FLANPY_, FLANNELD_, file, default.
"""

EPILOG = """\
examples:
  flanpy agent --etcd-endpoints http://10.0.0.1:2379 --iface eth1
  flanpy agent --embedded-etcd                     one machine, nothing else needed; then, in another shell:
  flanpy network set --json '{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}'

exit status:
  0  stopped by a signal                  5  the kernel, the machine or the interface does not fit
  1  a defect in flanpy                   6  another agent runs here, or --healthz-port is taken
  2  a flag or the options file is wrong  7  no subnet could be had
  3  the network config is wrong          8  the datapath could not start
  4  etcd refused for good
What may mend itself (etcd away, no network config yet, no free subnet) is tried again with back-off and said in the log; so is a UDP
port or a device that somebody else holds: nothing is leased and no rule written before it is free.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser the agent's flags and texts."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    add_agent_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the options, then run the agent."""
    options = load_agent_options(arguments, os.environ)
    from flanpy.agent.run import run_agent

    return run_agent(options, lambda: load_agent_options(arguments, os.environ))
