"""Hooks and signals come in Celery's order: one app, recorded on both workers, compared."""

from __future__ import annotations

import gc
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable

import pytest
from celery import Celery, Signature, chain, chord
from celery.result import AsyncResult
from conftest import Place

from harness.servers import RedisServer
from harness.wait import wait_until
from harness.workers import Worker

TIMEOUT = 60

Event = dict[str, Any]


@dataclass
class Recording:
    """What one worker wrote down."""

    kind: str
    events: list[Event] = field(default_factory=list)
    log: str = ""
    exit_status: int | None = None
    results: dict[str, Any] = field(default_factory=dict)

    def of_task(self, task_id: str, role: str) -> list[Event]:
        """What happened to a task in the main process (M) or in children (C)."""
        return [
            event for event in self.events if event.get("id") == task_id and event["role"] == role
        ]

    def of_process(self, role: str) -> list[str]:
        """What happened in a process that was about no task."""
        return [
            event["event"]
            for event in self.events
            if event["role"] == role and event.get("id") is None
        ]


def shown(events: list[Event]) -> list[str]:
    """The events as one can compare and read them."""
    hidden = ("role", "pid", "id", "event")
    lines = [
        f"{event['event']} "
        + json.dumps({k: v for k, v in event.items() if k not in hidden}, sort_keys=True)
        for event in events
    ]
    # Each worker numbers its jobs in its own way.
    return [re.sub(r" Job: \d+\.", "", line) for line in lines]


def names(events: list[Event]) -> list[str]:
    return [event["event"] for event in events]


class Session:
    """Sends tasks to a worker one after the other, so that each leaves its traces alone."""

    def __init__(self, place: Place, worker: Worker) -> None:
        self.app = Celery("client", broker=place.broker, backend=place.backend)
        self.app.conf.broker_transport_options = place.transport_options
        self.place = place
        self.worker = worker
        self.results: dict[str, Any] = {}

    def events(self) -> list[Event]:
        return [json.loads(line) for line in self.place.lines("events")]

    def task(self, name: str, *args: Any, task_id: str | None = None, **options: Any) -> Signature:
        made = self.app.signature(name, args=args, immutable=True)
        return made.set(task_id=task_id or name, **options)

    def send(self, name: str, *args: Any, **options: Any) -> None:
        """Has a task run to its end."""
        self.finish(self.task(name, *args, **options).apply_async())

    def finish(self, result: AsyncResult, timeout: float = TIMEOUT) -> None:
        wait_until(result.ready, f"{result.id} ends", timeout, lambda: self.worker.log)
        self.settle()
        # It may have been stored anew since.
        last = AsyncResult(result.id, app=self.app)
        self.results[result.id] = (last.state, repr(last.result))

    def happens(self, event: str, task_id: str | None, count: int = 1) -> None:
        """Waits until something has been written down."""

        def is_there() -> bool:
            found = [e for e in self.events() if (e["event"], e.get("id")) == (event, task_id)]
            return len(found) >= count

        wait_until(is_there, f"{event} of {task_id}", TIMEOUT, lambda: self.worker.log)

    def settle(self) -> None:
        """Has the only child run another task: what it did before is written down by then."""
        marker = self.app.send_task("marker", ignore_result=False)
        wait_until(marker.ready, "the marker ended", TIMEOUT, lambda: self.worker.log)


