"""One suite for all pools: what a task, its limits and the end of its process mean in each."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from celery.result import allow_join_result

from harness import workers
from harness.wait import wait_until

POOLS = ("prefork", "solo", "threads", "gevent", "asyncio")
#: Those whose children run many tasks at once.
SHARED = ("threads", "gevent", "asyncio")
CONCURRENCY = 8
DEADLINE = 20


@dataclass
class Pool:
    """A worker with a pool of one kind, and the tasks for it."""

    kind: str
    app: ModuleType
    place: Any
    worker: workers.Worker

    def task(self, name: str) -> Any:
        """A function, or the coroutine that does the same where coroutines are run."""
        return getattr(self.app, f"{name}_async" if self.kind == "asyncio" else name)

    def get(self, result: Any) -> Any:
        return result.get(timeout=DEADLINE)

    def notes(self) -> list[str]:
        lines: list[str] = self.place.lines()
        return lines

    def wait_for_note(self, note: str, times: int = 1) -> None:
        wait_until(
            lambda: self.notes().count(note) >= times,
            f"{note!r} is noted {times} times",
            DEADLINE,
            lambda: f"{self.notes()}\n{self.worker.log}",
        )

    def inspect(self) -> Any:
        return self.app.app.control.inspect([self.worker.node], timeout=DEADLINE, limit=1)

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.inspect().stats()[self.worker.node]["pool"]
        return answer


def concurrency(kind: str) -> int:
    return 1 if kind == "solo" else CONCURRENCY


@pytest.fixture(scope="module", params=POOLS)
def shared(request, redis_server, tmp_path_factory, shared_start, shared_client) -> Iterator[Pool]:
    """One worker for all tests that leave its processes alone."""
    from conftest import place_on_redis

    place = place_on_redis(redis_server, tmp_path_factory.mktemp(request.param))
    app = shared_client(place, "pooled")
    worker = shared_start(place, "-P", request.param, "-c", str(CONCURRENCY), app="pooled")
    yield Pool(request.param, app, place, worker)
    assert worker.stop() == 0
    assert not worker.leftovers()


@pytest.fixture
def begin(redis_place, start, client) -> Callable[..., Pool]:
    """Starts a worker of the test's own."""

    def begin(kind: str, *arguments: str, **settings: Any) -> Pool:
        redis_place.settings = settings
        app = client(redis_place, "pooled")
        worker = start(redis_place, "-P", kind, *arguments, app="pooled")
        return Pool(kind, app, redis_place, worker)

    return begin


def each(kinds: tuple[str, ...] = POOLS) -> Any:
    return pytest.mark.parametrize("kind", kinds)


# -- tasks -----------------------------------------------------------------------------------------


def test_success_failure_and_retries(shared):
    assert shared.get(shared.task("add").delay(1, 2)) == 3
    with pytest.raises(ValueError, match="as asked"):
        shared.get(shared.task("fail").delay())
    assert shared.get(shared.task("retry").delay()) == 1
    assert shared.get(shared.task("autoretry").delay()) == 1


def test_functions_run_in_every_pool(shared):
    """Also where coroutines do."""
    assert shared.get(shared.app.add.delay(1, 2)) == 3
    assert shared.get(shared.app.retry.delay()) == 1


def test_chains_and_chords(shared):
    add, total = shared.task("add"), shared.task("total")
    assert shared.get(chain(add.s(1, 1), add.s(2), add.s(3)).apply_async()) == 7
    header = group(add.s(n, n) for n in range(6))
    assert shared.get(chord(header, total.s()).apply_async()) == 30
    with pytest.raises(ValueError, match="as asked"):
        shared.get(chain(shared.task("fail").s(), add.si(1, 1)).apply_async().parent)


def test_each_of_many_tasks_knows_itself(shared):
    results = [shared.task("who").delay() for _ in range(40)]
    for result in results:
        looks = shared.get(result)
        expected = [result.id, result.id, result.id, shared.task("who").name]
        assert all(look == expected for look in looks), (result.id, looks)


def test_signals_and_log_lines(shared):
    result = shared.task("told").delay()
    shared.get(result)
    shared.wait_for_note("postrun True SUCCESS")
    assert "prerun True" in shared.notes()
    shared.worker.wait_for(f"{shared.task('told').name}[{result.id}]: it says so")
    shared.worker.wait_for(f"{shared.task('told').name}[{result.id}] succeeded in ")


