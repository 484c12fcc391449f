"""Every way to end a worker: its exit status, and what becomes of its tasks and messages."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1
from typing import Any

import pytest
from celery import Celery
from conftest import Place

from harness import processes, workers
from harness.servers import RedisServer, free_port
from harness.wait import stays, wait_until
from harness.workers import Worker

TIMEOUT = 60

WARM = "worker: Warm shutdown (MainProcess)"
COLD = "worker: Cold shutdown (MainProcess)"
AGAIN_COLD = (
    "worker: Hitting Ctrl+C again will initiate cold shutdown, terminating all running tasks!"
)
AGAIN_TERMINATE = "worker: Hitting Ctrl+C again will terminate all running tasks!"

#: kombu's SQLAlchemy transport forgets what a worker has fetched; Redis does not.
KEEPING = ["redis", "sqlite"] if workers.KIND == "celeriac" else ["redis"]


@pytest.fixture(params=KEEPING)
def keeping(request: pytest.FixtureRequest) -> Place:
    """A broker that keeps the messages of a worker that ends."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def begun(place: Place, text: str, times: int = 1) -> None:
    wait_until(lambda: place.lines().count(f"start {text}") == times, f"{text} runs", TIMEOUT)


def was_heard(worker: Worker, count: int) -> bool:
    return worker.log.count("worker: ") >= count or worker.process.poll() is not None


def shut_down(worker: Worker, *signals: int) -> int:
    """Sends signals one after the other, and waits for the end."""
    for count, number in enumerate(signals, start=1):
        worker.send(number)
        # Signals that come together could count as one.
        wait_until(partial(was_heard, worker, count), "it was heard", TIMEOUT, lambda: worker.log)
    status = worker.wait(TIMEOUT)
    wait_until(lambda: not worker.leftovers(), "nothing is left of it", TIMEOUT)
    return status


def is_ready(worker: Worker, times: int) -> bool:
    return worker.log.count(" ready.") == times


@pytest.mark.parametrize(
    "number, status, words",
    [
        (SIGTERM, 0, [WARM]),
        (SIGINT, 1, [AGAIN_COLD, WARM]),
        (SIGQUIT, 0, [AGAIN_TERMINATE, COLD]),
    ],
)
def test_an_idle_worker_ends_at_once(place, start, number, status, words):
    worker = start(place, "-c", "2")
    assert shut_down(worker, number) == status
    said = [line for line in worker.log.splitlines() if line.startswith("worker: ")]
    assert said == words


@pytest.mark.parametrize(
    "signals, status",
    [([SIGTERM], 0), ([SIGINT], 1), ([SIGTERM, SIGTERM], 0), ([SIGTERM, SIGINT], 0)],
    ids=["TERM", "INT", "TERM TERM", "TERM INT"],
)
def test_a_warm_shutdown_waits_for_running_tasks(keeping, start, client, signals, status):
    if signals == [SIGTERM, SIGINT] and workers.KIND == "celery":
        status = 1  # Celery's worker exits with what the last signal asks for.
    app = client(keeping)
    worker = start(keeping, "-c", "2")
    results = [
        app.sleep.delay(3, keeping.file(), "early"),
        app.sleep_late.delay(3, keeping.file(), "late"),
    ]
    begun(keeping, "early")
    begun(keeping, "late")
    assert shut_down(worker, *signals) == status
    assert sorted(keeping.lines()) == ["end early", "end late", "start early", "start late"]
    assert [result.get(timeout=5) for result in results] == ["early", "late"]
    # All is acknowledged: nothing runs again.
    second = start(keeping, "-c", "1")
    assert app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
    assert shut_down(second, SIGTERM) == 0
    assert len(keeping.lines()) == 4


def test_a_warm_shutdown_takes_nothing_new_and_gives_back_the_rest(keeping, start, client):
    app = client(keeping)
    worker = start(keeping, "-c", "1")
    held = [app.sleep.apply_async((0, keeping.file(), f"held {n}"), countdown=10) for n in range(3)]
    for result in held:
        worker.wait_for(result.id)
    app.sleep_late.delay(3, keeping.file(), "running")
    begun(keeping, "running")
    worker.send(SIGTERM)
    worker.wait_for(WARM)
    late = [app.sleep.delay(0, keeping.file(), f"late {n}") for n in range(3)]
    assert worker.wait(TIMEOUT) == 0
    assert keeping.lines() == ["start running", "end running"]
    start(keeping, "-c", "1")
    for result in [*held, *late]:
        result.get(timeout=TIMEOUT)
    expected = ["running", *(f"{kind} {n}" for kind in ("held", "late") for n in range(3))]
    ended = [line.partition(" ")[2] for line in keeping.lines() if line.startswith("end")]
    assert sorted(ended) == sorted(expected)


