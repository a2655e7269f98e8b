"""Text to frozen values: the network config in etcd and the options of the agent."""
