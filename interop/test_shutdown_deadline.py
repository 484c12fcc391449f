"""A worker that has to be gone by a time: what runs cleans up, and runs again elsewhere."""

from __future__ import annotations

import time
from signal import SIGINT, SIGQUIT, SIGTERM

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from conftest import Place

from harness.wait import stays, wait_until

TIMEOUT = 60

WARM = "worker: Warm shutdown (MainProcess)"
RAISED = "SoftTimeLimitExceeded is raised in"


@pytest.fixture(params=["redis", "rabbit", "sqlite"])
def durable(request: pytest.FixtureRequest) -> Place:
    """The brokers, one after the other."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def begun(place: Place, text: str, times: int = 1) -> None:
    wait_until(lambda: place.lines().count(f"start {text}") == times, f"{text} runs", TIMEOUT)


def nothing_is_left(place: Place, start, app) -> None:
    """Another worker finds nothing to do but what it is given."""
    before = place.lines()
    worker = start(place, "-c", "1")
    assert app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
    assert worker.stop(timeout=TIMEOUT) == 0
    assert place.lines() == before


def deadline(seconds: float) -> tuple[str, str]:
    return "--shutdown-deadline", str(seconds)


def test_an_idle_worker_ends_at_once(durable, start):
    worker = start(durable, "-c", "2", *deadline(300))
    worker.send(SIGTERM)
    assert worker.wait(TIMEOUT) == 0
    assert RAISED not in worker.log


def test_a_task_that_ends_in_time_is_left_alone(durable, start, client):
    app = client(durable)
    worker = start(durable, "-c", "1", *deadline(300))
    result = app.sleep_late.delay(2, durable.file(), "task")
    begun(durable, "task")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert result.get(timeout=5) == "task"
    assert durable.lines() == ["start task", "end task"]
    assert RAISED not in worker.log
    nothing_is_left(durable, start, app)


def test_a_task_that_does_not_end_in_time_cleans_up_and_runs_again(durable, start, client):
    app = client(durable)
    worker = start(durable, "-c", "1", *deadline(1))
    result = app.clean_up_late.delay(durable.file(), "task")
    begun(durable, "task")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert durable.lines() == ["start task", "cleaned up task"]
    assert f"{RAISED} basic.clean_up_late[{result.id}]" in worker.log
    assert result.state == "PENDING", "nothing is stored: it will run again"
    second = start(durable, "-c", "1")
    begun(durable, "task", times=2)
    assert second.stop(SIGQUIT, TIMEOUT) == 0


def test_a_task_that_makes_an_end_has_a_result(durable, start, client):
    app = client(durable)
    worker = start(durable, "-c", "1", *deadline(1))
    result = app.clean_up_late.delay(durable.file(), "task", returns=True)
    begun(durable, "task")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert result.get(timeout=5) == "task"
    nothing_is_left(durable, start, app)


def test_being_interrupted_is_no_attempt(durable, start, client):
    """Not even for a task that is retried for whatever it raises."""
    app = client(durable)
    worker = start(durable, "-c", "1", *deadline(1))
    result = app.retried_late.delay(durable.file(), "task")
    begun(durable, "task retries=0")
    assert worker.stop(timeout=TIMEOUT) == 0
    start(durable, "-c", "1")
    assert result.get(timeout=TIMEOUT) == "task"
    assert durable.lines() == ["start task retries=0"] * 2


def test_a_task_that_takes_no_notice_is_ended_and_runs_again(durable, start, client):
    app = client(durable)
    worker = start(durable, "-c", "1", *deadline(1))
    result = app.deaf_late.delay(durable.file(), "task")
    begun(durable, "task")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert durable.lines() == ["start task", "went on task"]
    assert f"basic.deaf_late[{result.id}] is ended; it will run again" in worker.log
    wait_until(lambda: not worker.leftovers(), "nothing is left of it", TIMEOUT)
    assert result.state == "PENDING"
    second = start(durable, "-c", "1")
    begun(durable, "task", times=2)
    assert second.stop(SIGQUIT, TIMEOUT) == 0


def test_an_early_acknowledged_task_fails_and_does_not_run_again(durable, start, client):
    app = client(durable)
    worker = start(durable, "-c", "1", *deadline(1))
    result = app.clean_up_early.delay(durable.file(), "task")
    begun(durable, "task")
    assert worker.stop(timeout=TIMEOUT) == 0
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=5)
    assert durable.lines() == ["start task", "cleaned up task"]
    nothing_is_left(durable, start, app)


def test_what_has_not_begun_runs_elsewhere_while_the_worker_drains(durable, start, client):
    app = client(durable)
    first = start(durable, "-c", "1", *deadline(300))
    running = app.sleep_late.delay(300, durable.file(), "running")
    begun(durable, "running")
    held = [app.sleep.apply_async((0, durable.file(), f"held {n}"), countdown=5) for n in range(3)]
    waiting = [app.sleep.delay(0, durable.file(), f"waiting {n}") for n in range(20)]
    first.send(SIGTERM)
    first.wait_for(WARM)
    start(durable, "-c", "1")
    for result in [*waiting, *held]:
        result.get(timeout=TIMEOUT)
    assert first.process.poll() is None and running.state == "PENDING"
    assert durable.lines().count("start running") == 1
    assert first.stop(SIGQUIT, TIMEOUT) == 0


@pytest.mark.parametrize(
    "signals, status",
    [([SIGTERM, SIGTERM], 0), ([SIGTERM, SIGINT], 0), ([SIGINT], 1)],
    ids=["TERM TERM", "TERM INT", "INT"],
)
def test_further_signals_do_not_change_the_deadline(redis_place, start, client, signals, status):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", *deadline(3))
    app.clean_up_late.delay(redis_place.file(), "task")
    begun(redis_place, "task")
    began = time.monotonic()
    for number in signals:
        worker.send(number)
        stays(lambda: worker.process.poll() is None, "it drains", 1)
    assert worker.wait(TIMEOUT) == status
    assert time.monotonic() - began >= 3
    assert redis_place.lines() == ["start task", "cleaned up task"]


@pytest.mark.parametrize(
    "signals", [[SIGTERM, SIGQUIT], [SIGINT, SIGINT]], ids=["TERM QUIT", "INT INT"]
)
def test_a_cold_shutdown_does_not_wait_for_the_deadline(redis_place, start, client, signals):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", *deadline(300))
    late = app.stopped_once.delay(redis_place.file(), "late")
    begun(redis_place, "late")
    worker.send(signals[0])
    worker.wait_for(WARM)
    worker.send(signals[1])
    assert worker.wait(TIMEOUT) == 0
    start(redis_place, "-c", "1")
    assert late.get(timeout=TIMEOUT) == "late"


@pytest.mark.parametrize(
    "variables, settings",
    [
        ({"CELERIAC_SHUTDOWN_DEADLINE": "1"}, {}),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "2"}, {}),
        ({}, {"celeriac_shutdown_deadline": 1}),
    ],
    ids=["variable", "orchestrator", "setting"],
)
def test_where_the_deadline_comes_from(redis_place, start, client, variables, settings):
    redis_place.settings = settings
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", variables=variables)
    app.clean_up_late.delay(redis_place.file(), "task")
    begun(redis_place, "task")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert redis_place.lines() == ["start task", "cleaned up task"]


def test_a_deadline_that_is_none_is_refused(redis_place, start):
    redis_place.settings = {"celeriac_shutdown_deadline": "soon"}
    worker = start(redis_place, "-c", "1", ready=False)
    assert worker.wait(TIMEOUT) == 1
    assert 'The setting celeriac_shutdown_deadline can\'t be used: "soon"' in worker.log


def test_the_app_says_goodbye_although_a_task_was_ended(redis_place, start):
    worker = start(redis_place, "-c", "1", *deadline(0.5), app="recorder")
    app = Celery("client", broker=redis_place.broker, backend=redis_place.backend)
    app.send_task("hard_soft", [300], task_id="task", soft_time_limit=200)

    def events() -> str:
        return "\n".join(redis_place.lines("events"))

    wait_until(lambda: '"before_start"' in events(), "it runs", TIMEOUT)
    assert worker.stop(timeout=TIMEOUT) == 0
    assert '"worker_shutdown"' in events()


def test_an_app_that_hangs_at_its_end_is_left(redis_place, start):
    (redis_place.folder / "hang").touch()
    worker = start(redis_place, "-c", "1", *deadline(0.5), app="crashing")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert "the app's last hooks are not waited for" in worker.log
    wait_until(lambda: not worker.leftovers(), "nothing is left of it", TIMEOUT)
