"""flanpy: a flannel-compatible overlay network agent with a fast C datapath."""

__version__ = "0.1.0"
