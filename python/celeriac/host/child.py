"""A child of the pool: runs tasks through Celery's own tracer, one after the other, or many at once
(:mod:`.jobs`).

Its channel is a SOCK_SEQPACKET socket, so that each job is one message which exactly one process
takes: the parent can take back a job that the child has not begun by reading it itself.

To the child: a job (:data:`.jobs.JOB`) or the order to leave (:data:`.jobs.LEAVE`). From it:
:data:`UP` once it can work, then :data:`.report.DONE` for each job. That a job has begun needs no
message: the parent knows that a child with nothing else to do begins at once.

Celery's counterparts: ``billiard.pool.Worker`` and ``celery.concurrency.prefork``. Counterpart in
Rust: ``crates/celeriac-pool/src/prefork/frame.rs``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from typing import Any, NoReturn

import billiard.pool
from billiard.common import terminate_handler_fired
from billiard.context import ForkProcess

from celeriac.host import body, jobs, pools, processes, report
from celeriac.host.last_words import LastWords

# -- the messages ------------------------------------------------------------------------------

UP = 1
#: On the page: the job that a soft limit is meant for, and which limit it is: 0 for that of time.
_SOFT_LIMIT = struct.Struct("<QB")

#: The child leaves after this job.
LAST = 2
#: Exit status of a child that leaves because its number of tasks is reached, as billiard's.
EX_RECYCLE = 0x9B


def install_workloop() -> None:
    """Puts the loop below where billiard has its own.

    Before the app is imported: packages such as sentry-sdk wrap ``Worker.workloop`` to flush when
    a child ends, and must wrap this one.
    """
    billiard.pool.Worker.workloop = _workloop


def run(
    worker: Any, zygote: int, number: int, index: int, pool: str, channel: int, page: int
) -> NoReturn:
    """Lives the life of a child of such a pool; called in the forked process."""
    code = 1
    try:
        processes.set_name("celeriac:child")
        processes.die_with_parent(zygote)
        processes.leave_death_to_us()
        # Programs that a task starts have no business with the channel.
        os.set_inheritable(channel, False)
        pools.after_fork()
        pool_worker = _WORKERS.get(pool, _PoolWorker)(worker, channel, page)
        process = _PoolProcess(number, index, pool_worker)
        code = process._bootstrap()
    finally:
        os._exit(code)


class _PoolProcess(ForkProcess):  # type: ignore[misc]
    """The process object that billiard, logging and Celery's debugger ask for name and index."""

    def __init__(self, number: int, index: int, pool_worker: _PoolWorker) -> None:
        super().__init__(name=f"ForkPoolWorker-{number}", daemon=True)
        self.index = index
        self._pool_worker = pool_worker

    def run(self) -> None:
        self._pool_worker()


