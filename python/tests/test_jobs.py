"""What a child says that runs many jobs at once, and what reaches one of them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import _state, current_task
from celery.app import trace

from celeriac.host import jobs, pools, report
from celeriac.host.event_loop import LoopJobs
from celeriac.host.greenlets import GreenletJobs
from celeriac.host.threads import ThreadJobs

HOSTNAME = "tested@host"
DEADLINE = 20
POOLS: dict[str, type[jobs.Jobs]] = {
    pools.THREADS: ThreadJobs,
    pools.GEVENT: GreenletJobs,
    pools.ASYNCIO: LoopJobs,
}
_ORDER = struct.Struct("<BBxxxxxxQ")


def define_functions(app: Any, pause: Any, notes: list[str]) -> None:
    @app.task(name="add", shared=False)
    def add(x, y):
        return x + y

    @app.task(name="fail", shared=False)
    def fail():
        raise ValueError("as asked")

    @app.task(name="wait_for", shared=False)
    def wait_for(note):
        """Until another task has left the note."""
        notes.append("waits")
        while note not in notes:
            pause(0.01)
        return [note, current_task.request.id]

    @app.task(name="leave_note", shared=False)
    def leave_note(note):
        notes.append(note)

    @app.task(name="survive", shared=False)
    def survive():
        notes.append("waits")
        try:
            while True:
                pause(0.01)
        except BaseException as exc:
            return type(exc).__name__

    @app.task(name="leave", shared=False)
    def leave():
        raise SystemExit(3)


def define_coroutines(app: Any, notes: list[str]) -> None:
    @app.task(name="add", shared=False)
    async def add(x, y):
        await asyncio.sleep(0)
        return x + y

    @app.task(name="fail", shared=False)
    async def fail():
        raise ValueError("as asked")

    @app.task(name="wait_for", shared=False)
    async def wait_for(note):
        notes.append("waits")
        while note not in notes:
            await asyncio.sleep(0.01)
        return [note, current_task.request.id]

    @app.task(name="leave_note", shared=False)
    async def leave_note(note):
        notes.append(note)

    @app.task(name="survive", shared=False)
    async def survive():
        notes.append("waits")
        try:
            await asyncio.sleep(3600)
        except BaseException as exc:
            return type(exc).__name__

    @app.task(name="leave", shared=False)
    async def leave():
        raise SystemExit(3)


class Child:
    """A child's loop in a thread, and the parent's side of its channel."""

    def __init__(self, app: Any, kind: str, notes: list[str]) -> None:
        self.kind = kind
        self.notes = notes
        self._ours, self._childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(DEADLINE)
        self._jobs = 0
        self.status: int | None = None

        def live() -> None:
            self.status = POOLS[kind](app, self._childs).serve()

        self._thread = threading.Thread(target=live, daemon=True)
        self._thread.start()

    def send(self, task: str, *args: Any, body: bytes | None = None, in_file: bool = False) -> int:
        self._jobs += 1
        request: dict[str, Any] = {"task": task, "id": f"id-{self._jobs}", "celeriac": None}
        request.update(delivery_info={}, hostname=HOSTNAME, timelimit=[None, None], retries=0)
        text = json.dumps(request).encode()
        raw = json.dumps([args, {}, {}]).encode() if body is None else body
        flags = report.WANTS_RESULT | (jobs.IN_FILE if in_file else 0)
        head = jobs.JOB_HEAD.pack(jobs.JOB, flags, 0, len(text), self._jobs)
        if in_file:
            fd = os.memfd_create("body")
            os.write(fd, text + raw)
            os.lseek(fd, 0, os.SEEK_SET)
            socket.send_fds(self._ours, [head], [fd])
            os.close(fd)
        else:
            self._ours.send(head + text + raw)
        assert self.started() == [self._jobs]
        return self._jobs

    def order(self, kind: int, job: int, limit: int = 0) -> None:
        self._ours.send(_ORDER.pack(kind, limit, job))

    def started(self) -> list[int]:
        message = self._ours.recv(65536)
        assert message[0] == jobs.STARTED, message
        return [number for (number,) in struct.iter_unpack("<Q", message[8:])]

    def done(self) -> tuple[int, int, bytes]:
        message = self._ours.recv(192 * 1024)
        kind, outcome, job, _ = report._DONE.unpack_from(message)
        assert kind == report.DONE
        return outcome, job, message[report._DONE.size :]

    def wait_for_note(self, note: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while note not in self.notes:
            assert time.monotonic() < deadline, self.notes
            time.sleep(0.01)

    def leave(self) -> int | None:
        self._ours.send(bytes([jobs.LEAVE]))
        self._thread.join(DEADLINE)
        return self.status

    def close(self) -> None:
        self._ours.close()


@pytest.fixture(params=POOLS)
def child(request: pytest.FixtureRequest, app: Any) -> Iterator[Child]:
    app.conf.result_backend = "cache+memory://"
    notes: list[str] = []
    if request.param == pools.ASYNCIO:
        define_coroutines(app, notes)
    else:
        define_functions(app, gevent.sleep if request.param == pools.GEVENT else time.sleep, notes)
    ident = _state._task_stack.__ident_func__
    trace.setup_worker_optimizations(app, HOSTNAME)
    for task in app.tasks.values():
        # Built when it is first called, as in a child.
        task.__trace__ = build_late(app, task)
    begun = Child(app, request.param, notes)
    yield begun
    assert begun.leave() == 0
    begun.close()
    trace.reset_worker_optimizations(app)
    _state._task_stack.__ident_func__ = ident


def build_late(app: Any, task: Any) -> Any:
    def build_and_call(*job: Any, **options: Any) -> Any:
        task.__trace__ = trace.build_tracer(task.name, task, app.loader, HOSTNAME, app=app)
        return task.__trace__(*job, **options)

    return build_and_call


def test_jobs_begin_and_end(child):
    number = child.send("add", 1, 2)
    assert child.done() == (report.SUCCESS, number, b"3")
    number = child.send("add", 2, 3, in_file=True)
    assert child.done() == (report.SUCCESS, number, b"5")
    outcome, number, detail = child.send("fail") and child.done()
    assert (outcome, json.loads(detail)["exception"]) == (report.FAILURE, "ValueError('as asked')")


def test_jobs_run_at_the_same_time_and_know_themselves(child):
    waits = child.send("wait_for", "note")
    child.send("leave_note", "note")
    ended = dict(child.done()[1:] for _ in range(2))
    assert eval(ended[waits]) == ["note", f"id-{waits}"]


def test_a_soft_limit_reaches_its_own_job_alone(child):
    first, second = child.send("survive"), child.send("wait_for", "end")
    while child.notes.count("waits") < 2:
        child.wait_for_note("waits")
    child.order(jobs.SOFT_LIMIT, first)
    assert child.done() == (report.SUCCESS, first, b"'SoftTimeLimitExceeded'")
    # It is over, and what comes late hits nobody.
    child.order(jobs.SOFT_LIMIT, first)
    child.order(jobs.TERMINATE, first)
    third = child.send("add", 1, 1)
    assert child.done() == (report.SUCCESS, third, b"2")
    child.notes.append("end")
    assert child.done()[:2] == (report.SUCCESS, second)


@pytest.mark.parametrize(
    "limit, exception", [(jobs.MEMORY, b"'SoftMemoryLimitExceeded'"), (jobs.SHUTDOWN, None)]
)
def test_limits_have_their_own_exceptions(child, limit, exception):
    number = child.send("survive" if exception else "wait_for", *(() if exception else ("never",)))
    child.wait_for_note("waits")
    child.order(jobs.SOFT_LIMIT, number, limit)
    outcome, number, detail = child.done()
    if exception:
        assert (outcome, detail) == (report.SUCCESS, exception)
    else:
        assert outcome == report.REJECT
        details = json.loads(detail.partition(b"\0")[0])
        assert details["requeue"] is True


def test_one_job_is_ended(child):
    number = child.send("wait_for", "never")
    child.wait_for_note("waits")
    child.order(jobs.TERMINATE, number)
    assert child.done() == (report.TERMINATED, number, b"")


def test_an_order_that_comes_with_its_job_is_not_lost(child):
    """Before it has begun, there is nothing to raise an exception in."""
    number = child.send("wait_for", "never")
    child.order(jobs.TERMINATE, number)
    assert child.done() == (report.TERMINATED, number, b"")


def test_who_survives_its_end_has_ended_as_it_did(child):
    number = child.send("survive")
    child.wait_for_note("waits")
    child.order(jobs.TERMINATE, number)
    outcome, _, detail = child.done()
    assert outcome == report.SUCCESS
    names = {"threads": "Terminated", "gevent": "GreenletExit", "asyncio": "CancelledError"}
    assert detail.decode() == repr(names[child.kind])


def test_a_task_that_wants_to_exit_takes_nobody_along(child):
    waits = child.send("wait_for", "end")
    child.send("leave")
    assert child.done()[0] == report.LEFT
    child.notes.append("end")
    assert child.done()[:2] == (report.SUCCESS, waits)


def test_what_can_not_be_opened_is_told(child):
    child.send("add", body=b"{[")
    assert child.done()[0] == report.UNDECODABLE
    child.send("add", body=b"[1]")
    assert child.done()[0] == report.INVALID


def test_the_exceptions_of_limits():
    assert isinstance(jobs.soft_limit(0), SoftTimeLimitExceeded)
