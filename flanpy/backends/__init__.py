"""One file a backend: (own lease, peers) to the desired state of this machine."""