def test_results_are_waited_for_as_celery_allows(shared):
    waits = shared.app.waits_for_another
    if shared.kind == "gevent":
        assert shared.get(waits.delay()) == 5
    else:
        with pytest.raises(RuntimeError, match=r"Never call result\.get"):
            shared.get(waits.delay())
    if shared.kind != "solo":
        # One at a time can't be waited for.
        assert shared.get(shared.app.waits_for_another_as_told.delay()) == 5


def test_the_soft_limit_can_be_caught(shared):
    limited = shared.task("catch").apply_async((30,), soft_time_limit=0.3)
    assert shared.get(limited) == "caught"
    with pytest.raises(SoftTimeLimitExceeded):
        shared.get(shared.task("nap").apply_async((30,), soft_time_limit=0.3))


def test_stats_name_the_pool(shared):
    implementation = {
        "prefork": "celery.concurrency.prefork:TaskPool",
        "solo": "celery.concurrency.solo:TaskPool",
        "threads": "celery.concurrency.thread:TaskPool",
        "gevent": "celery.concurrency.gevent:TaskPool",
        "asyncio": "celeriac.host.pools:AsyncioPool",
    }
    stats = shared.stats()
    assert stats["implementation"] == implementation[shared.kind]
    assert stats["max-concurrency"] == concurrency(shared.kind)
    shown = f"concurrency: {CONCURRENCY} ({shared.kind})"
    assert shown in shared.worker.log


def test_main_answers_for_the_app(shared):
    conf = shared.inspect().conf()[shared.worker.node]
    assert conf["result_backend"] == shared.app.app.conf.result_backend


def test_an_app_is_told_of_processes_as_by_celery(shared):
    told = "worker_process_init" in shared.notes()
    assert told == (shared.kind not in ("threads", "gevent"))


def test_all_running_tasks_are_shown_and_one_is_terminated_alone(shared):
    count = concurrency(shared.kind)
    naps = [shared.task("nap").delay(600, f"shown{n}") for n in range(count)]
    for n in range(count):
        shared.wait_for_note(f"begin shown{n}")
    active = shared.inspect().active()[shared.worker.node]
    assert {task["id"] for task in active} == {nap.id for nap in naps}
    for nap in naps:
        nap.revoke(terminate=True)
        with pytest.raises(TaskRevokedError, match="terminated"):
            shared.get(nap)
    wait_until(lambda: not shared.inspect().active()[shared.worker.node], "nothing runs", DEADLINE)


# -- limits that cost a process --------------------------------------------------------------------


@each()
def test_the_hard_limit_ends_a_task_that_can_be_ended(kind, begin):
    pool = begin(kind, "-c", str(concurrency(kind)))
    with pytest.raises(TimeLimitExceeded):
        pool.get(pool.task("nap").apply_async((600, "limited"), time_limit=0.5))
    assert pool.get(pool.task("add").delay(1, 2)) == 3


@each(SHARED)
def test_neighbors_survive_the_hard_limit_of_a_task_that_can_be_ended(kind, begin):
    pool = begin(kind, "-c", "4")
    neighbor = pool.task("nap").delay(3, "neighbor")
    pool.wait_for_note("begin neighbor")
    children = pool.worker.children()
    with pytest.raises(TimeLimitExceeded):
        pool.get(pool.task("nap").apply_async((600, "limited"), time_limit=0.5))
    assert pool.get(neighbor) == "neighbor"
    assert pool.worker.children() == children


@each(SHARED)
def test_a_child_is_killed_for_a_task_that_blocks_it(kind, begin):
    """What was acknowledged late runs again, and that is no attempt of its own; what was
    acknowledged early is lost."""
    pool = begin(kind, "-c", "4", celeriac_max_deaths=1)
    late = pool.task("late_nap").delay(4, "late")
    early = pool.task("nap").delay(600, "early")
    pool.wait_for_note("begin late")
    pool.wait_for_note("begin early")
    blocking = pool.task("block").apply_async((600,), time_limit=0.5)
    with pytest.raises(TimeLimitExceeded):
        pool.get(blocking)
    with pytest.raises(WorkerLostError, match="killed for another of its tasks"):
        pool.get(early)
    assert pool.get(late) == "late"
    assert pool.notes().count("begin late") == 2
    assert pool.notes().count("end late") == 1


@each()
def test_a_killed_child_is_replaced_and_late_tasks_run_again(kind, begin):
    pool = begin(
        kind, "-c", str(concurrency(kind)), task_reject_on_worker_lost=True,
    )  # fmt: skip
    late = pool.task("late_nap").delay(2, "late")
    pool.wait_for_note("begin late")
    for child in pool.worker.children():
        os.kill(child, signal.SIGKILL)
    assert pool.get(late) == "late"
    assert pool.notes().count("begin late") == 2
    with pytest.raises(WorkerLostError, match="signal 9"):
        pool.get(pool.task("die").delay())


