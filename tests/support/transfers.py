"""One TCP transfer between two pods with its content checked: 16 MB, each MB different, a digest at both ends."""

from __future__ import annotations

from tests.support.clusters import Cluster
from tests.support.pace import SLOWNESS

SERVE = """
import hashlib, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], 5001), family=family) as server:
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


def transfer(cluster: Cluster, source: str, target: str, address: str | None = None) -> tuple[str, str]:
    """The digests of what was sent and of what arrived; ``address`` is the target's where it is not the lab's own."""
    address = address or cluster.pod(target)
    server = cluster.sandbox.popen(target, ["python3", "-c", SERVE, address])
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    sent = cluster.sandbox.run(source, ["python3", "-c", SEND, address], timeout_s=30 * SLOWNESS).stdout
    return sent.strip(), server.communicate(timeout=30 * SLOWNESS)[0].strip()
