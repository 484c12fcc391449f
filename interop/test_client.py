"""With Celery as client: every way to call a task, and every way a task can end."""

from __future__ import annotations

import datetime
import time

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.result import AsyncResult

from harness.wait import stays, wait_until

TIMEOUT = 20


@pytest.fixture
def calls(place, start, client):
    """A client, and a worker for it."""
    app = client(place)
    app.place = place
    app.worker = start(place, "-c", "2")
    return app


def states(result: AsyncResult) -> str:
    return str(result.state)


def test_a_result_comes_back(calls):
    assert calls.add.delay(2, 3).get(timeout=TIMEOUT) == 5
    assert calls.echo.delay(1, "zwölf", None, key=[1.5, {"a": True}]).get(timeout=TIMEOUT) == [
        [1, "zwölf", None],
        {"key": [1.5, {"a": True}]},
    ]


def test_a_task_is_called_by_its_name(calls):
    result = calls.app.send_task("basic.add", [1], {"y": 2})
    assert result.get(timeout=TIMEOUT) == 3


def test_the_request_is_what_celery_gives(calls):
    result = calls.about.apply_async(
        task_id="my-id",
        headers={"tenant": "acme"},
        expires=60,
        priority=4,
        time_limit=30,
        soft_time_limit=20,
        shadow="shown",
        retries=2,
        ignore_result=False,
    )
    about = result.get(timeout=TIMEOUT)
    assert (about["id"], about["root_id"], about["parent_id"]) == ("my-id", "my-id", None)
    assert about["task"] == "basic.about"
    assert about["retries"] == 2
    assert about["timelimit"] == [30, 20]
    assert about["shadow"] == "shown"
    assert about["headers"]["tenant"] == "acme"
    assert about["hostname"].startswith(calls.worker.name)
    assert about["correlation_id"] == "my-id"
    assert about["reply_to"] == calls.app.thread_oid
    assert about["delivery_info"]["routing_key"] == "celery"
    assert about["delivery_info"]["redelivered"] in (False, None)
    assert about["delivery_info"]["priority"] == 4
    assert about["expires"] is not None
    assert about["is_eager"] is False and about["called_directly"] is False
    assert about["pid"] in calls.worker.children()


@pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack", "pickle"])
@pytest.mark.parametrize("compression", [None, "gzip", "bzip2", "zlib"])
def test_every_serializer_and_compression(redis_place, start, client, serializer, compression):
    redis_place.settings = {
        "accept_content": ["json", "yaml", "msgpack", "pickle"],
        "task_serializer": serializer,
    }
    app = client(redis_place)
    start(redis_place, "-c", "1", variables={"C_FORCE_ROOT": "1"})
    text = "x" * 5000 + "ü"
    result = app.echo.apply_async([text], {"n": 1}, compression=compression)
    assert result.get(timeout=TIMEOUT) == [[text], {"n": 1}]


def test_large_arguments_and_results(calls):
    text = "ß" * 1_000_000
    assert calls.echo.delay(text).get(timeout=60) == [[text], {}]


@pytest.mark.parametrize("protocol", [1, 2])
def test_both_protocols(place, start, client, protocol):
    place.settings = {"task_protocol": protocol}
    app = client(place)
    start(place, "-c", "1")
    assert app.add.delay(4, 5).get(timeout=TIMEOUT) == 9
    result = app.add.apply_async((1, 1), link=app.add.s(10), countdown=0.1)
    assert result.get(timeout=TIMEOUT) == 2
    wait_until(lambda: result.children, "the callback was sent")
    assert result.children[0].get(timeout=TIMEOUT) == 12
    with pytest.raises(ValueError):
        app.fail.delay().get(timeout=TIMEOUT)


def test_countdown_and_eta(calls):
    began = time.time()
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
    results = [
        calls.add.apply_async((1, 1), countdown=1),
        calls.add.apply_async((1, 1), eta=soon),
    ]
    now = calls.add.delay(1, 1)
    assert now.get(timeout=TIMEOUT) == 2
    assert [result.get(timeout=TIMEOUT) for result in results] == [2, 2]
    assert time.time() - began >= 0.99


def test_an_expired_task_is_revoked(calls):
    result = calls.add.apply_async((1, 1), expires=-1)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    assert "Discarding revoked task: basic.add" in calls.worker.log


def test_a_task_that_expires_while_it_is_held_is_revoked(calls):
    result = calls.add.apply_async((1, 1), countdown=1, expires=0.5)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)


