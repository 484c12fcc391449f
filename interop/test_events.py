"""Workers tell of themselves and of their tasks what Celery's worker tells."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import ModuleType
from typing import Any

import pytest
from celery import chain, group
from celery.events.state import State
from conftest import Place, place_on_rabbit, place_on_redis
from kombu import Exchange, Queue

from harness.control import TIMEOUT, ask, ask_until
from harness.events import Event, Message, Recorder
from harness.servers import RabbitServer
from harness.wait import stays, wait_until
from harness.workers import KIND, Worker

#: What ends the events of a task.
LAST = {"task-succeeded", "task-failed", "task-revoked", "task-rejected"}
ETA = datetime(2020, 1, 1, 12, 30, 15, 250000, tzinfo=timezone.utc)
#: RabbitMQ takes no more than 49 days.
EXPIRES = datetime.now(timezone.utc) + timedelta(days=1)


@dataclass
class Recording:
    """What one worker told."""

    node: str
    messages: list[Message] = field(default_factory=list)
    log: str = ""
    main: int = 0
    #: Whether what expires in its queue is dropped by the broker, and nobody tells of it.
    leaves_expiry: bool = False

    @property
    def events(self) -> list[Event]:
        return [event for message in self.messages for event in message.events()]

    def of_task(self, task_id: str) -> list[Event]:
        return [event for event in self.events if event.get("uuid") == task_id]

    def of_worker(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["type"] == f"worker-{kind}"]


def record(place: Place, start: Callable[..., Worker], app: ModuleType, kind: str) -> Recording:
    """Has a worker do everything once."""
    with Recorder(app.app) as recorder:
        worker = start(place, "-c", "1", "-E", app="controlled", kind=kind)
        recorder.wait_for("worker-online")

        def ends(task_id: str, last: str) -> None:
            recorder.wait_for(last, uuid=task_id)

        def send(name: str, last: str = "task-succeeded", *args: Any, **options: Any) -> None:
            task_id = options.pop("task_id", name)
            app.app.tasks[f"controlled.{name}"].apply_async(args, task_id=task_id, **options)
            ends(task_id, last)

        send("add", "task-succeeded", 1, kwargs={"y": 2})
        send("started")
        send("long_result")
        send("add", "task-succeeded", 1, task_id="described", shadow="another name",
             argsrepr="(secret,)", kwargsrepr="{'text': '***'}", eta=ETA, expires=EXPIRES,
             priority=4, headers={"custom": "header"})  # fmt: skip
        send("fail", "task-failed", "grün")
        send("retry")
        send("reject", "task-rejected", False, task_id="rejected")
        send("reject", "task-succeeded", True, task_id="requeued")
        send("over_the_hard_limit", "task-failed")
        send("over_the_soft_limit", "task-failed")
        send("die", "task-failed")
        send("tells")
        send("sends", "task-succeeded", "from a task")
        ends("from a task", "task-succeeded")
        app.silent.apply_async(task_id="silent")
        app.ignore.apply_async(task_id="ignored")
        app.app.send_task("controlled.unknown", task_id="unknown")
        # docs/differences.md has the reason.
        leaves_expiry = kind == "celeriac" and place.broker.startswith("amqp")
        if not leaves_expiry:
            app.add.apply_async((1, 1), task_id="expired", expires=-1)
            ends("expired", "task-revoked")
        result = app.sleep.apply_async((600,), task_id="terminated")
        ask_until(app.app, worker.node, "active", lambda tasks: tasks)
        app.add.apply_async((1, 1), task_id="revoked")
        ask(app.app, worker.node, "revoke", task_id="revoked")
        ask(app.app, worker.node, "revoke", task_id="terminated", terminate=True, signal="KILL")
        ends("terminated", "task-revoked")
        ends("revoked", "task-revoked")
        assert result.state == "REVOKED"
        chain(
            app.add.s(1, 1).set(task_id="first"), app.add.s(3).set(task_id="second")
        ).apply_async()
        ends("second", "task-succeeded")
        group([app.add.s(n, 1).set(task_id=f"member {n}") for n in range(2)]).apply_async()
        for number in range(2):
            ends(f"member {number}", "task-succeeded")
        recorder.wait_for("worker-heartbeat", count=3)
        main = worker.pid
        assert worker.stop() == 0
        recorder.wait_for("worker-offline")
    return Recording(worker.node, recorder.messages, worker.log, main, leaves_expiry)


@pytest.fixture(scope="module", params=["redis", "rabbit"])
def recordings(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_start: Callable[..., Worker],
    shared_client: Callable[..., ModuleType],
) -> dict[str, Recording]:
    """What Celery's worker and the one under test tell of the same tasks."""
    redis = request.getfixturevalue("redis_server")
    made = {}
    for side, kind in (("theirs", "celery"), ("ours", KIND)):
        folder = tmp_path_factory.mktemp(side)
        if request.param == "redis":
            place = place_on_redis(redis, folder)
        else:
            place = place_on_rabbit(request.getfixturevalue("rabbit_server"), redis, folder)
        place.settings = {"task_send_sent_event": True}
        app = shared_client(place, "controlled")
        made[side] = record(place, shared_start, app, kind)
    return made