class _PoolWorker(billiard.pool.Worker):  # type: ignore[misc]
    """billiard's worker over this module's channel: same signals, same hooks, same exit."""

    def __init__(self, worker: Any, channel: int, page: int) -> None:
        super().__init__(
            None,
            None,
            initializer=self.initialize,
            initargs=(worker.app, worker.hostname),
            on_exit=self.on_process_exit,
            sigprotection=None,
        )
        self.app = worker.app
        # One whose calls wait in the kernel, whatever gevent has made of sockets.
        self.channel = pools.original("socket", "socket")(fileno=channel)
        self.current_job = 0
        self._page = mmap.mmap(page, mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._last_words = LastWords(page, self.job_that_writes)
        os.close(page)

    def initialize(self, app: Any, hostname: str) -> None:
        _initialize(app, hostname)

    def on_process_exit(self, pid: int, exitcode: int) -> None:
        from celery.concurrency.prefork import process_destructor

        process_destructor(pid, exitcode)

    def job_that_writes(self) -> int:
        return self.current_job

    def take_jobs(self) -> int:
        """Takes jobs until told to leave; answers with the exit status."""
        return _take_one_by_one(self)

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
            raise jobs.soft_limit(limit)

    def _do_exit(self, pid: int, exitcode: Any, exc: Any = None) -> NoReturn:
        if exitcode is None:
            exitcode = 1 if exc else 0
        try:
            self.on_exit(pid, exitcode)
            processes.flush_standard_streams()
        finally:
            os._exit(exitcode)


class _SoloWorker(_PoolWorker):
    def on_process_exit(self, pid: int, exitcode: int) -> None:
        # celery.concurrency.solo sends worker_process_init, and nothing at its end.
        pass


class _SharedWorker(_PoolWorker):
    """A child that runs many jobs at once."""

    joins_block = True

    def initialize(self, app: Any, hostname: str) -> None:
        with _late_tracers():
            jobs.initialize(app, hostname, self.joins_block)

    def on_process_exit(self, pid: int, exitcode: int) -> None:
        # Celery's own pools of this kind have no processes of which one could end.
        pass

    def after_fork(self) -> None:
        super().after_fork()
        signal.signal(signal.SIGTERM, jobs.exit_at_once)
        # Soft limits come as messages here.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def job_that_writes(self) -> int:
        return jobs.current_number()

    def take_jobs(self) -> int:
        return self.make_jobs().serve()

    def make_jobs(self) -> jobs.Jobs:
        raise NotImplementedError


class _ThreadsWorker(_SharedWorker):
    def make_jobs(self) -> jobs.Jobs:
        from celeriac.host.threads import ThreadJobs

        return ThreadJobs(self.app, self.channel)


class _GeventWorker(_SharedWorker):
    # As celery.concurrency.gevent has it: a greenlet that waits holds up nobody.
    joins_block = False

    def make_jobs(self) -> jobs.Jobs:
        from celeriac.host.greenlets import GreenletJobs

        return GreenletJobs(self.app, self.channel)


class _AsyncioWorker(_SharedWorker):
    # Celery has no such pool. A process of this one is a pool's process, and has what an app opens
    # and closes with one.
    def initialize(self, app: Any, hostname: str) -> None:
        _initialize(app, hostname)

    def on_process_exit(self, pid: int, exitcode: int) -> None:
        _PoolWorker.on_process_exit(self, pid, exitcode)

    def make_jobs(self) -> jobs.Jobs:
        from celeriac.host.event_loop import LoopJobs

        return LoopJobs(self.app, self.channel)


_WORKERS: dict[str, type[_PoolWorker]] = {
    pools.SOLO: _SoloWorker,
    pools.THREADS: _ThreadsWorker,
    pools.GEVENT: _GeventWorker,
    pools.ASYNCIO: _AsyncioWorker,
}


def _initialize(app: Any, hostname: str) -> None:
    """Celery's own initializer."""
    from celery.concurrency.prefork import process_initializer

    with _late_tracers():
        process_initializer(app, hostname)


@contextlib.contextmanager
def _late_tracers() -> Iterator[None]:
    """Has a task's tracer be built when the task first runs: most of a large app's tasks never run
    in one child."""
    from celery.app import trace

    # Or what a package has put in its place.
    build = trace.build_tracer

    def build_when_called(name: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        def build_and_call(*job: Any, **options: Any) -> Any:
            task.__trace__ = build(name, task, *args, **kwargs)
            return task.__trace__(*job, **options)

        return build_and_call

    trace.build_tracer = build_when_called
    try:
        yield
    finally:
        # A receiver of worker_process_init may have put its own there.
        if trace.build_tracer is build_when_called:
            trace.build_tracer = build


# -- the loop ----------------------------------------------------------------------------------


def _workloop(self: Any, debug: Any = None, now: Any = None, pid: int | None = None) -> int:
    """Takes jobs until told to leave. Runs as ``billiard.pool.Worker.workloop``."""
    status: int = self.take_jobs()
    return status


def _take_one_by_one(self: Any) -> int:
    from celery.app import trace

    channel = self.channel
    receive = channel.recvmsg
    send = channel.send
    unpack_job = jobs.JOB_HEAD.unpack_from
    offset = jobs.JOB_HEAD.size
    decode = body.Decoder(self.app).decode
    run_task = trace.fast_trace_task
    read_request = body.read_request
    while True:
        message, ancillary, _, _ = receive(jobs.RECEIVE_BYTES, jobs.ANCILLARY_BYTES)
        if not message:
            return 1  # the parent is gone
        if message[0] != jobs.JOB:
            return 0
        _, flags, _, request_length, job = unpack_job(message)
        self.current_job = job
        leave = None
        ending: report.Report
        try:
            try:
                content = jobs.read_file(ancillary) if flags & jobs.IN_FILE else message[offset:]
                request = read_request(content[:request_length])
                arguments = decode(content[request_length:], request)
            except body.Undecodable as exc:
                ending = report.undecodable(exc.reason)
            except body.Invalid as exc:
                ending = report.invalid(exc)
            else:
                failed, value, runtime = run_task(
                    request["task"], request["id"], request, arguments, None, None
                )
                # From here on it is too late for the soft time limit.
                self.current_job = 0
                if failed:
                    ending = report.returned(value, runtime, flags)
                else:
                    ending = report.succeeded(value, runtime, flags)
        except BaseException as exc:
            self.current_job = 0
            if terminate_handler_fired():
                # Killed on the parent's behalf: the job has no outcome.
                raise
            ending = report.raised(exc, flags)
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                leave = exc
        self.current_job = 0
        send(report.message(job, ending))
        if leave is not None:
            raise leave
        if flags & LAST:
            return EX_RECYCLE
        # Nothing of the last job may live on until the next one comes.
        del message, ancillary, ending
        arguments = content = value = None
        request = {}