def run_scenarios(session: Session) -> None:
    send, task = session.send, session.task
    for suffix in ("", "+"):
        for name in (
            "succeed", "succeed_late", "started", "fail", "fail_as_expected", "fail_late",
            "fail_late_unacked", "retry", "retry_late", "autoretry", "replace", "unserialisable",
            "soft", "hard_soft",
        ):  # fmt: skip
            args = (30,) if name in ("soft", "hard_soft") else ()
            send(name + suffix, *args)
        send(f"retry_too_often{suffix}", 5)
        for name in ("ignore", "reject_early"):
            task(name + suffix, *([True] if name == "reject_early" else [])).apply_async()
            session.happens("task_postrun", name + suffix)
            session.settle()
        task(f"ignored_result{suffix}").apply_async()
        session.happens("task_postrun", f"ignored_result{suffix}")
        session.settle()
        send(f"reject{suffix}", False)
        send(f"reject{suffix}", True, task_id=f"reject_again{suffix}")
        for name in ("hard", "hard_late"):
            send(name + suffix, 60)
        for name in ("die", "die_late", "die_safe", "leave"):
            send(name + suffix)
        task(f"succeed{suffix}", task_id=f"expired{suffix}").apply_async(expires=-1)
        session.happens("task_revoked", f"expired{suffix}")
    for name in ("fail_counted", "retry_counted", "die_counted"):
        send(name)
    task("ignore_counted").apply_async()
    session.settle()
    send("succeed_in_broken_hooks")
    send("fail_in_broken_hooks")
    session.app.send_task("no_such_task", task_id="unknown")
    session.happens("task_unknown", "unknown")

    link = task("callback", "linked", task_id="linked")
    task("succeed", task_id="with_link").apply_async(link=link)
    session.happens("callback", None)
    old = session.app.signature("old_errback").set(task_id="old_errback_task")
    task("fail", task_id="with_old_errback").apply_async(link_error=old)
    session.settle()
    for name, args in (("fail", ()), ("die", ()), ("hard", (60,)), ("reject", (False,))):
        errback = session.app.signature("errback")
        task_id = f"{name}_with_errback"
        session.finish(task(name, *args, task_id=task_id).apply_async(link_error=errback))
        session.happens("errback", task_id)
    session.finish(
        chain(task("succeed", task_id="first"), task("succeed", task_id="second")).apply_async()
    )
    headers = [task("succeed", task_id=f"header {n}") for n in range(2)]
    body = session.app.signature("total").set(task_id="body")
    session.finish(chord(headers, body).apply_async())
    headers = [task("succeed", task_id="good header"), task("die", task_id="lost header")]
    body = session.app.signature("total").set(task_id="failed body")
    session.finish(chord(headers, body).apply_async())

    with session.app.producer_or_acquire() as producer:
        producer.publish({"what": "is this"}, routing_key="celery", exchange="")
    wait_until(
        lambda: any(e["event"] == "task_rejected" for e in session.events()), "it is rejected"
    )
    session.settle()


@pytest.fixture(scope="module")
def recordings(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Recording]:
    """What Celery's worker and ours do with the same tasks."""
    made = {}
    for kind in ("celery", "celeriac"):
        folder = tmp_path_factory.mktemp(kind)
        url = f"redis://127.0.0.1:{redis_server.port}"
        place = Place(
            f"{url}/{redis_server.database()}", f"{url}/{redis_server.database()}", folder
        )
        worker = Worker(folder, "recorder", "-c", "1", kind=kind, variables=place.variables())
        try:
            worker.wait_ready()
            session = Session(place, worker)
            run_scenarios(session)
            status = worker.stop(timeout=60)
            made[kind] = Recording(kind, session.events(), worker.log, status, session.results)
        finally:
            worker.clean_up()
    # What is left of the results wants to talk to the server, which is there for now.
    del session
    gc.collect()
    return made


def both(recordings: dict[str, Recording], task_id: str, role: str) -> tuple[list[str], list[str]]:
    theirs, ours = (recordings[kind].of_task(task_id, role) for kind in ("celery", "celeriac"))
    return shown(theirs), shown(ours)


#: Tasks that end in the child: everything is as Celery has it.
ENDS_IN_CHILD = [
    "succeed", "succeed_late", "started", "ignored_result", "fail", "fail_as_expected",
    "fail_late", "fail_late_unacked", "retry", "retry_late", "retry_too_often", "autoretry",
    "reject", "reject_again", "reject_early", "ignore", "soft", "hard_soft", "replace",
    "unserialisable",
]  # fmt: skip
#: Tasks that the main process ends, because their child can't.
ENDS_IN_MAIN = ["die", "die_late", "die_safe", "leave"]


@pytest.mark.parametrize("suffix", ["", "+"], ids=["default request", "own request"])
@pytest.mark.parametrize("task_id", [*ENDS_IN_CHILD, *ENDS_IN_MAIN])
def test_a_child_calls_hooks_in_celerys_order(recordings, task_id, suffix):
    theirs, ours = both(recordings, task_id + suffix, "C")
    assert theirs, "Celery's worker called nothing: the scenario is wrong"
    assert ours == theirs


#: Celery's worker puts a class of its own over the app's Request class, whose ``on_success`` hides
#: the app's. Here it is called, as its documentation says.
ONLY_OURS = "Request.on_success"
#: The message of a retry, or of what replaces a task, may come before the main process hears of
#: the attempt's end.
RETRIED = (
    *("retry", "retry_late", "retry_too_often", "autoretry", "retry_counted", "reject_again"),
    "replace",
)


def in_main(recording: Recording, task_id: str) -> list[str]:
    """What happened to a task in main, in the order that is the same each time."""
    lines = [
        line for line in shown(recording.of_task(task_id, "M")) if not line.startswith(ONLY_OURS)
    ]
    if task_id.rstrip("+") in RETRIED:
        received = [line for line in lines if line.startswith("task_received")]
        return received + [line for line in lines if not line.startswith("task_received")]
    return lines


