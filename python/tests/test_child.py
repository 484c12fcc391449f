"""What a child says of the jobs that it is given."""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app import trace
from celery.exceptions import Ignore, Reject

from celeriac.exceptions import SoftMemoryLimitExceeded
from celeriac.host import child, jobs, report
from celeriac.host.interrupted import Interrupted

HOSTNAME = "tested@host"
#: What the Rust parent receives with.
PARENTS_BUFFER = 192 * 1024


@pytest.fixture
def tasks(app):
    app.conf.result_backend = "cache+memory://"

    @app.task(name="add", shared=False)
    def add(x, y):
        return x + y

    @app.task(name="fail", shared=False)
    def fail(text, times=1):
        raise ValueError(text * times)

    @app.task(name="leave", shared=False)
    def leave(code):
        sys.exit(eval(code))

    @app.task(name="ignore", shared=False)
    def ignore():
        raise Ignore

    @app.task(name="reject", shared=False)
    def reject(requeue):
        raise Reject("not now", requeue=requeue)

    @app.task(name="retry", shared=False, bind=True)
    def retry(self):
        raise self.retry(exc=KeyError("k"), countdown=60)

    @app.task(name="interrupted", shared=False, autoretry_for=(Exception,))
    def interrupted():
        raise Interrupted("the worker is shutting down", requeue=True)

    # As Celery's process_initializer does.
    trace.setup_worker_optimizations(app, HOSTNAME)
    for name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(name, task, app.loader, HOSTNAME, app=app)
    yield app
    trace.reset_worker_optimizations(app)


class Parent:
    """The parent's side of a child's channel."""

    def __init__(self, app: Any) -> None:
        self._ours, self._childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._worker = SimpleNamespace(app=app, channel=self._childs, current_job=0)
        self._jobs = 0

    def send(
        self,
        task: str,
        *args: Any,
        flags: int = 0,
        body: bytes | None = None,
        file: bool = False,
        header: str = "null",
    ) -> int:
        self._jobs += 1
        request: dict[str, Any] = {
            "task": task,
            "id": f"id-{self._jobs}",
            "celeriac": None,
            "retries": 0,
        }
        request.update(delivery_info={}, hostname=HOSTNAME, timelimit=[None, None])
        text = f'{json.dumps(request)[:-1]}, "header": {header}}}'.encode()
        raw = json.dumps([args, {}, {}]).encode() if body is None else body
        flags |= jobs.IN_FILE if file else 0
        head = jobs.JOB_HEAD.pack(jobs.JOB, flags, 0, len(text), self._jobs)
        if file:
            fd = os.memfd_create("body")
            os.write(fd, text + raw)
            os.lseek(fd, 0, os.SEEK_SET)
            socket.send_fds(self._ours, [head], [fd])
            os.close(fd)
        else:
            self._ours.send(head + text + raw)
        return self._jobs

    def run(self) -> int:
        """Has the child do what was sent, and leave."""
        self._ours.send(bytes([jobs.LEAVE]))
        return child._take_one_by_one(self._worker)

    def done(self) -> tuple[int, int, float, bytes]:
        message = self._ours.recv(PARENTS_BUFFER, socket.MSG_DONTWAIT)
        kind, outcome, job, seconds = report._DONE.unpack_from(message)
        assert kind == report.DONE
        return outcome, job, seconds, message[report._DONE.size :]

    def close(self) -> None:
        self._ours.close()
        self._childs.close()


@pytest.fixture
def parent(tasks):
    made = Parent(tasks)
    yield made
    made.close()


def test_jobs_are_done_in_order_until_the_child_is_told_to_leave(parent):
    jobs = [parent.send("add", n, 1, flags=report.WANTS_RESULT) for n in range(3)]
    assert parent.run() == 0
    for n, job in enumerate(jobs):
        outcome, number, seconds, detail = parent.done()
        assert (outcome, number, detail) == (report.SUCCESS, job, str(n + 1).encode())
        assert seconds >= 0


def test_a_result_that_nobody_wants_is_not_sent(parent):
    parent.send("add", 1, 1)
    parent.run()
    assert parent.done()[3] == b""


def test_a_body_may_come_in_a_file(parent):
    parent.send("add", "x" * 500_000, "y", file=True, flags=report.WANTS_RESULT)
    parent.run()
    assert parent.done()[0] == report.SUCCESS


def test_a_child_leaves_after_its_last_job(parent):
    parent.send("add", 1, 1, flags=child.LAST)
    parent.send("add", 2, 2)
    assert parent.run() == child.EX_RECYCLE
    assert parent.done()[1] == 1
    with pytest.raises(BlockingIOError):
        parent.done()


def test_a_child_leaves_when_its_parent_is_gone(parent):
    parent._ours.close()
    assert child._take_one_by_one(parent._worker) == 1


def test_a_failure_comes_with_its_traceback_and_only_if_wanted_with_itself(parent):
    parent.send("fail", "boom")
    parent.send("fail", "boom", flags=report.WANTS_EXCEPTION)
    parent.run()
    outcome, _, _, detail = parent.done()
    assert outcome == report.FAILURE and b"\0" not in detail
    failure = json.loads(detail)
    assert failure["exception"] == "ValueError('boom')"
    assert failure["traceback"].rstrip().endswith("ValueError: boom")
    text, _, pickled = parent.done()[3].partition(b"\0")
    assert json.loads(text) == failure
    info = pickle.loads(pickled)
    assert isinstance(getattr(info.exception, "exc", info.exception), ValueError)


