"""Many jobs at once in one child: what the pools asyncio, gevent and threads have in common.

To the child, beside a job and the order to leave: a soft limit's exception for one job
(:data:`SOFT_LIMIT`), the end of one job (:data:`TERMINATE`). From it: :data:`STARTED` with the
numbers of the jobs that it has read and begins. What ends a job is an exception that is raised in
it, :class:`Terminated` for an end that it is not meant to survive; whoever catches it and goes on
has ended as it then does.

Counterpart in Rust: ``crates/celeriac-pool/src/prefork/{frame,machine/shared}.rs``.
"""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from celeriac.exceptions import SoftMemoryLimitExceeded
from celeriac.host import body, report
from celeriac.host.interrupted import Interrupted

#: kind, flags, unused, length of the request, sequence number of the job
JOB_HEAD = struct.Struct("<BBHIQ")
#: kind, which limit, number of the job
_ORDER = struct.Struct("<BBxxxxxxQ")
JOB, LEAVE, SOFT_LIMIT, TERMINATE = 1, 2, 3, 4
STARTED = 3
#: Which limit it is: 0 for that of time.
MEMORY, SHUTDOWN = 1, 2

#: The body is in the file whose descriptor came with the message.
IN_FILE = 1

#: Larger than any message: the parent moves bodies beyond 64 KiB into files.
RECEIVE_BYTES = 128 * 1024
ANCILLARY_BYTES = socket.CMSG_SPACE(struct.calcsize("i"))
#: Messages that are read before what they ask for is begun.
_BATCH = 64


class Terminated(BaseException):
    """Ends a task: it is revoked, or over its hard time limit."""


def soft_limit(limit: int) -> BaseException:
    """The exception of a soft limit."""
    if limit == SHUTDOWN:
        return Interrupted("the worker is shutting down", requeue=True)
    return SoftMemoryLimitExceeded() if limit == MEMORY else SoftTimeLimitExceeded()