@pytest.mark.parametrize(
    "signals",
    [[SIGQUIT], [SIGINT, SIGINT], [SIGTERM, SIGQUIT], [SIGINT, SIGQUIT]],
    ids=["QUIT", "INT INT", "TERM QUIT", "INT QUIT"],
)
def test_a_cold_shutdown_stops_tasks_and_keeps_what_is_not_acknowledged(
    keeping, start, client, signals
):
    app = client(keeping)
    worker = start(keeping, "-c", "2")
    held = app.sleep.apply_async((0, keeping.file(), "held"), countdown=3600)
    worker.wait_for(held.id)
    early = app.sleep.delay(300, keeping.file(), "early")
    late = app.stopped_once.delay(keeping.file(), "late")
    begun(keeping, "early")
    begun(keeping, "late")
    assert shut_down(worker, *signals) == 0
    assert "end early" not in keeping.lines() and "end late" not in keeping.lines()
    # The message of the one is acknowledged: it is told that it should be sent again.
    assert early.state == "RETRY"
    assert (late.state, held.state) == ("PENDING", "PENDING")
    start(keeping, "-c", "2")
    assert late.get(timeout=TIMEOUT) == "late"
    assert keeping.lines().count("start early") == 1
    assert keeping.lines().count("start late") == 2


