"""The plugin as an executable: one request in, one answer out, in a process that imports little and starts fast.

Whatever goes wrong, stdout holds a CNI error and the exit status is 1; a defect of ours is no exception (code 999).
"""

from __future__ import annotations

import json
import os
import sys
from types import TracebackType

from flanpy.cni.commands import run
from flanpy.cni.protocol import DEFECT, IO_FAILURE, MAX_CONFIG_BYTES, VERSIONS, parse_object, parse_request, render_error
from flanpy.errors import CniError, FlanpyError

ANSWER_BEFORE_1_1 = "1.0.0"
"""Version of an error when the config's is not known: every runtime can read it."""


def main() -> int:
    """Serve the request of this process; returns the exit status."""
    sys.excepthook = report_defect
    stdin = b""
    try:
        if not os.isatty(0):
            stdin = sys.stdin.buffer.read(MAX_CONFIG_BYTES + 1)
        answer = run(parse_request(os.environ, stdin))
    except CniError as error:
        return _refuse(error, stdin)
    except FlanpyError as error:
        return _refuse(CniError(DEFECT, str(error)), stdin)
    except OSError as error:
        return _refuse(CniError(IO_FAILURE, f"{error.filename or 'flanpy'}: {error.strerror or error}"), stdin)
    if answer is not None:
        print(json.dumps(answer))
    return 0


def _refuse(error: CniError, stdin: bytes) -> int:
    print(render_error(error, _version_of(stdin)), flush=True)
    return 1


def _version_of(stdin: bytes) -> str:
    """The version to answer in: the config's own, if it can be read."""
    try:
        version = parse_object(stdin, "stdin").get("cniVersion")
    except CniError:
        version = None
    return version if version in VERSIONS else ANSWER_BEFORE_1_1


def report_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The hook for what nobody has foreseen: still a CNI error, with the place in our code."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
    message = f"flanpy: a defect: {kind.__name__}: {error!s:.200}"
    print(render_error(CniError(DEFECT, message, place), ANSWER_BEFORE_1_1), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
