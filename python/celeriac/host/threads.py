"""The pool ``threads``: each task in a thread of one child.

A soft limit, or the end of a task, is an exception that the interpreter raises in the task's thread
when that next executes Python code: not while it waits in C code, as in ``time.sleep`` or for a
lock. Celery's counterpart, which knows neither: ``celery.concurrency.thread``.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celeriac.host import report
from celeriac.host.jobs import Job, Jobs, current

#: More than the parent ever has run at once. A thread is only started where none is idle.
_MOST_THREADS = 100_000

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
#: A null pointer: what is to be raised in a thread is not raised any more.
_NOTHING = ctypes.py_object()


class ThreadJobs(Jobs):
    def __init__(self, app: Any, channel: Any) -> None:
        super().__init__(app, channel)
        self._executor = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="ThreadPoolWorker")
        #: Held where it must not change which job a thread runs.
        self._lock = threading.Lock()

    def serve(self) -> int:
        while (status := self.read(flags=0)) is None:
            pass
        return status

    def begin(self, job: Job) -> None:
        self._executor.submit(self.or_die, self._live, job)

    def throw(self, job: Job, exception: BaseException) -> None:
        with self._lock:
            if job.handle is not None:
                # The interpreter makes an instance of it, in the thread.
                _set_async_exc(job.handle, _class_of(exception))
            elif job.number in self._running:
                job.raises = exception

    def _live(self, job: Job) -> None:
        """Runs a job in this thread, and tells of its end."""
        ending: report.Report | None = None
        token = current.set(job)
        late: BaseException | None = None
        try:
            try:
                ending = self._perform_here(job)
            finally:
                self._leave(job)
        except BaseException as exc:
            # It came so late, or so early, that no code of the task's was there to catch it.
            late = exc
            self._leave(job)
        if ending is None:
            ending = self._ending_of(job, late)
        current.reset(token)
        self.end(job, ending)

    def _perform_here(self, job: Job) -> report.Report:
        with self._lock:
            job.handle = threading.get_ident()
            early, job.raises = job.raises, None
            if early is not None:
                _set_async_exc(job.handle, _class_of(early))
        return self.perform(job)

    def _leave(self, job: Job) -> None:
        """From here on nothing is raised in this thread on account of a job."""
        with self._lock:
            job.handle = None
            _set_async_exc(threading.get_ident(), _NOTHING)

    def _ending_of(self, job: Job, exc: BaseException | None) -> report.Report:
        if job.is_terminated or exc is None:
            return report.TERMINATED, None, b""
        try:
            raise exc
        except BaseException as raised:
            return report.raised(raised, job.flags)


def _class_of(exception: BaseException) -> type[BaseException]:
    from celeriac.host.interrupted import Interrupted

    if not isinstance(exception, Interrupted):
        return type(exception)

    class ThreadInterrupted(Interrupted):
        def __init__(self) -> None:
            super().__init__("the worker is shutting down", requeue=True)

    ThreadInterrupted.__name__ = ThreadInterrupted.__qualname__ = Interrupted.__name__
    return ThreadInterrupted
