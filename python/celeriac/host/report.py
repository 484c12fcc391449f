"""How a job ended, as the parent is told.

Counterpart in Rust: ``crates/celeriac-pool/src/prefork/frame.rs``.
"""

from __future__ import annotations

import json
import pickle
import struct
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback

#: kind, outcome, sequence number of the job, run time in seconds (NaN when unknown)
_DONE = struct.Struct("<BBxxxxxxQd")
DONE = 2

#: The parent wants the representation of the result.
WANTS_RESULT = 4
#: The parent wants the exception itself, for a hook in main.
WANTS_EXCEPTION = 8

#: How a job ended. RAISED: the tracer itself raised. LEFT: the task raised SystemExit or
#: KeyboardInterrupt. UNDECODABLE and INVALID: the body can't be the arguments of a task.
#: TERMINATED: one job of many was ended as the parent told.
SUCCESS, FAILURE, RETRY, IGNORE, REJECT, RAISED, LEFT, UNDECODABLE, INVALID, TERMINATED = range(10)

#: What fits a message of the socket's default buffer with room to spare.
_TEXT_LIMIT = 32 * 1024
_PICKLE_LIMIT = 96 * 1024

#: An outcome, the run time if it is known, and details.
Report = tuple[int, "float | None", bytes]


def message(job: int, report: Report) -> bytes:
    """What the parent is sent."""
    outcome, runtime, detail = report
    seconds = float("nan") if runtime is None else runtime
    return _DONE.pack(DONE, outcome, job, seconds) + detail


def succeeded(value: str | None, runtime: float | None, flags: int) -> Report:
    """``value`` is the result's representation, or ``None`` for a duplicate that was not run
    again."""
    result = (value or "").encode("utf-8", "replace")
    return SUCCESS, runtime, result if flags & WANTS_RESULT else b""


def undecodable(reason: BaseException) -> Report:
    return UNDECODABLE, None, _failure(reason)


def invalid(reason: BaseException) -> Report:
    return INVALID, None, _json(str(reason), None)


def returned(info: Any, runtime: float | None, flags: int) -> tuple[int, float | None, bytes]:
    """A failure that the tracer has dealt with: stored, logged, hooks and signals called."""
    from celery.exceptions import Ignore, Reject, Retry

    exc = info.exception
    if isinstance(exc, ExceptionWithTraceback):
        exc = exc.exc
    if isinstance(exc, Reject):
        detail = _failure(exc, info, pickled=info, requeue=bool(exc.requeue))
        return REJECT, runtime, detail
    pickled = info if flags & WANTS_EXCEPTION else None
    if isinstance(exc, Ignore):
        return IGNORE, runtime, _failure(exc, info, pickled=pickled) if pickled else b"{}"
    if isinstance(exc, Retry):
        return RETRY, runtime, _failure(exc.exc, info, pickled=pickled)
    return FAILURE, runtime, _failure(exc, info, pickled=pickled)


def raised(exc: BaseException, flags: int) -> tuple[int, float | None, bytes]:
    """The tracer raised: nothing is stored yet, the parent has it done in main."""
    from celery.exceptions import Reject

    info = ExceptionInfo()
    if isinstance(exc, Reject):
        return REJECT, None, _failure(exc, info, pickled=info, requeue=bool(exc.requeue))
    if isinstance(exc, (SystemExit, KeyboardInterrupt)):
        code = exc.code if isinstance(exc, SystemExit) else 1
        # What the operating system would make of it.
        status = 0 if code is None else int(code) & 0xFF if isinstance(code, int) else 1
        return LEFT, None, _failure(exc, info, status=status)
    return RAISED, None, _failure(exc, info, pickled=info)


def _failure(exc: Any, info: Any = None, *, pickled: Any = None, **members: Any) -> bytes:
    """The details of a failure: a JSON text, a NUL, and the pickled exception if asked for."""
    from kombu.utils.encoding import safe_repr, safe_str

    traceback = safe_str(info.traceback) if info is not None else None
    text = _json(safe_repr(exc), traceback, **members)
    return text + b"\0" + _pickle(pickled) if pickled is not None else text


def _json(exception: str, traceback: str | None, **members: Any) -> bytes:
    """The details as the parent reads them: UTF-8 whatever the app's texts hold, and short enough
    whatever of it JSON has to escape."""
    limit = _TEXT_LIMIT
    while True:
        details = {
            "exception": exception[:limit],
            "traceback": traceback and traceback[-limit:],
            **members,
        }
        # Lone surrogates, such as undecodable file names have, are no UTF-8 and no JSON.
        data = json.dumps(details, ensure_ascii=False).encode("utf-8", "replace")
        if len(data) <= 2 * _TEXT_LIMIT + 1024:
            return data
        limit //= 2


def _pickle(info: Any) -> bytes:
    """The pickled exception, empty when it can't be had: main then makes one from its text."""
    try:
        data = pickle.dumps(info, protocol=4)
    except Exception:
        return b""
    return data if len(data) <= _PICKLE_LIMIT else b""