@pytest.mark.parametrize("suffix", ["", "+"], ids=["default request", "own request"])
@pytest.mark.parametrize("task_id", [*ENDS_IN_CHILD, *ENDS_IN_MAIN, "expired"])
def test_main_calls_hooks_in_celerys_order(recordings, task_id, suffix):
    theirs, ours = (in_main(recordings[kind], task_id + suffix) for kind in ("celery", "celeriac"))
    assert theirs, "Celery's worker called nothing: the scenario is wrong"
    assert ours == theirs


def test_a_request_class_hears_of_success(recordings):
    """On purpose: in Celery's worker an app's ``Request.on_success`` is never called."""
    called = {
        kind: Counter(e["id"] for e in recording.events if e["event"] == ONLY_OURS)
        for kind, recording in recordings.items()
    }
    assert called["celery"] == {}
    succeeding = ("succeed", "succeed_late", "started", "ignored_result", "retry", "retry_late",
                  "reject_again", "soft", "hard_soft", "die_safe")  # fmt: skip
    assert called["celeriac"] == {f"{name}+": 1 for name in succeeding}


@pytest.mark.parametrize("suffix", ["", "+"], ids=["default request", "own request"])
@pytest.mark.parametrize("task_id", ["hard", "hard_late"])
def test_a_hard_time_limit_fails_a_task_once(recordings, task_id, suffix):
    """On purpose: Celery's worker fails the task twice, the first time without its hooks."""
    theirs = recordings["celery"].of_task(task_id + suffix, "M")
    ours = recordings["celeriac"].of_task(task_id + suffix, "M")
    assert Counter(names(theirs))["task_failure"] == 2
    # What Celery does in ``Request.on_failure`` is left out.
    first = names(theirs).index("task_failure")
    expected = [
        event
        for number, event in enumerate(theirs)
        if number != first and event["event"] != "Request.on_failure"
    ]
    assert shown(ours) == shown(expected)
    # The child's own end of the task is shown if it is quick enough, in both.
    assert names(recordings["celeriac"].of_task(task_id + suffix, "C"))[:3] == [
        "task_prerun",
        "Loader.on_task_init",
        "before_start",
    ]


@pytest.mark.parametrize("kind", ["celery", "celeriac"])
def test_a_task_over_its_hard_limit_may_clean_up(recordings, kind):
    """SIGTERM comes first: ``finally`` blocks and ``task_postrun`` run."""
    for task_id in ("hard", "hard+", "hard_late", "hard_late+"):
        assert "task_postrun" in names(recordings[kind].of_task(task_id, "C"))


def test_a_request_class_hears_of_everything_that_did_not_succeed(recordings):
    for task_id in ("fail_counted", "retry_counted", "die_counted", "ignore_counted"):
        theirs, ours = (in_main(recordings[kind], task_id) for kind in ("celery", "celeriac"))
        assert any("OnlyFailures.on_failure" in line for line in theirs)
        assert ours == theirs, task_id


@pytest.mark.parametrize("task_id", ["succeed_in_broken_hooks", "fail_in_broken_hooks"])
def test_hooks_that_fail_change_nothing(recordings, task_id):
    for role in ("C", "M"):
        theirs, ours = both(recordings, task_id, role)
        assert theirs and ours == theirs


def test_an_unknown_task_and_a_message_that_is_no_task_are_announced(recordings):
    theirs, ours = both(recordings, "unknown", "M")
    assert theirs and ours == theirs
    rejected = {
        kind: [e for e in recording.events if e["event"] == "task_rejected"]
        for kind, recording in recordings.items()
    }
    assert len(rejected["celery"]) == 1
    assert shown(rejected["celeriac"]) == shown(rejected["celery"])


@pytest.mark.parametrize(
    "task_id",
    ["with_link", "linked", "with_old_errback", "old_errback_task", "first", "second",
     "header 0", "header 1", "body", "good header", "lost header", "failed body"],
)  # fmt: skip
def test_what_is_linked_to_a_task_runs_in_celerys_order(recordings, task_id):
    for role in ("C", "M"):
        theirs, ours = both(recordings, task_id, role)
        assert ours == theirs, role


@pytest.mark.parametrize("name", ["fail", "die", "reject"])
def test_an_errback_runs_where_the_failure_is_seen(recordings, name):
    theirs, ours = (
        [(e["role"], *shown([e])) for e in recordings[kind].events
         if e["event"] == "errback" and e["id"] == f"{name}_with_errback"]
        for kind in ("celery", "celeriac")
    )  # fmt: skip
    assert len(theirs) == 1
    assert ours == theirs


def test_an_errback_of_a_task_over_its_hard_limit_runs_once(recordings):
    """On purpose: Celery's worker runs it twice."""
    theirs, ours = (
        [(e["role"], e["shown"]["exc"]) for e in recordings[kind].events
         if e["event"] == "errback" and e["id"] == "hard_with_errback"]
        for kind in ("celery", "celeriac")
    )  # fmt: skip
    assert len(theirs) == 2
    assert ours == theirs[:1]