#: Fields that are different each time, and what is compared of them.
VARIES: dict[str, Callable[[Any], Any]] = {
    "timestamp": lambda value: type(value),
    "clock": lambda value: type(value),
    "pid": lambda value: type(value),
    "runtime": lambda value: type(value),
    # The files and lines are those of the worker.
    "traceback": lambda value: value.strip().splitlines()[-1],
    # A job has a number, a process an id.
    "exception": lambda value: re.sub(r"\d+", "N", value),
    "loadavg": lambda value: [type(part) for part in value],
    "active": lambda value: type(value),
    "processed": lambda value: type(value),
}


def shown(event: Event, node: str) -> Event:
    return {
        name: VARIES[name](value) if name in VARIES and value is not None else value
        for name, value in {**event, "hostname": event["hostname"].replace(node, "NODE")}.items()
    }


def told(recording: Recording, task_id: str) -> list[Event]:
    """What the worker itself told of a task: what clients and tasks tell may come in between."""
    return [
        shown(event, recording.node)
        for event in recording.of_task(task_id)
        if event["pid"] == recording.main
    ]


TASKS = (
    "add", "started", "long_result", "described", "fail", "retry", "rejected", "requeued",
    "over_the_hard_limit", "over_the_soft_limit", "die", "tells", "sends", "from a task", "silent",
    "ignored", "unknown", "expired", "terminated", "revoked", "first", "second", "member 0",
    "member 1",
)  # fmt: skip
#: What the parent fails.
LOST = {"over_the_hard_limit", "die"}


#: Whose events come in an order that Celery leaves to chance: what is sent again may be received
#: before it is told that it was sent.
ANY_ORDER = {"retry", "requeued"}


@pytest.mark.parametrize("task_id", sorted(set(TASKS) - LOST - {"revoked"}))
def test_each_task_is_told_of_as_by_celery(recordings, task_id):
    theirs, ours = (told(recordings[side], task_id) for side in ("theirs", "ours"))
    if task_id == "expired" and recordings["ours"].leaves_expiry:
        assert ours == []
        return
    assert theirs or task_id == "silent"
    if task_id in ANY_ORDER:
        theirs, ours = (sorted(events, key=repr) for events in (theirs, ours))
    assert ours == theirs


def test_a_revoked_task_is_told_of_as_by_celery(recordings):
    """Celery's worker may have received it before it was revoked."""
    theirs, ours = (told(recordings[side], "revoked") for side in ("theirs", "ours"))
    assert ours[-1] == theirs[-1]
    assert [event["type"] for event in ours[:-1]] in ([], ["task-received"])


@pytest.mark.parametrize("task_id", sorted(LOST))
def test_a_task_whose_process_is_gone_is_told_of_once(recordings, task_id):
    """On purpose: Celery's worker tells of some twice, and of all with a useless exception."""
    theirs, ours = (told(recordings[side], task_id) for side in ("theirs", "ours"))
    failed = ours[-1]
    assert ours[:-1] == theirs[: len(ours) - 1]
    assert failed.keys() == theirs[-1].keys()
    assert failed["type"] == theirs[-1]["type"] == "task-failed"
    if KIND == "celeriac":
        assert [event["type"] for event in ours] == ["task-received", "task-started", "task-failed"]
        assert re.match(r"(TimeLimitExceeded|WorkerLostError)\(", failed["exception"])


@pytest.mark.parametrize("task_id", ["tells", "sends", "from a task"])
def test_tasks_tell_by_themselves(recordings, task_id):
    """What is sent from the process that runs a task."""
    theirs, ours = (
        [
            shown(event, recordings[side].node)
            for event in recordings[side].of_task(task_id)
            if event["pid"] != recordings[side].main and event["type"] != "task-sent"
        ]
        for side in ("theirs", "ours")
    )
    assert bool(theirs) == (task_id == "tells")
    assert ours == theirs