# -- many, and the end -----------------------------------------------------------------------------


@each(SHARED)
def test_two_thousand_tasks_that_wait(kind, begin):
    pool = begin(kind, "-c", "512")
    with pool.app.app.producer_or_acquire() as producer:
        results = [pool.task("io").apply_async((0.5,), producer=producer) for _ in range(2000)]
    backend = pool.app.app.backend.client

    def missing() -> int:
        keys = [pool.app.app.backend.get_key_for_task(result.id) for result in results]
        return sum(value is None for value in backend.mget(keys))

    wait_until(lambda: missing() == 0, "all are done", 60, lambda: pool.worker.log[-4000:])
    keys = [pool.app.app.backend.get_key_for_task(result.id) for result in results]
    states = {json.loads(value)["status"] for value in backend.mget(keys)}
    assert states == {"SUCCESS"}


@each()
def test_a_warm_shutdown_waits_for_all_tasks(kind, begin):
    pool = begin(kind, "-c", str(concurrency(kind)))
    names = [f"warm{n}" for n in range(concurrency(kind))]
    naps = [pool.task("nap").delay(1.5, name) for name in names]
    for name in names:
        pool.wait_for_note(f"begin {name}")
    assert pool.worker.stop() == 0
    assert [pool.get(nap) for nap in naps] == names
    assert not pool.worker.leftovers()


@each()
def test_a_cold_shutdown_waits_for_none(kind, begin):
    pool = begin(kind, "-c", str(concurrency(kind)))
    late = pool.task("late_nap").delay(600, "late")
    pool.wait_for_note("begin late")
    pool.worker.stop(signal.SIGQUIT)
    assert not pool.worker.leftovers()
    assert late.state == "PENDING"


@each(SHARED)
def test_a_child_is_replaced_after_so_many_tasks(kind, begin):
    pool = begin(kind, "-c", "4", "--max-tasks-per-child", "10")
    first = pool.worker.children()
    for result in [pool.task("add").delay(n, n) for n in range(25)]:
        pool.get(result)
    wait_until(lambda: len(pool.worker.children()) == 1, "one child is left", DEADLINE)
    assert pool.worker.children() != first


@each(("gevent", "asyncio"))
def test_a_pool_grows_and_shrinks(kind, begin):
    pool = begin(kind, "-c", "2")
    naps = [pool.task("nap").delay(600, f"grown{n}") for n in range(4)]
    for n in range(2):
        pool.wait_for_note(f"begin grown{n}")
    pool.app.app.control.pool_grow(2, destination=[pool.worker.node], reply=True)
    for n in range(4):
        pool.wait_for_note(f"begin grown{n}")
    assert pool.stats()["max-concurrency"] == 4
    assert len(pool.worker.children()) == 1
    pool.app.app.control.pool_shrink(3, destination=[pool.worker.node], reply=True)
    assert pool.stats()["max-concurrency"] == 1
    for nap in naps:
        nap.revoke(terminate=True)


# -- asyncio ---------------------------------------------------------------------------------------


def test_a_coroutine_awaits_another_task(begin):
    pool = begin("asyncio", "-c", "4")
    with allow_join_result():
        assert pool.get(pool.app.calls_another.delay()) == 3


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, settings, message",
    [
        (("-P", "eventlet"), {}, "use `--pool gevent`"),
        (("-P", "custom"), {}, "--pool asyncio"),
        (("-P", "fibers"), {}, "The pool 'fibers' is not available"),
        ((), {"worker_pool": "gevent"}, "--pool gevent"),
    ],
)
def test_a_pool_that_is_not_there_is_refused_with_a_remedy(
    arguments, settings, message, redis_place, start
):
    redis_place.settings = settings
    worker = start(redis_place, *arguments, app="pooled", ready=False)
    assert worker.wait() != 0
    assert message in worker.log, worker.log


def test_the_app_may_name_the_pool(redis_place, start, client):
    redis_place.settings = {"worker_pool": "asyncio"}
    app = client(redis_place, "pooled")
    worker = start(redis_place, "-c", "3", app="pooled")
    begun = time.monotonic()
    assert app.add_async.delay(1, 1).get(timeout=DEADLINE) == 2, time.monotonic() - begun
    assert "concurrency: 3 (asyncio)" in worker.log