def test_what_became_of_each_task_is_the_same(recordings):
    # The number of the job is in the reason for a loss.
    assert set(recordings["celery"].results) == set(recordings["celeriac"].results)
    for task_id, (state, result) in recordings["celery"].results.items():
        ours = recordings["celeriac"].results[task_id]
        assert ours[0] == state, task_id
        assert ours[1].partition(" Job:")[0] == result.partition(" Job:")[0], task_id


#: What comes with a later issue: heartbeats. And what comes whenever it likes.
UNCOMPARED = {"heartbeat_sent"}


def started(recording: Recording) -> list[str]:
    """What the main process does until the worker is ready."""
    happened = [name for name in recording.of_process("M") if name not in UNCOMPARED]
    return happened[: happened.index("worker_ready") + 1]


def test_a_worker_starts_in_celerys_order(recordings):
    theirs, ours = (
        # Processes are begun beside the rest of the start.
        [name for name in started(recordings[kind]) if name != "worker_before_create_process"]
        for kind in ("celery", "celeriac")
    )
    assert ours == theirs


def test_a_worker_ends_in_celerys_order(recordings):
    ended = {}
    for kind, recording in recordings.items():
        happened = [name for name in recording.of_process("M") if name not in UNCOMPARED]
        ended[kind] = happened[happened.index("worker_shutting_down") :]
    assert ended["celeriac"] == ended["celery"]
    assert recordings["celeriac"].exit_status == recordings["celery"].exit_status == 0


def test_the_signals_of_start_and_end_carry_what_celerys_carry(recordings):
    about = ("celeryd_init", "celeryd_after_setup", "worker_init", "worker_ready",
             "worker_shutting_down", "worker_shutdown", "after_setup_logger",
             "after_setup_task_logger", "import_modules", "app.on_after_configure",
             "app.on_after_finalize", "worker_process_init")  # fmt: skip
    for name in about:
        theirs, ours = (
            [(e["role"], e["sender"], e["names"], e["shown"])
             for e in recordings[kind].events if e["event"] == name]
            for kind in ("celery", "celeriac")
        )  # fmt: skip
        assert theirs, name
        # The number of children differs with the number of those that were lost.
        assert ours[0] == theirs[0], name


def test_every_child_begins_and_ends_as_celerys(recordings):
    lives = {}
    for kind, recording in recordings.items():
        by_pid: dict[int, list[str]] = {}
        for event in recording.events:
            if event["role"] == "C" and event.get("id") is None:
                by_pid.setdefault(event["pid"], []).append(event["event"])
        plain = ("callback", "Loader.on_process_cleanup")
        lives[kind] = [[name for name in names if name not in plain] for names in by_pid.values()]
    for kind, children in lives.items():
        for happened in children:
            assert happened[:2] == ["Loader.on_worker_process_init", "worker_process_init"], kind
        # The last one leaves in peace.
        assert children[-1][-1] == "worker_process_shutdown", kind
    assert len(lives["celeriac"]) == len(lives["celery"])


def test_a_task_is_received_before_it_runs(recordings):
    for kind, recording in recordings.items():
        first: dict[tuple[str, str], int] = {}
        for number, event in enumerate(recording.events):
            first.setdefault((event["event"], event.get("id") or ""), number)
        for task_id in ("succeed", "fail", "succeed+", "fail+"):
            assert first["task_received", task_id] < first["task_prerun", task_id], kind


def test_a_process_is_announced_for_each_child(recordings):
    for kind, recording in recordings.items():
        children = {e["pid"] for e in recording.events if e["event"] == "worker_process_init"}
        announced = recording.of_process("M").count("worker_before_create_process")
        assert announced == len(children), kind


@pytest.fixture
def session(redis_place: Place, start: Callable[..., Worker]) -> Session:
    worker = start(redis_place, "-c", "1", "--max-tasks-per-child", "2", app="recorder")
    return Session(redis_place, worker)


def test_task_objects_are_made_before_the_fork_and_their_properties_after_it(session):
    """A connection that a cached property holds belongs to one child, for as long as it lives."""
    answers = [
        session.app.send_task("properties", ignore_result=False).get(timeout=TIMEOUT)
        for _ in range(4)
    ]
    pids = [pid for pid, _, _ in answers]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert [connection for _, _, connection in answers] == [f"made in {pid}" for pid in pids]
    (made_in,) = {made_in for _, made_in, _ in answers}
    assert made_in not in pids and made_in != os.getpid()
    made = [e["pid"] for e in session.events() if e["event"] == "Task.connection"]
    assert made == [pids[0], pids[2]]
