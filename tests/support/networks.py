"""Network configs for tests, in one line each."""

from flanpy.config.network import parse_network_config
from flanpy.model import NetworkConfig


def network(cidr: str = "10.5.0.0/16", length: int = 0, more: str = "") -> NetworkConfig:
    """A udp network of this range."""
    return parse_network_config(f'{{"Network": "{cidr}", "SubnetLen": {length}{more}}}')