def test_a_failure_comes_back_with_its_traceback(calls):
    result = calls.fail.delay()
    with pytest.raises(ValueError, match="boom"):
        result.get(timeout=TIMEOUT)
    assert result.state == "FAILURE"
    assert result.result.args == ("boom", 42)
    assert "raise ValueError(text, 42)" in result.traceback
    calls.worker.wait_for("raised unexpected: ValueError('boom', 42)")


def test_a_failure_that_cannot_be_pickled(calls):
    result = calls.fail_strangely.delay()
    with pytest.raises(Exception, match="1-2"):
        result.get(timeout=TIMEOUT)


def test_retries(calls):
    result = calls.retry_until.delay(calls.place.file(), 3)
    assert result.get(timeout=TIMEOUT) == 2
    assert [line.split()[0] for line in calls.place.lines()] == ["0", "1", "2"]


def test_retries_with_backoff(calls):
    result = calls.retry_with_backoff.delay(calls.place.file())
    with pytest.raises(KeyError):
        result.get(timeout=TIMEOUT)
    times = [float(line) for line in calls.place.lines()]
    assert len(times) == 3
    assert times[1] - times[0] >= 0.99 and times[2] - times[1] >= 1.99


def test_ignore_leaves_no_result(calls):
    ignored, marker = calls.ignore.delay(), calls.add.delay(0, 0)
    marker.get(timeout=TIMEOUT)
    calls.worker.wait_for(f"{ignored.id}] ignored")
    assert ignored.state == "PENDING"


def test_reject_without_requeue_fails_the_task(calls):
    result = calls.reject.delay(calls.place.file(), False)
    with pytest.raises(Exception, match="no"):
        result.get(timeout=TIMEOUT)
    assert calls.place.lines() == ["run redelivered=False"] or calls.place.lines() == [
        "run redelivered=None"
    ]


def test_reject_with_requeue_runs_the_task_again(calls):
    result = calls.reject.delay(calls.place.file(), True)
    assert result.get(timeout=TIMEOUT) == "at last"
    assert len(calls.place.lines()) == 2


def test_a_soft_time_limit_is_raised_in_the_task(calls):
    result = calls.soft_limited.delay(30)
    assert result.get(timeout=TIMEOUT) == "soft"
    assert f"Soft time limit (1s) exceeded for basic.soft_limited[{result.id}]" in calls.worker.log


def test_a_hard_time_limit_ends_the_task(calls):
    result = calls.hard_limited.delay(30)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=TIMEOUT)
    calls.worker.wait_for(f"Hard time limit (1s) exceeded for basic.hard_limited[{result.id}]")
    assert calls.add.delay(1, 1).get(timeout=TIMEOUT) == 2


def test_the_limits_of_a_call_count_over_those_of_the_task(calls):
    with pytest.raises(TimeLimitExceeded):
        calls.sleep.apply_async((30,), time_limit=0.5).get(timeout=TIMEOUT)
    assert calls.hard_limited.apply_async((1.5,), time_limit=20).get(timeout=TIMEOUT) == "done"


def test_a_task_that_runs_again_after_its_time_limit(calls):
    result = calls.hard_limited_again.delay(calls.place.file())
    assert result.get(timeout=TIMEOUT) == "second"
    assert len(calls.place.lines()) == 2


def test_the_limits_of_the_worker(place, start, client):
    app = client(place)
    worker = start(place, "-c", "1", "--time-limit", "2", "--soft-time-limit", "1")
    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        app.sleep.delay(30).get(timeout=TIMEOUT)
    assert "Soft time limit (1.0s) exceeded" in worker.log


def test_a_lost_process_fails_its_task(calls):
    result = calls.die.delay()
    with pytest.raises(WorkerLostError, match=r"signal 9 \(SIGKILL\)"):
        result.get(timeout=TIMEOUT)
    assert calls.add.delay(1, 1).get(timeout=TIMEOUT) == 2
    assert "exited with 'signal 9 (SIGKILL)'" in calls.worker.log


def test_a_lost_task_that_may_run_again_does(calls):
    result = calls.die_once.delay(calls.place.file())
    assert result.get(timeout=TIMEOUT) == "survived"
    assert len(calls.place.lines()) == 2


def test_a_lost_task_that_may_not_run_again_fails(calls):
    result = calls.die_late.delay(calls.place.file())
    with pytest.raises(WorkerLostError):
        result.get(timeout=TIMEOUT)
    assert calls.place.lines() == ["run"]


def test_a_task_that_exits_is_lost(calls):
    result = calls.leave.delay(3)
    with pytest.raises(WorkerLostError, match="exitcode 3"):
        result.get(timeout=TIMEOUT)
    assert calls.add.delay(1, 1).get(timeout=TIMEOUT) == 2