def test_a_task_that_is_sent_is_told_of_by_who_sends_it(recordings):
    for side, recording in recordings.items():
        sent = [e for e in recording.of_task("from a task") if e["type"] == "task-sent"]
        assert len(sent) == 1, side
        assert (sent[0]["name"], sent[0]["queue"]) == ("controlled.add", "celery")
        assert sent[0]["parent_id"] == sent[0]["root_id"] == "sends"


@pytest.mark.parametrize("kind", ["online", "heartbeat", "offline"])
def test_the_worker_tells_of_itself_as_celerys(recordings, kind):
    theirs, ours = (
        [shown(event, recordings[side].node) for event in recordings[side].of_worker(kind)]
        for side in ("theirs", "ours")
    )
    assert theirs
    for event in ours:
        assert event == theirs[0]
    if kind != "heartbeat":
        assert len(ours) == len(theirs)


def test_worker_events_carry_what_monitors_need(recordings):
    for side, recording in recordings.items():
        assert recording.events[0]["type"] == "worker-online"
        assert recording.events[-1]["type"] == "worker-offline"
        (last,) = recording.of_worker("offline")
        assert last["freq"] == 2.0
        assert last["processed"] >= len(TASKS) - 6
        # Celery's worker still counts one that it killed.
        assert last["active"] == 0 or (side, KIND) != ("ours", "celeriac")


def test_the_clock_goes_on_with_every_event(recordings):
    for side, recording in recordings.items():
        clocks = [event["clock"] for event in recording.events if event["pid"] == recording.main]
        assert clocks == sorted(set(clocks)), side


def test_times_are_those_of_what_happened(recordings):
    for side, recording in recordings.items():
        for task_id in ("add", "over_the_hard_limit", "fail"):
            own = [e for e in recording.of_task(task_id) if e["pid"] == recording.main]
            times = [event["timestamp"] for event in own]
            assert times == sorted(times), (side, task_id)


def test_messages_are_made_as_celerys(recordings):
    """Events of tasks come as lists, under one key; those of workers alone, under their own."""
    for side, recording in recordings.items():
        for message in recording.messages:
            kinds = {event["type"].partition("-")[0] for event in message.events()}
            assert len(kinds) == 1
            mine = all(event["pid"] == recording.main for event in message.events())
            if not mine:
                continue
            assert message.headers["hostname"] == recording.node, side
            if kinds == {"task"}:
                assert isinstance(message.body, list), side
            else:
                assert isinstance(message.body, dict), side
    theirs, ours = (
        {
            (message.routing_key, tuple(sorted(message.properties)), tuple(sorted(message.headers)))
            for message in recordings[side].messages
        }
        for side in ("theirs", "ours")
    )
    assert ours == theirs


def test_a_monitor_has_the_same_picture(recordings):
    pictures = {}
    for side, recording in recordings.items():
        state = State()
        # What clients tell comes before or after it.
        for event in (e for e in recording.events if e["pid"] == recording.main):
            state.event({**event, "local_received": event["timestamp"]})
        worker = state.workers[recording.node]
        assert worker.sw_ident == "py-celery"
        assert not worker.alive
        pictures[side] = {
            task_id: (task.name, task.state, task.args, task.kwargs, task.result, task.retries)
            for task_id, task in state.tasks.items()
        }
        # Whether it is received before it is revoked or expires is up to how much is fetched.
        for task_id in ("revoked", "expired"):
            pictures[side].pop(task_id, None)
    assert pictures["ours"] == pictures["theirs"]


# -- While it runs -----------------------------------------------------------------------------


def kinds_of(recorder: Recorder, task_id: str) -> list[str]:
    return [event["type"] for event in recorder.of(task_id)]


def test_task_events_are_turned_on_and_off_while_it_runs(fanout_place, start, client):
    app = client(fanout_place, "controlled")
    with Recorder(app.app) as recorder:
        worker = start(fanout_place, "-c", "1", app="controlled")
        assert app.add.apply_async((1, 1), task_id="before").get(timeout=TIMEOUT) == 2
        assert ask(app.app, worker.node, "enable_events") == {"ok": "task events enabled"}
        assert app.add.apply_async((1, 1), task_id="during").get(timeout=TIMEOUT) == 2
        recorder.wait_for("task-succeeded", uuid="during")
        assert ask(app.app, worker.node, "disable_events") == {"ok": "task events disabled"}
        assert app.add.apply_async((1, 1), task_id="after").get(timeout=TIMEOUT) == 2
        assert worker.stop() == 0
        recorder.wait_for("worker-offline")
        assert kinds_of(recorder, "during") == ["task-received", "task-started", "task-succeeded"]
        assert recorder.of("before") == recorder.of("after") == []


