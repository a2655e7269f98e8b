"""The only importer of pyroute2: links, addresses, routes, TUN devices, the monitor."""

from flanpy.kernel.lazy_package import make_lazy

make_lazy("pyroute2")