@pytest.mark.parametrize("text", ["x", "ü", "\U0001f40b", "\x01", '"', "\udcef"])
def test_a_failure_of_any_length_and_letters_reaches_the_parent(parent, text):
    parent.send("fail", text, 100_000, flags=report.WANTS_EXCEPTION)
    parent.send("add", 1, 1, flags=report.WANTS_RESULT)
    parent.run()
    outcome, _, _, detail = parent.done()
    assert outcome == report.FAILURE
    failure = json.loads(detail.partition(b"\0")[0].decode("utf-8"))
    assert failure["exception"].startswith("ValueError(")
    # A lone surrogate is valid neither as UTF-8 nor as JSON outside of Python.
    json.dumps(failure, ensure_ascii=False).encode("utf-8")
    assert parent.done()[3] == b"2"


@pytest.mark.parametrize(
    "code, status",
    [
        ("None", 0),
        ("3", 3),
        ("True", 1),
        ("-1", 255),
        ("2 ** 40 + 7", 7),
        ("'a reason'", 1),
    ],
)
def test_a_task_that_exits_says_so_before_the_child_ends(parent, code, status):
    parent.send("leave", code)
    with pytest.raises(SystemExit):
        parent.run()
    outcome, _, seconds, detail = parent.done()
    assert outcome == report.LEFT and math.isnan(seconds)
    found = json.loads(detail.partition(b"\0")[0])["status"]
    assert found == status and type(found) is int


@pytest.mark.parametrize("requeue", [True, False])
def test_a_rejection_says_whether_to_requeue(parent, requeue):
    parent.send("reject", requeue)
    parent.run()
    outcome, _, _, detail = parent.done()
    text, _, pickled = detail.partition(b"\0")
    assert outcome == report.REJECT
    assert json.loads(text)["requeue"] is requeue
    assert pickled


def test_an_ignored_task_has_no_failure(parent):
    parent.send("ignore")
    parent.run()
    outcome, _, _, detail = parent.done()
    assert (outcome, detail) == (report.IGNORE, b"{}")


@pytest.mark.parametrize("task, args", [("ignore", ()), ("reject", (True,)), ("retry", ())])
def test_what_is_no_failure_comes_with_the_exception_where_it_is_wanted(parent, task, args):
    parent.send(task, *args, flags=report.WANTS_EXCEPTION)
    parent.run()
    _, _, _, detail = parent.done()
    text, _, pickled = detail.partition(b"\0")
    assert json.loads(text)["traceback"].startswith("Traceback")
    info = pickle.loads(pickled)
    assert type(info.exception).__name__.lower() == task


def test_a_retry_names_its_reason(parent):
    parent.send("retry")
    parent.run()
    outcome, _, _, detail = parent.done()
    assert outcome == report.RETRY
    assert json.loads(detail)["exception"] == "KeyError('k')"


def test_a_tracer_that_raises_is_told_apart(parent, monkeypatch):
    def broken(*_: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(trace, "fast_trace_task", broken)
    parent.send("add", 1, 1)
    parent.run()
    outcome, _, seconds, detail = parent.done()
    assert outcome == report.RAISED and math.isnan(seconds)
    text, _, pickled = detail.partition(b"\0")
    assert json.loads(text)["exception"] == "OSError('full')"
    assert pickled


@pytest.mark.parametrize(
    "body, expected",
    [(b"{", report.UNDECODABLE), (b"\xff", report.UNDECODABLE), (b"[1]", report.INVALID)],
)
def test_a_body_that_is_no_tasks_is_told_apart_and_the_next_job_is_done(parent, body, expected):
    parent.send("add", body=body)
    parent.send("add", 1, 1)
    parent.run()
    outcome, _, _, detail = parent.done()
    assert outcome == expected
    assert json.loads(detail)["exception"]
    assert parent.done()[0] == report.SUCCESS


@pytest.mark.parametrize(
    "header",
    [
        '{"__type__": "datetime", "__value__": "never"}',
        '{"__type__": "no such type", "__value__": 1}',
        "[" * 20_000 + "]" * 20_000,
    ],
)
def test_a_request_that_cannot_be_read_is_undecodable_and_the_next_job_is_done(parent, header):
    parent.send("add", 1, 1, header=header)
    parent.send("add", 1, 1)
    parent.run()
    outcome, _, _, detail = parent.done()
    assert outcome == report.UNDECODABLE
    assert json.loads(detail)["exception"]
    assert parent.done()[0] == report.SUCCESS


def test_a_soft_limit_hits_its_own_job_alone(tasks):
    from billiard.exceptions import SoftTimeLimitExceeded

    page = bytearray(9)
    worker = SimpleNamespace(_page=page, current_job=5)

    def signal_for(job: int, limit: int) -> None:
        page[:] = job.to_bytes(8, sys.byteorder) + bytes([limit])
        child._PoolWorker._on_soft_limit(worker, 0, None)

    signal_for(4, 0)
    with pytest.raises(SoftMemoryLimitExceeded):
        signal_for(5, 1)
    for limit in (0, 2):
        with pytest.raises(SoftTimeLimitExceeded) as raised:
            signal_for(5, limit)
        assert isinstance(raised.value, Reject) is bool(limit)
        assert getattr(raised.value, "requeue", False) is bool(limit)
    worker.current_job = 0
    signal_for(0, 0)


def test_an_interrupted_job_is_to_run_again_and_has_no_result(parent):
    parent.send("interrupted")
    parent.run()
    outcome, _, _, detail = parent.done()
    assert outcome == report.REJECT
    text, _, pickled = detail.partition(b"\0")
    assert json.loads(text)["requeue"] is True
    assert isinstance(pickle.loads(pickled).exception, Interrupted)
