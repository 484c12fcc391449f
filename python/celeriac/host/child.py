"""A child of the pool: runs tasks through Celery's own tracer, one after the other.

Its channel is a SOCK_SEQPACKET socket, so that each job is one message which exactly one process
takes: the parent can take back a job that the child has not begun by reading it itself.

To the child: a job (:data:`JOB`) or the order to leave (:data:`LEAVE`). From it: :data:`UP` once
it can work, then :data:`DONE` for each job. That a job has begun needs no message: the parent
knows that a child with nothing else to do begins at once.

Celery's counterparts: ``billiard.pool.Worker`` and ``celery.concurrency.prefork``. Counterpart in
Rust: ``crates/celeriac-pool/src/prefork/frame.rs``.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import pickle
import signal
import socket
import struct
from typing import Any, NoReturn

import billiard.pool
from billiard.common import terminate_handler_fired
from billiard.context import ForkProcess
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import SoftTimeLimitExceeded

from celeriac.exceptions import SoftMemoryLimitExceeded
from celeriac.host import body, processes
from celeriac.host.interrupted import Interrupted
from celeriac.host.last_words import LastWords

# -- the messages ------------------------------------------------------------------------------

#: kind, flags, unused, length of the request, sequence number of the job
_JOB = struct.Struct("<BBHIQ")
#: kind, outcome, sequence number of the job, run time in seconds (NaN when unknown)
_DONE = struct.Struct("<BBxxxxxxQd")
JOB, LEAVE = 1, 2
UP, DONE = 1, 2
#: On the page: the job that a soft limit is meant for, and which limit it is: 0 for that of time.
_SOFT_LIMIT = struct.Struct("<QB")
_MEMORY, _SHUTDOWN = 1, 2

#: The body is in the file whose descriptor came with the message.
IN_FILE = 1
#: The child leaves after this job.
LAST = 2
#: The parent wants the representation of the result.
WANTS_RESULT = 4
#: The parent wants the exception itself, for a hook in main.
WANTS_EXCEPTION = 8

#: How a job ended. RAISED: the tracer itself raised. LEFT: the task raised SystemExit or
#: KeyboardInterrupt. UNDECODABLE and INVALID: the body can't be the arguments of a task.
SUCCESS, FAILURE, RETRY, IGNORE, REJECT, RAISED, LEFT, UNDECODABLE, INVALID = range(9)

#: Larger than any message: the parent moves bodies beyond 64 KiB into files.
_RECEIVE_BYTES = 128 * 1024
_ANCILLARY_BYTES = socket.CMSG_SPACE(struct.calcsize("i"))
#: What fits a message of the socket's default buffer with room to spare.
_TEXT_LIMIT = 32 * 1024
_PICKLE_LIMIT = 96 * 1024

#: Exit status of a child that leaves because its number of tasks is reached, as billiard's.
EX_RECYCLE = 0x9B


def install_workloop() -> None:
    """Puts the loop below where billiard has its own.

    Before the app is imported: packages such as sentry-sdk wrap ``Worker.workloop`` to flush when
    a child ends, and must wrap this one.
    """
    billiard.pool.Worker.workloop = _workloop


def run(worker: Any, zygote: int, number: int, index: int, channel: int, page: int) -> NoReturn:
    """Lives the life of a child; called in the forked process."""
    code = 1
    try:
        processes.set_name("celeriac:child")
        processes.die_with_parent(zygote)
        processes.leave_death_to_us()
        # Programs that a task starts have no business with the channel.
        os.set_inheritable(channel, False)
        process = _PoolProcess(worker, number, index, socket.socket(fileno=channel), page)
        code = process._bootstrap()
    finally:
        os._exit(code)


class _PoolProcess(ForkProcess):  # type: ignore[misc]
    """The process object that billiard, logging and Celery's debugger ask for name and index."""

    def __init__(
        self, worker: Any, number: int, index: int, channel: socket.socket, page: int
    ) -> None:
        super().__init__(name=f"ForkPoolWorker-{number}", daemon=True)
        self.index = index
        self._pool_worker = _PoolWorker(worker, channel, page)

    def run(self) -> None:
        self._pool_worker()