def test_states_on_the_way(calls):
    tracked = calls.tracked.delay(2)
    wait_until(lambda: tracked.state == "STARTED", "it is started")
    assert tracked.info["hostname"].startswith(calls.worker.name)
    assert tracked.info["pid"] in calls.worker.children()
    progress = calls.progress.delay()
    wait_until(lambda: progress.state == "PROGRESS", "it makes progress")
    assert progress.info == {"done": 50}
    assert tracked.get(timeout=TIMEOUT) == progress.get(timeout=TIMEOUT) == "done"


def test_a_task_that_is_asked_to_abort_ends_by_itself(calls):
    result = calls.abortable.delay()
    wait_until(lambda: result.state == "STARTED", "it runs")
    result.abort()
    calls.worker.wait_for(f"Task {calls.__name__}.abortable[{result.id}] succeeded")
    assert result.get(timeout=TIMEOUT) == "cleaned up"


def test_results_that_are_not_wanted_are_not_stored(calls):
    results = [
        calls.ignored.delay(),
        calls.add.apply_async((1, 1), ignore_result=True),
        calls.ignored_but_errors.delay(),
    ]
    for result in results:
        calls.worker.wait_for(f"[{result.id}] ")
    wait_until(lambda: results[2].state == "FAILURE", "the error is stored")
    stays(lambda: [r.state for r in results[:2]] == ["PENDING"] * 2, "nothing is stored", 0.3)


def test_chains_groups_and_chords(calls):
    add, total = calls.add, calls.total
    assert chain(add.s(1, 1), add.s(2), add.s(3)).delay().get(timeout=TIMEOUT) == 7
    assert group(add.s(n, n) for n in range(5))().get(timeout=TIMEOUT) == [0, 2, 4, 6, 8]
    assert chord((add.s(n, n) for n in range(5)), total.s())().get(timeout=TIMEOUT) == 20
    assert calls.replace.delay(1).get(timeout=TIMEOUT) == 101
    nested = chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s())
    assert nested.delay().get(timeout=TIMEOUT) == 7


def test_a_chord_whose_header_is_lost_fails(calls):
    with pytest.raises(Exception, match=r"WorkerLost|ChordError|SIGKILL"):
        chord([calls.add.s(1, 1), calls.die.s()], calls.total.s())().get(timeout=TIMEOUT)


def test_errbacks_run_once(calls):
    calls.die.apply_async(link_error=calls.on_error.s())
    file = calls.place.folder / "on_error"
    wait_until(file.exists, "the errback ran")
    assert "WorkerLostError" in file.read_text()


@pytest.mark.parametrize(
    "what, expected",
    [
        ("ok", ["before_start", "on_success ok", "after_return SUCCESS"]),
        ("fail", ["before_start", "on_failure ValueError('no')", "after_return FAILURE"]),
        (
            "retry",
            [
                "before_start",
                "on_retry KeyError('k')",
                "before_start",
                "on_success retry",
                "after_return SUCCESS",
            ],
        ),
    ],
)
def test_hooks_of_tasks(calls, what, expected):
    calls.hooked.delay(calls.place.file(), what)
    wait_until(lambda: len(calls.place.lines()) >= len(expected), "all hooks ran")
    assert calls.place.lines() == expected


def test_hooks_of_a_task_over_its_time_limit_run_once(calls):
    calls.hooked.apply_async((calls.place.file(), "sleep"), time_limit=0.5)
    wait_until(lambda: len(calls.place.lines()) >= 3, "all hooks ran")
    expected = ["before_start", "on_failure TimeLimitExceeded(0.5)", "after_return FAILURE"]
    stays(lambda: calls.place.lines() == expected, "each ran once", 0.3)


def test_a_rate_limit_holds(calls):
    results = [calls.limited.delay(calls.place.file()) for _ in range(6)]
    fast = calls.add.delay(1, 1)
    assert fast.get(timeout=TIMEOUT) == 2
    for result in results:
        result.get(timeout=TIMEOUT)
    times = sorted(float(line) for line in calls.place.lines())
    assert times[-1] - times[0] >= 0.98


def test_what_tasks_print_is_logged(calls):
    calls.say.delay("hello there").get(timeout=TIMEOUT)
    assert "WARNING/ForkPoolWorker-" in calls.worker.log
    assert "hello there" in calls.worker.log
    assert "logged hello there" in calls.worker.log


def test_programs_that_a_task_started_die_with_its_process(calls):
    result = calls.with_grandchild.apply_async((calls.place.file(),), time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=TIMEOUT)
    from harness.processes import is_running

    (pid,) = calls.place.lines()
    wait_until(lambda: not is_running(int(pid)), "the program is gone")
