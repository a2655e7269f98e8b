"""Waits until an etcd answers and writes one key. A script for inside a lab: the standard library alone, so it starts fast.

    python -I -S etcd_put.py http://172.31.9.254:2379 KEY VALUE SECONDS

Uses etcd's JSON gateway (POST /v3/kv/put, keys and values in base64). Ends with status 1 and a reason when the time is over.
"""

import base64
import http.client
import json
import sys
import time
from urllib.parse import urlsplit


def text(value: str) -> str:
    """Base64, as the gateway wants keys and values."""
    return base64.b64encode(value.encode()).decode()


def put(address: str, key: str, value: str) -> str | None:
    """Write once; None, or what went wrong."""
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("POST", "/v3/kv/put", json.dumps({"key": text(key), "value": text(value)}))
        answer = connection.getresponse()
        return None if answer.status == 200 else f"HTTP status {answer.status}: {answer.read(200)!r}"
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    finally:
        connection.close()


def main(url: str, key: str, value: str, limit_s: str) -> int:
    """Try until it is written or the time is over."""
    deadline = time.monotonic() + float(limit_s)
    while (problem := put(urlsplit(url).netloc, key, value)) is not None:
        if time.monotonic() > deadline:
            print(f"etcd at {url} took no write within {limit_s} s: {problem}", file=sys.stderr)
            return 1
        time.sleep(0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
