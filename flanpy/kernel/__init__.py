"""The only importer of pyroute2: links, addresses, routes, TUN devices, the monitor."""