def read_file(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The content of a job that was too long for a message."""
    descriptors = array.array("i")
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data)
    with open(descriptors[0], "rb", buffering=0) as file:
        return file.read()


class Job:
    """A job that was read."""

    __slots__ = (
        "content",
        "flags",
        "handle",
        "is_awaiting",
        "is_terminated",
        "number",
        "raises",
        "request",
        "request_length",
    )

    def __init__(self, number: int, flags: int, content: bytes, request_length: int) -> None:
        self.number = number
        self.flags = flags
        self.content = content
        self.request_length = request_length
        #: The request, once it was read.
        self.request: dict[str, Any] | None = None
        #: What runs it, once it has begun; ``None`` again when it is too late to raise anything.
        self.handle: Any = None
        #: It is to end, however it ends.
        self.is_terminated = False
        #: Its coroutine has begun.
        self.is_awaiting = False
        #: The exception to be raised in its coroutine.
        self.raises: BaseException | None = None


#: The job that runs in this context.
current: ContextVar[Job | None] = ContextVar("celeriac_job", default=None)


def current_number() -> int:
    """The number of the job that runs here, 0 for none."""
    job = current.get()
    return job.number if job is not None else 0


class Jobs:
    """The jobs of a child. Subclasses know how to run one, and how to raise in it."""

    def __init__(self, app: Any, channel: socket.socket) -> None:
        from celery.app import trace

        self.app = app
        self.channel = channel
        self._running: dict[int, Job] = {}
        self._decode = body.Decoder(app).decode
        self._trace = trace

    # -- what the pools differ in ------------------------------------------------------------------

    def serve(self) -> int:
        """Takes jobs until told to leave; answers with the exit status."""
        raise NotImplementedError

    def begin(self, job: Job) -> None:
        """Has a job run, as soon as may be; must not wait."""
        raise NotImplementedError

    def throw(self, job: Job, exception: BaseException) -> None:
        """Raises an exception in a job that has begun, as soon as may be; must not wait."""
        raise NotImplementedError

    # -- messages ----------------------------------------------------------------------------------

    def read(self, flags: int = socket.MSG_DONTWAIT) -> int | None:
        """Does what the messages say that are there; answers with the exit status once told to
        leave."""
        begun: list[Job] = []
        status = None
        for _ in range(_BATCH):
            try:
                message, ancillary, _, _ = self.channel.recvmsg(
                    RECEIVE_BYTES, ANCILLARY_BYTES, flags
                )
            except (BlockingIOError, InterruptedError):
                break
            # Whatever else there is must not be waited for: what was read is to begin.
            flags |= socket.MSG_DONTWAIT
            if not message:
                os._exit(1)  # the parent is gone
            if message[0] == JOB:
                begun.append(self._open(message, ancillary))
                continue
            if message[0] == LEAVE:
                status = 0
                break
            self._tell_begun(begun)
            begun = []
            self._obey(message)
        self._tell_begun(begun)
        return status

    def _open(self, message: bytes, ancillary: Any) -> Job:
        _, flags, _, request_length, number = JOB_HEAD.unpack_from(message)
        content = read_file(ancillary) if flags & IN_FILE else message[JOB_HEAD.size :]
        return Job(number, flags, content, request_length)

    def _tell_begun(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        numbers = [job.number for job in jobs]
        self.channel.send(struct.pack(f"<B7x{len(numbers)}Q", STARTED, *numbers))
        for job in jobs:
            self._running[job.number] = job
            self.begin(job)

    def _obey(self, message: bytes) -> None:
        kind, limit, number = _ORDER.unpack_from(message)
        job = self._running.get(number)
        if job is None:
            return  # it has ended meanwhile
        if kind == TERMINATE:
            job.is_terminated = True
            self.throw(job, Terminated())
        elif kind == SOFT_LIMIT:
            self.throw(job, soft_limit(limit))

    # -- a job -------------------------------------------------------------------------------------

    def read_request(self, job: Job) -> dict[str, Any]:
        """A job's request.

        Raises:
            body.Undecodable: when it can't be read.
        """
        job.request = body.read_request(job.content[: job.request_length])
        return job.request

    def perform(self, job: Job) -> report.Report:
        """Runs a job through Celery's tracer, to whatever end it comes."""
        try:
            request = job.request or self.read_request(job)
            arguments = self._decode(job.content[job.request_length :], request)
            # Nothing but the task has it from here on.
            job.content, job.request = b"", None
            failed, value, runtime = self._trace.fast_trace_task(
                request["task"], request["id"], request, arguments, None, None
            )
            if failed:
                return report.returned(value, runtime, job.flags)
            return report.succeeded(value, runtime, job.flags)
        except body.Undecodable as exc:
            return report.undecodable(exc.reason)
        except body.Invalid as exc:
            return report.invalid(exc)
        except BaseException as exc:
            if job.is_terminated:
                return report.TERMINATED, None, b""
            return report.raised(exc, job.flags)

    def or_die(self, live: Callable[[Job], None], job: Job) -> None:
        """Lives a job to its end. Whatever else were to happen, the parent would wait for ever: it
        has to see that something is wrong."""
        try:
            live(job)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)

    def end(self, job: Job, ending: report.Report) -> None:
        """Tells the parent how a job has ended."""
        job.handle = None
        self._running.pop(job.number, None)
        self.channel.send(report.message(job.number, ending))


def exit_at_once(*_: Any) -> None:
    """SIGTERM, by which the parent ends everything: an exception would end whichever job runs."""
    os._exit(128 + signal.SIGTERM)


def initialize(app: Any, hostname: str, join_blocks: bool) -> None:
    """What Celery's ``process_initializer`` does for a forked child, but for the signal
    ``worker_process_init`` and the loader's ``on_worker_process_init``: Celery sends none where a
    pool has no processes of its own."""
    from celery import platforms
    from celery._state import _set_task_join_will_block, set_default_app
    from celery.app import trace
    from celery.concurrency.prefork import WORKER_SIGIGNORE, WORKER_SIGRESET
    from celery.worker import state

    _set_task_join_will_block(join_blocks)
    platforms.signals.reset(*WORKER_SIGRESET)
    platforms.signals.ignore(*WORKER_SIGIGNORE)
    platforms.set_mp_process_title("celeryd", hostname=hostname)
    app.set_current()
    set_default_app(app)
    app.finalize()
    trace._tasks = app._tasks
    for name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(name, task, app.loader, hostname, app=app)
    state.reset_state()
