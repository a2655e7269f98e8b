"""The CNI plugin: reads what the agent has written, asks the bridge and host-local plugins to attach the pod, keeps what DEL needs."""
