"""One TCP transfer between two pods with its content checked: 16 MB, each MB different, a digest at both ends."""

from __future__ import annotations

from tests.support.clusters import Cluster

SERVE = """
import hashlib, socket
with socket.create_server(("", 5001)) as server:
    print("listening", flush=True)
    client, _ = server.accept()
    digest = hashlib.sha256()
    while chunk := client.recv(1 << 20):
        digest.update(chunk)
    print(digest.hexdigest())
"""
SEND = """
import hashlib, random, socket, sys
data = random.Random(7).randbytes(1 << 20)
digest = hashlib.sha256()
with socket.create_connection((sys.argv[1], 5001), timeout=10) as client:
    for number in range(16):
        block = number.to_bytes(4, "big") + data
        client.sendall(block)
        digest.update(block)
print(digest.hexdigest())
"""


def transfer(cluster: Cluster, source: str, target: str) -> tuple[str, str]:
    """The digests of what was sent and of what arrived."""
    server = cluster.sandbox.popen(target, ["python3", "-c", SERVE])
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    sent = cluster.sandbox.run(source, ["python3", "-c", SEND, cluster.pod(target)]).stdout
    return sent.strip(), server.communicate(timeout=30)[0].strip()