def test_a_monitor_sees_a_worker_alive_and_then_gone(fanout_place, start, client):
    app = client(fanout_place, "controlled")
    state = State()
    with Recorder(app.app) as recorder:
        worker = start(fanout_place, "-c", "1", "-E", app="controlled")
        recorder.wait_for("worker-heartbeat")

        def look() -> Any:
            while recorder.messages:
                for event in recorder.messages.pop(0).events():
                    # It is received now, as far as the monitor is concerned.
                    state.event({**event, "local_received": event["timestamp"]})
            return state.workers[worker.node]

        wait_until(lambda: look().alive, "it is alive")
        stays(lambda: look().alive, "it is alive", 5)
        assert [w.hostname for w in state.alive_workers()] == [worker.node]
        result = app.sleep.apply_async((3,), task_id="seen")
        wait_until(lambda: look().active == 1, "its heartbeats tell that it works")
        result.get(timeout=TIMEOUT)
        wait_until(lambda: state.tasks["seen"].state == "SUCCESS" if look() else False, "it ended")
        assert state.tasks["seen"].worker.hostname == worker.node
        assert worker.stop() == 0
        wait_until(lambda: not look().alive, "it is gone")


def test_without_heartbeats_there_are_none(fanout_place, start, client):
    app = client(fanout_place, "controlled")
    with Recorder(app.app) as recorder:
        worker = start(fanout_place, "-c", "1", "-E", "--without-heartbeat", app="controlled")
        app.add.apply_async((1, 1), task_id="told")
        recorder.wait_for("task-succeeded", uuid="told")
        stays(lambda: "worker-heartbeat" not in types(recorder), "none comes", 3)
        app.app.control.broadcast("heartbeat", destination=[worker.node])
        recorder.wait_for("worker-heartbeat", freq=5)


def types(recorder: Recorder) -> set[str]:
    return {event["type"] for event in recorder.events}


def test_the_pace_of_heartbeats_can_be_set(fanout_place, start, client):
    app = client(fanout_place, "controlled")
    with Recorder(app.app) as recorder:
        start(fanout_place, "-c", "1", "--heartbeat-interval", "1", app="controlled")
        beats = [recorder.wait_for("worker-heartbeat", count=n, freq=1.0) for n in (1, 2, 3)]
    gaps = [b["timestamp"] - a["timestamp"] for a, b in zip(beats, beats[1:])]
    assert all(gap < 1.9 for gap in gaps), gaps


def test_events_wait_for_a_broker_that_is_away(
    tmp_path, tmp_path_factory, redis_server, start, client
):
    """They are sent when it is back."""
    rabbit = RabbitServer(tmp_path_factory.mktemp("restarted"))
    try:
        place = place_on_rabbit(rabbit, redis_server, tmp_path)
        place.settings = {"broker_connection_retry_on_startup": True}
        app = client(place, "controlled")
        worker = start(place, "-c", "1", "-E", app="controlled")
        # A queue that is there when the broker is, whoever listens.
        kept = Queue("kept", Exchange("celeryev", "topic"), "#", durable=True)
        with app.app.connection_for_write() as connection:
            kept(connection.default_channel).declare()
        result = app.sleep.apply_async((3, place.file(), "it"), task_id="meanwhile")
        wait_until(lambda: place.lines() == ["start it"], "it runs")
        rabbit.stop()
        assert result.get(timeout=TIMEOUT) == "done" or result.state == "SUCCESS"
        rabbit.start()

        seen: list[Event] = []

        def look() -> bool:
            with app.app.connection_for_read() as connection:
                queue = kept(connection.default_channel)
                while (message := queue.get(no_ack=True)) is not None:
                    body = message.decode()
                    seen.extend(body if isinstance(body, list) else [body])
            return any((e["type"], e.get("uuid")) == ("task-succeeded", "meanwhile") for e in seen)

        wait_until(look, "what happened meanwhile is told", 60, lambda: worker.log[-3000:])
        kinds = [event["type"] for event in seen if event.get("uuid") == "meanwhile"]
        assert kinds.count("task-succeeded") == 1
    finally:
        rabbit.close()