class _PoolWorker(billiard.pool.Worker):  # type: ignore[misc]
    """billiard's worker over this module's channel: same signals, same hooks, same exit."""

    def __init__(self, worker: Any, channel: socket.socket, page: int) -> None:
        from celery.concurrency.prefork import process_destructor

        super().__init__(
            None,
            None,
            initializer=_initialize,
            initargs=(worker.app, worker.hostname),
            on_exit=process_destructor,
            sigprotection=None,
        )
        self.app = worker.app
        self.channel = channel
        self.current_job = 0
        self._page = mmap.mmap(page, mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._last_words = LastWords(page, lambda: self.current_job)
        os.close(page)

    def contribute_to_object(self, obj: Any) -> Any:
        return obj

    def _make_child_methods(self, loads: Any = None) -> None:
        pass

    def after_fork(self) -> None:
        super().after_fork()
        # REMAP_SIGTERM and the rest are billiard's; the soft limit alone differs: a signal that
        # comes too late must not hit the next job, and it may be that of memory.
        signal.signal(signal.SIGUSR1, self._on_soft_limit)

    def on_loop_start(self, pid: int) -> None:
        # The app's own handlers are in place.
        self._last_words.listen()
        self.channel.send(bytes([UP]))

    def _on_soft_limit(self, _signum: int, _frame: Any) -> None:
        target, limit = _SOFT_LIMIT.unpack_from(self._page)
        if target and target == self.current_job:
            if limit == _SHUTDOWN:
                raise Interrupted("the worker is shutting down", requeue=True)
            raise SoftMemoryLimitExceeded() if limit == _MEMORY else SoftTimeLimitExceeded()

    def _do_exit(self, pid: int, exitcode: Any, exc: Any = None) -> NoReturn:
        if exitcode is None:
            exitcode = 1 if exc else 0
        try:
            self.on_exit(pid, exitcode)
            processes.flush_standard_streams()
        finally:
            os._exit(exitcode)


def _initialize(app: Any, hostname: str) -> None:
    """Celery's initializer, but that a task's tracer is built when the task first runs: most of a
    large app's tasks never run in one child."""
    from celery.app import trace
    from celery.concurrency.prefork import process_initializer

    # Or what a package has put in its place.
    build = trace.build_tracer

    def build_when_called(name: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        def build_and_call(*job: Any, **options: Any) -> Any:
            task.__trace__ = build(name, task, *args, **kwargs)
            return task.__trace__(*job, **options)

        return build_and_call

    trace.build_tracer = build_when_called
    try:
        process_initializer(app, hostname)
    finally:
        # A receiver of worker_process_init may have put its own there.
        if trace.build_tracer is build_when_called:
            trace.build_tracer = build


# -- the loop ----------------------------------------------------------------------------------


def _workloop(self: Any, debug: Any = None, now: Any = None, pid: int | None = None) -> int:
    """Takes jobs until told to leave. Runs as ``billiard.pool.Worker.workloop``."""
    from celery.app import trace

    channel = self.channel
    receive = channel.recvmsg
    send = channel.send
    unpack_job = _JOB.unpack_from
    offset = _JOB.size
    decode = body.Decoder(self.app).decode
    run_task = trace.fast_trace_task
    read_request = body.read_request
    while True:
        message, ancillary, _, _ = receive(_RECEIVE_BYTES, _ANCILLARY_BYTES)
        if not message:
            return 1  # the parent is gone
        if message[0] != JOB:
            return 0
        _, flags, _, request_length, job = unpack_job(message)
        self.current_job = job
        leave = None
        report: tuple[int, float | None, bytes]
        try:
            try:
                content = _read_file(ancillary) if flags & IN_FILE else message[offset:]
                request = read_request(content[:request_length])
                arguments = decode(content[request_length:], request)
            except body.Undecodable as exc:
                report = UNDECODABLE, None, _failure(exc.reason)
            except body.Invalid as exc:
                report = INVALID, None, _text(str(exc))
            else:
                failed, value, runtime = run_task(
                    request["task"], request["id"], request, arguments, None, None
                )
                # From here on it is too late for the soft time limit.
                self.current_job = 0
                if failed:
                    report = _returned(value, runtime, flags)
                else:
                    # The tracer's value is the result's representation, or None for a
                    # duplicate that was not run again.
                    result = (value or "").encode("utf-8", "replace")
                    report = SUCCESS, runtime, result if flags & WANTS_RESULT else b""
        except BaseException as exc:
            self.current_job = 0
            if terminate_handler_fired():
                # Killed on the parent's behalf: the job has no outcome.
                raise
            report = _raised(exc, flags)
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                leave = exc
        self.current_job = 0
        outcome, runtime, detail = report
        seconds = float("nan") if runtime is None else runtime
        send(_DONE.pack(DONE, outcome, job, seconds) + detail)
        if leave is not None:
            raise leave
        if flags & LAST:
            return EX_RECYCLE
        # Nothing of the last job may live on until the next one comes.
        del message, ancillary, report, detail
        arguments = content = value = None
        request = {}


def _read_file(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    descriptors = array.array("i")
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data)
    with open(descriptors[0], "rb", buffering=0) as file:
        return file.read()


def _returned(info: Any, runtime: float | None, flags: int) -> tuple[int, float | None, bytes]:
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


def _raised(exc: BaseException, flags: int) -> tuple[int, float | None, bytes]:
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


def _text(text: str) -> bytes:
    return _json(text, None)


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
