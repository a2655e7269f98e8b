"""The Kubernetes runtime interface (CRI, runtime.v1) of a containerd, asked as a kubelet asks it: pods and containers in them.

Spoken by gRPC with messages packed here: of a few calls a few fields each, which is less than a generated client. Field numbers are those
of k8s.io/cri-api/pkg/apis/runtime/v1/api.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

Fields = Mapping[int, "str | int | Fields | tuple[str, ...]"]
CALL_TIMEOUT_S = 60.0


def packed(fields: Fields) -> bytes:
    """A message: text, numbers, messages and lists of text by field number."""
    out = bytearray()
    for number, value in fields.items():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, int):
                out += _varint(number << 3) + _varint(each)
            else:
                data = each.encode() if isinstance(each, str) else packed(each)
                out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def field(message: bytes, *path: int) -> bytes | int | None:
    """The first value at this path of field numbers, as it was packed; None: it is not there."""
    for depth, wanted in enumerate(path):
        found = next((value for number, value in _fields(message) if number == wanted), None)
        if depth == len(path) - 1 or not isinstance(found, bytes):
            return found
        message = found
    return None


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if key & 7 == 2:
            yield key >> 3, message[at : at + value]
            at += value
        else:
            assert key & 7 == 0, "these messages have text, numbers and messages alone"
            yield key >> 3, value


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not message[at - 1] & 0x80:
            return value, at


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod sandbox that runs."""

    id: str
    config: Fields
    address: str


class Cri:
    """A connection to the runtime service."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def call(self, method: str, request: Fields) -> bytes:
        """One call; raises grpc.RpcError with the runtime's words."""
        answer = self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")(packed(request), timeout=CALL_TIMEOUT_S)
        assert isinstance(answer, bytes)
        return answer

    def run_pod(self, name: str, namespace: str) -> Pod:
        """A pod with a network of its own, made by the CNI plugin."""
        config: Fields = {1: {1: name, 2: f"uid-{name}", 3: namespace}, 2: name, 8: {}}
        made = _text(field(self.call("RunPodSandbox", {1: config}), 1))
        status = self.call("PodSandboxStatus", {1: made})
        return Pod(made, config, _text(field(status, 1, 5, 1)))

    def start(self, pod: Pod, name: str, image: str, *command: str) -> str:
        """A container in a pod; its id."""
        wanted: Fields = {1: {1: name}, 2: {1: image}, 3: command}
        container = _text(field(self.call("CreateContainer", {1: pod.id, 2: wanted, 3: pod.config}), 1))
        self.call("StartContainer", {1: container})
        return container

    def remove_pod(self, pod: Pod) -> None:
        """Stop its containers, take its network back, and forget it."""
        self.call("StopPodSandbox", {1: pod.id})
        self.call("RemovePodSandbox", {1: pod.id})

    def network_is_ready(self) -> bool:
        """What a kubelet asks before it gives the node any pod."""
        status = field(self.call("Status", {}), 1)
        assert isinstance(status, bytes)
        conditions = [value for number, value in _fields(status) if number == 1 and isinstance(value, bytes)]
        return any(field(each, 1) == b"NetworkReady" and field(each, 2) == 1 for each in conditions)


def _text(value: bytes | int | None) -> str:
    assert isinstance(value, bytes)
    return value.decode()


@contextmanager
def cri(socket: Path) -> Iterator[Cri]:
    """Connected to the service that listens there."""
    with grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")]) as channel:
        yield Cri(channel)
