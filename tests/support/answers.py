"""An agent's answers as they come over the control socket, for tests of what prints and exports them."""

from typing import Any

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 77,
    "node": "c6cf2256",
    "uptime_s": 8040.0,
    "ready": True,
    "state": "ready",
    "problems": ["lease subnets/\x1b[31m refused: key: not of the form subnets/10.5.52.0-24"],
    "warnings": ["no UDP GRO: the kernel has none"],
    "uplink": {"name": "eth0", "address": "172.31.9.1", "mtu_bytes": 1500},
    "devices": ["flannel0"],
    "mtu_bytes": 1472,
    "lease": {
        "subnets": "10.244.7.0/24",
        "public_ip": "172.31.9.1",
        "reservation": False,
        "mod_revision": 3,
        "seconds_left": 83520,
    },
    "etcd": {"state": "ok", "problem": None, "last_word_s_ago": 0.5},
    "network": "10.244.0.0/16",
    "backend": "udp",
    "port": 8285,
    "counts": {"peers": 3, "kept": 1, "foreign": 1, "refused": 1},
    "datapath": {
        "kind": "userspace",
        "reason": "asked for",
        "degraded": ["no UDP GRO: the kernel has none"],
        "process": {"pid": 4243, "adopted": True, "restarts": 2},
        "table_generation": 12,
        "verdicts": {
            "encapsulated": {"packets": 1204, "bytes": 1500000},
            "decapsulated": {"packets": 1100, "bytes": 1400000},
            "drop_no_route": {"packets": 3, "bytes": 252},
            "drop_spoofed": {"packets": 7, "bytes": 700},
            "drop_ttl": {"packets": 0, "bytes": 0},
        },
        "counters": {"tun_reads": 300, "polls": 12},
    },
    "paths": {"interval_s": 10, "probed": 2, "states": {"node down": 1, "ok": 1}, "rtt_ms_most": 0.41},
    "rules": {"masquerade": None, "forward": "iptables"},
    "reconcile": {"passes": 5, "failed": 1, "seconds": 0.25, "buckets": {"0.01": 4, "1": 5}},
}
"""The answer to ``status`` of a node that carries packets, with one refused lease and one warning."""
