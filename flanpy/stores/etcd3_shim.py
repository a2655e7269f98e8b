"""Makes ``import etcd3`` (0.12) work with protobuf 4 to 7; touches no file of the installed package.

etcd3's generated modules build their descriptors by hand, which protobuf refuses since 4.0. What they hold is still right:
the serialized file descriptors. They are read as literals out of the installed files (never executed), the fields that etcd 3.4
added to the watch service are appended, and modules built from them stand in ``sys.modules`` when etcd3 is imported.

    etcd3/etcdrpc/{kv,auth,rpc}_pb2.py --text--> serialized_pb --> private descriptor pool --> message classes --> import etcd3
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from flanpy.errors import PlatformError

_PACKAGE = "etcd3.etcdrpc"
_FILES = ("kv_pb2", "auth_pb2", "rpc_pb2")
"""In the order in which they depend on each other."""
_SERIALIZED = re.compile(
    r"""\bserialized_pb=(?:\w+\()?  # _b( in files for Python 2 and 3
        (b?(?:'[^'\\\n]*(?:\\.[^'\\\n]*)*'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"))  # one literal
        \s*[),]""",
    re.VERBOSE,
)
"""Found in the text: to parse the whole of such a file takes longer than all that is done with it, and every agent waits for it."""

_lock = threading.Lock()


def load_etcd3() -> Any:
    """The ``etcd3`` package, importable or made so; raises PlatformError when it is not installed or not the one known."""
    with _lock:
        if "etcd3" in sys.modules:
            return sys.modules["etcd3"]
        _install_messages(_generated_directory())
        with _QuietGrpc():
            return importlib.import_module("etcd3")


class _QuietGrpc:
    """gRPC's C core reads its verbosity once, at import; what it would print reaches us as errors anyway.

    The variable is gone again afterwards, so that no child process inherits it; an operator's own setting wins.
    """

    def __enter__(self) -> None:
        self._ours = "GRPC_VERBOSITY" not in os.environ
        if self._ours:
            os.environ["GRPC_VERBOSITY"] = "NONE"

    def __exit__(self, *_: object) -> None:
        if self._ours:
            del os.environ["GRPC_VERBOSITY"]


def _generated_directory() -> Path:
    spec = importlib.util.find_spec("etcd3")
    if spec is None or spec.origin is None:
        raise PlatformError("the Python package etcd3 is not installed; run: pip install 'etcd3>=0.12,<0.13'")
    return Path(spec.origin).parent / "etcdrpc"


def serialized_descriptor(source: str) -> bytes:
    """The ``serialized_pb`` of the FileDescriptor in a generated module's source; raises ValueError when there is none."""
    if found := _SERIALIZED.search(source):
        text = ast.literal_eval(found[1])
        return text if isinstance(text, bytes) else bytes(text, "latin-1")
    raise ValueError("no serialized_pb in it")


def _install_messages(directory: Path) -> None:
    """Put one module with message classes into sys.modules for each generated file; all of them or none."""
    from google.protobuf import descriptor_pb2, descriptor_pool
    from google.protobuf.internal import builder

    pool = descriptor_pool.DescriptorPool()
    modules = {}
    for name in _FILES:
        path = directory / f"{name}.py"
        try:
            file = descriptor_pb2.FileDescriptorProto.FromString(serialized_descriptor(path.read_text()))
        except (OSError, ValueError, SyntaxError) as exc:
            raise PlatformError(f"{path}: cannot read the messages of etcd3 ({exc}); install etcd3 0.12.0") from exc
        _append_watch_fields(file)
        pool.AddSerializedFile(file.SerializeToString())
        module = ModuleType(f"{_PACKAGE}.{name}")
        namespace = vars(module)
        namespace["DESCRIPTOR"] = pool.FindFileByName(file.name)
        builder.BuildMessageAndEnumDescriptors(namespace["DESCRIPTOR"], namespace)
        builder.BuildTopDescriptorsAndMessages(namespace["DESCRIPTOR"], module.__name__, namespace)
        modules[module.__name__] = module
    sys.modules.update(modules)


def _append_watch_fields(file: Any) -> None:
    """What etcd 3.4 added: progress requests, and responses in fragments (etcd's rpc.proto, messages Watch*)."""
    messages = {message.name: message for message in file.message_type}
    if "WatchRequest" not in messages or "WatchProgressRequest" in messages:
        return
    kinds = type(messages["WatchRequest"].field[0])
    optional = kinds.LABEL_OPTIONAL
    file.message_type.add(name="WatchProgressRequest")
    messages["WatchRequest"].field.add(
        name="progress_request",
        number=3,
        label=optional,
        type=kinds.TYPE_MESSAGE,
        type_name=".etcdserverpb.WatchProgressRequest",
        oneof_index=0,
    )
    messages["WatchCreateRequest"].field.add(name="fragment", number=8, label=optional, type=kinds.TYPE_BOOL)
    messages["WatchResponse"].field.add(name="fragment", number=7, label=optional, type=kinds.TYPE_BOOL)