def test_what_a_cold_shutdown_says(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1")
    app.sleep.delay(300, redis_place.file(), "long")
    begun(redis_place, "long")
    assert shut_down(worker, SIGINT, SIGINT) == 0
    said = [line for line in worker.log.splitlines() if line.startswith("worker: ")]
    assert said == [AGAIN_COLD, WARM, AGAIN_TERMINATE]


def test_a_cold_shutdown_lets_tasks_clean_up(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1")
    app.sleep_and_clean_up.delay(redis_place.file())
    begun(redis_place, "cleaned")
    assert shut_down(worker, SIGQUIT) == 0
    assert redis_place.lines() == ["start cleaned", "cleaned up"]


@pytest.mark.parametrize("seconds, ends", [(1.5, True), (300, False)])
def test_a_soft_shutdown_gives_tasks_some_time(keeping, start, client, seconds, ends):
    keeping.settings = {"worker_soft_shutdown_timeout": 4}
    app = client(keeping)
    worker = start(keeping, "-c", "1")
    result = app.sleep_late.delay(seconds, keeping.file(), "task")
    begun(keeping, "task")
    began = time.monotonic()
    assert shut_down(worker, SIGQUIT) == 0
    if ends:
        assert keeping.lines() == ["start task", "end task"]
        assert result.get(timeout=5) == "task"
    else:
        assert time.monotonic() - began >= 3.9
        assert keeping.lines() == ["start task"]
        assert result.state == "PENDING"
    second = start(keeping, "-c", "1")
    if ends:
        assert app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
        assert keeping.lines() == ["start task", "end task"]
    else:
        begun(keeping, "task", times=2)
    assert shut_down(second, SIGQUIT) == 0


def test_a_second_signal_ends_the_soft_wait(redis_place, start, client):
    redis_place.settings = {"worker_soft_shutdown_timeout": 300}
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", kind="celeriac")
    result = app.sleep_late.delay(600, redis_place.file(), "task")
    begun(redis_place, "task")
    worker.send(SIGQUIT)
    worker.wait_for(AGAIN_TERMINATE)
    stays(lambda: worker.process.poll() is None, "it waits", 1)
    worker.send(SIGINT)
    assert worker.wait(TIMEOUT) == 0
    assert result.state == "PENDING"
    start(redis_place, "-c", "1")
    begun(redis_place, "task", times=2)


def test_a_soft_shutdown_does_not_wait_for_nothing(redis_place, start):
    redis_place.settings = {"worker_soft_shutdown_timeout": 300}
    worker = start(redis_place, "-c", "1")
    assert shut_down(worker, SIGQUIT) == 0


def test_an_idle_soft_shutdown_waits_where_that_is_wanted(redis_place, start):
    redis_place.settings = {
        "worker_soft_shutdown_timeout": 3,
        "worker_enable_soft_shutdown_on_idle": True,
    }
    worker = start(redis_place, "-c", "1")
    began = time.monotonic()
    assert shut_down(worker, SIGQUIT) == 0
    assert time.monotonic() - began >= 2.9


def test_term_may_mean_quit(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", variables={"REMAP_SIGTERM": "SIGQUIT"})
    late = app.stopped_once.delay(redis_place.file(), "late")
    begun(redis_place, "late")
    assert shut_down(worker, SIGTERM) == 0
    assert AGAIN_TERMINATE in worker.log and COLD in worker.log and WARM not in worker.log
    start(redis_place, "-c", "1")
    assert late.get(timeout=TIMEOUT) == "late"


def test_hangup_restarts_a_worker_that_has_no_terminal(keeping, start, client):
    """Celery's own worker does not come back when it was started with ``python -m celery``."""
    app = client(keeping)
    worker = start(keeping, "-c", "1", kind="celeriac")
    result = app.sleep_late.delay(2, keeping.file(), "running")
    begun(keeping, "running")
    before = set(processes.descendants(worker.pid))
    for times in (1, 2):
        worker.send(SIGHUP)
        wait_until(partial(is_ready, worker, times + 1), "ready again", TIMEOUT, lambda: worker.log)
        assert app.add.delay(times, 1).get(timeout=TIMEOUT) == times + 1
    assert "Restarting celery worker (" in worker.log
    assert result.get(timeout=TIMEOUT) == "running"
    assert keeping.lines() == ["start running", "end running"]
    wait_until(
        lambda: not before & set(processes.descendants(worker.pid)), "the old processes are gone"
    )
    assert shut_down(worker, SIGTERM) == 0


def test_usr1_shows_what_the_worker_does_and_changes_nothing(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1")
    result = app.sleep.delay(2, redis_place.file(), "running")
    begun(redis_place, "running")
    worker.send(SIGUSR1)
    worker.wait_for("LOCAL VARIABLES")
    assert result.get(timeout=TIMEOUT) == "running"
    assert shut_down(worker, SIGTERM) == 0


def test_ctrl_c_in_a_terminal_hits_all_processes_and_no_task(keeping, start, client):
    """The terminal sends SIGINT to the whole foreground group."""
    app = client(keeping)
    worker = start(keeping, "-c", "2")
    results = [app.sleep.delay(2, keeping.file(), str(n)) for n in range(2)]
    for number in range(2):
        begun(keeping, str(number))
    for pid in [worker.pid, *processes.descendants(worker.pid)]:
        os.kill(pid, SIGINT)
    assert worker.wait(TIMEOUT) == 1
    assert [result.get(timeout=5) for result in results] == ["done", "done"] or [
        result.get(timeout=5) for result in results
    ] == ["0", "1"]
    wait_until(lambda: not worker.leftovers(), "nothing is left of it")


@pytest.mark.parametrize("number, status", [(SIGTERM, 0), (SIGINT, 1)])
def test_a_worker_that_waits_for_its_broker_can_be_ended(tmp_path, start, number, status):
    place = Place(f"redis://127.0.0.1:{free_port()}/0", "cache+memory://", tmp_path)
    worker = start(place, "-c", "1", ready=False)
    worker.wait_for("Cannot connect to")
    assert shut_down(worker, number) == status


def test_a_task_that_leaves_nothing_but_a_program_behind(redis_place, start, client):
    """A program that a task started ends with a cold shutdown."""
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", kind="celeriac")
    app.with_grandchild.delay(redis_place.file())
    wait_until(redis_place.lines, "the program runs", TIMEOUT)
    (pid,) = redis_place.lines()
    assert shut_down(worker, SIGQUIT) == 0
    wait_until(lambda: not processes.is_running(int(pid)), "the program is gone")


def test_a_hanging_task_holds_a_warm_shutdown_until_it_turns_cold(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1")
    app.sleep_late.delay(300, redis_place.file(), "hanging")
    begun(redis_place, "hanging")
    worker.send(SIGTERM)
    worker.wait_for(WARM)
    stays(lambda: worker.process.poll() is None, "it waits", 2)
    assert shut_down(worker, SIGQUIT) == 0


@pytest.mark.parametrize(
    "signals, is_busy",
    [
        *(
            ([number], is_busy)
            for number in (SIGTERM, SIGINT, SIGQUIT)
            for is_busy in (False, True)
        ),
        ([SIGINT, SIGINT], True),
        ([SIGTERM, SIGQUIT], True),
    ],
)
def test_hooks_of_the_end_are_celerys(redis_server, tmp_path, signals, is_busy):
    """On purpose: Celery's worker stops tasks before it says that it ends at once, ours after."""
    theirs, ours = (
        hooks_of_the_end(redis_server, tmp_path, kind, signals, is_busy)
        for kind in ("celery", "celeriac")
    )
    of_workers, of_tasks = (
        [
            [event for event in events if (event[1] is not None) is about_task]
            for events in (theirs, ours)
        ]
        for about_task in (False, True)
    )
    if len(signals) > 1:
        # Celery's worker acts on the first signal when its event loop comes round: before or after
        # it hears of the second one.
        of_workers = [
            sorted(events, key=lambda event: event[0] != "worker_shutting_down")
            for events in of_workers
        ]
    assert of_workers[1] == of_workers[0]
    assert of_tasks[1] == of_tasks[0]


def hooks_of_the_end(
    redis_server: RedisServer, folder: Path, kind: str, signals: list[int], is_busy: bool
) -> list[Any]:
    """What the main process of a worker was told from its first signal on."""
    url = f"redis://127.0.0.1:{redis_server.port}"
    databases = redis_server.database(), redis_server.database()
    (folder / kind).mkdir()
    place = Place(f"{url}/{databases[0]}", f"{url}/{databases[1]}", folder / kind)
    worker = Worker(place.folder, "recorder", "-c", "1", kind=kind, variables=place.variables())
    try:
        worker.wait_ready()
        if is_busy:
            app = Celery("client", broker=place.broker, backend=place.backend)
            seconds = 2 if signals in ([SIGTERM], [SIGINT]) else 300
            app.send_task("hard_soft", [seconds], task_id="task", soft_time_limit=200)
            wait_until(
                lambda: any('"before_start"' in line for line in place.lines("events")),
                "it runs",
                TIMEOUT,
            )
        before = len(place.lines("events"))
        shut_down(worker, *signals)
    finally:
        worker.clean_up()
    events = [json.loads(line) for line in place.lines("events")[before:]]
    # Heartbeats come with a later issue.
    return [
        [event["event"], event.get("id"), event.get("shown")]
        for event in events
        if event["role"] == "M" and event["event"] != "heartbeat_sent"
    ]


def test_signals_of_a_worker_are_not_those_of_its_programs(redis_place, start, client):
    """What a task starts has the default action for every signal, as in Celery's children."""
    app = client(redis_place)
    start(redis_place, "-c", "1")
    names = app.signals_of_a_program.delay().get(timeout=TIMEOUT)
    expected = {"SIGINT"} if workers.KIND == "celery" else set(names) & {"SIGINT", "SIGPIPE"}
    assert set(names) - {"SIGPIPE", "SIGXFSZ"} <= expected, names
    assert signal.SIGTERM.name not in names


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_worker_that_is_still_loading_its_app_can_be_ended(redis_place, start, number):
    folder = redis_place.folder
    (folder / "slow.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(folder)!r}, 'loading').touch()\n"
        "time.sleep(300)\n"
    )
    worker = start(
        redis_place, "-c", "1", app="slow", variables={"PYTHONPATH": str(folder)}, ready=False
    )
    wait_until((folder / "loading").exists, "it loads", TIMEOUT)
    worker.send(number)
    assert worker.wait(TIMEOUT) != 0
    wait_until(lambda: not worker.leftovers(), "nothing is left of it", TIMEOUT)


def test_a_warm_shutdown_of_replaced_processes_loses_nothing(keeping, start, client):
    app = client(keeping)
    results = [app.sleep_late.delay(0.05, keeping.file(), str(n)) for n in range(60)]
    for _ in range(3):
        worker = start(keeping, "-c", "2", "--max-tasks-per-child", "1")
        wait_until(lambda: any(result.ready() for result in results), "it works", TIMEOUT)
        assert shut_down(worker, SIGTERM) == 0
    start(keeping, "-c", "2")
    assert [result.get(timeout=TIMEOUT) for result in results] == [str(n) for n in range(60)]
    # Celery's worker may end before it has acknowledged what it did: then that runs again.
    assert len(keeping.lines()) == 120 or workers.KIND == "celery"
