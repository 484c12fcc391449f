"""The pool ``asyncio``: ``async def`` tasks on the event loop of a child, others in its threads.

Celery's tracer calls a task and waits for what it returns. Here it runs in a greenlet of its own on
the loop's thread, and the coroutine's steps in that same greenlet: what the coroutine awaits is
handed to the loop, which goes on meanwhile. So everything around a task is Celery's and is called
as ever: signals, handlers, retries, canvas, whatever packages wrap around it.

What Celery knows of the current task belongs to the context of its coroutine, and so to the tasks
that this creates.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Coroutine, Generator
from typing import Any, Callable

from celeriac.host import body
from celeriac.host.jobs import Job, Terminated, current
from celeriac.host.threads import ThreadJobs


class LoopJobs(ThreadJobs):
    def __init__(self, app: Any, channel: Any) -> None:
        super().__init__(app, channel)
        self._loop = new_event_loop()
        self._left = self._loop.create_future()
        self._coroutines = {name for name, task in app.tasks.items() if await_in_greenlet(task)}
        know_current_task_by_context(app)

    def serve(self) -> int:
        asyncio.set_event_loop(self._loop)
        self._loop.add_reader(self.channel.fileno(), self._on_readable)
        status: int = self._loop.run_until_complete(self._left)
        self._loop.remove_reader(self.channel.fileno())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        return status

    def _on_readable(self) -> None:
        status = self.read()
        if status is not None and not self._left.done():
            self._left.set_result(status)

    def begin(self, job: Job) -> None:
        if self._is_coroutine(job):
            job.handle = self._loop.create_task(self._live_on_loop(job))
        else:
            super().begin(job)

    def _is_coroutine(self, job: Job) -> bool:
        try:
            return self.read_request(job)["task"] in self._coroutines
        except body.Undecodable:
            return False  # whoever runs it says so

    def throw(self, job: Job, exception: BaseException) -> None:
        if not isinstance(job.handle, asyncio.Task):
            super().throw(job, exception)
        elif not job.is_awaiting:
            # It is about to begin: a task that is cancelled before never does, and has no end.
            self._loop.call_later(0.01, self._throw_again, job, exception)
        else:
            job.raises = exception
            job.handle.cancel()

    def _throw_again(self, job: Job, exception: BaseException) -> None:
        if job.handle is not None:
            self.throw(job, exception)

    async def _live_on_loop(self, job: Job) -> None:
        current.set(job)
        await _InGreenlet(functools.partial(self.or_die, self._live_in_greenlet, job))

    def _live_in_greenlet(self, job: Job) -> None:
        self.end(job, self.perform(job))


class _InGreenlet:
    """Calls a function in a greenlet, in the context of the coroutine that awaits this. What the
    function awaits by :func:`_wait` is awaited by the coroutine."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def __await__(self) -> Generator[Any, Any, Any]:
        from greenlet import getcurrent, greenlet

        here = getcurrent()
        there = greenlet(self._function, here)
        there.gr_context = here.gr_context
        value = there.switch()
        while not there.dead:
            try:
                sent = yield value
            except BaseException as exc:
                value = there.throw(exc)
            else:
                value = there.switch(sent)
        return value


def _wait(job: Job, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns; called in a greenlet of :class:`_InGreenlet`."""
    from greenlet import getcurrent

    switch_to_loop = getcurrent().parent.switch
    job.is_awaiting = True
    try:
        step = functools.partial(coroutine.send, None)
        while True:
            awaited = step()
            try:
                sent = switch_to_loop(awaited)
            except asyncio.CancelledError as exc:
                step = functools.partial(coroutine.throw, _reason(job, exc))
            except BaseException as exc:
                step = functools.partial(coroutine.throw, exc)
            else:
                step = functools.partial(coroutine.send, sent)
    except StopIteration as stop:
        return stop.value
    finally:
        job.is_awaiting = False
        job.raises = None


def _reason(job: Job, cancelled: asyncio.CancelledError) -> BaseException:
    """Why a coroutine is cancelled: a soft limit's exception takes the place of the other."""
    exception, job.raises = job.raises, None
    if exception is None or isinstance(exception, Terminated):
        return cancelled
    # It is not being cancelled, as far as timeouts and task groups are to know.
    uncancel = getattr(job.handle, "uncancel", None)
    if uncancel is not None:
        uncancel()
    return exception


def await_in_greenlet(task: Any) -> bool:
    """Makes a task's call wait for its coroutine, if it is an ``async def``; tells whether it is.

    Only the tracer's call waits: a task that calls another one gets a coroutine, as it would
    anywhere else.
    """
    owner = type(task)
    if inspect.iscoroutinefunction(inspect.unwrap(owner.__call__)):
        owner.__call__ = _waiting(owner.__call__)
        return True
    # What add_autoretry_behaviour wraps is called last.
    name = "_orig_run" if hasattr(task, "_orig_run") else "run"
    run = getattr(task, name)
    if not inspect.iscoroutinefunction(inspect.unwrap(run)):
        return False
    cell = _pydantic_cell(run)
    if cell is not None:
        # What the function returns is validated where it is wrapped.
        cell.cell_contents = _waiting(cell.cell_contents)
    else:
        setattr(task, name, _waiting(run))
    return True


def _pydantic_cell(run: Any) -> Any:
    """Where ``celery.app.base.pydantic_wrapper`` has the function that it wraps."""
    function = getattr(run, "__func__", run)
    if not hasattr(function, "dump_arguments"):
        return None
    names = function.__code__.co_freevars
    return function.__closure__[names.index("task_fun")] if "task_fun" in names else None


def _waiting(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def run_and_wait(*args: Any, **kwargs: Any) -> Any:
        made = run(*args, **kwargs)
        job = current.get()
        if job is None or job.is_awaiting or not inspect.iscoroutine(made):
            return made
        return _wait(job, made)

    return run_and_wait


def know_current_task_by_context(app: Any) -> None:
    """Has Celery's stacks of tasks and requests be those of a context instead of a thread."""
    from celery import _state
    from celery.utils.threads import get_ident

    def ident() -> Any:
        return current.get() or get_ident()

    for stack in (_state._task_stack, *(task.request_stack for task in app.tasks.values())):
        stack.__ident_func__ = ident


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made
