"""Clusters of hosts and pods in network namespaces, with a real etcd and real agents."""
