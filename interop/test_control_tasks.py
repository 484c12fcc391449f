"""What remote control tells of tasks, and what it does to them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import ANY

import pytest
from celery.canvas import StampingVisitor
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from conftest import Place
from kombu import Exchange

from harness import processes
from harness.control import TIMEOUT, ask, ask_until
from harness.wait import stays, wait_until
from harness.workers import KIND, Worker


@dataclass
class Watched:
    """A worker with two processes, and a client."""

    app: ModuleType
    worker: Worker
    place: Place

    def ask(self, command: str, **arguments: Any) -> Any:
        return ask(self.app.app, self.worker.node, command, **arguments)

    def ask_until(self, command: str, condition: Callable[[Any], Any], **arguments: Any) -> Any:
        return ask_until(self.app.app, self.worker.node, command, condition, **arguments)

    def running(self, seconds: float, *args: Any, **options: Any) -> Any:
        """A task that sleeps, and does so already."""
        result = self.app.sleep.apply_async((seconds, *args), **options)
        self.ask_until("active", lambda tasks: result.id in ids(tasks))
        return result

    def both_busy(self) -> list[Any]:
        """Two tasks that occupy the worker."""
        return [self.running(600) for _ in range(2)]


def ids(tasks: list[dict[str, Any]]) -> list[str]:
    return [task["id"] for task in tasks]


@pytest.fixture(scope="module")
def shared_worker(
    shared_place: Place,
    shared_start: Callable[..., Worker],
    shared_client: Callable[..., ModuleType],
) -> Watched:
    # Tasks with an ETA are looked at where they are held, as in Celery.
    shared_place.settings = {
        "broker_connection_retry_on_startup": True,
        "celeriac_delay_store": False,
    }
    worker = shared_start(shared_place, "-c", "2", app="controlled")
    return Watched(shared_client(shared_place, "controlled"), worker, shared_place)


@pytest.fixture
def watched(shared_worker: Watched) -> Iterator[Watched]:
    """The worker, which has nothing to do when a test is over."""
    yield shared_worker
    for command in ("active", "reserved"):
        for task in shared_worker.ask(command):
            shared_worker.ask("revoke", task_id=task["id"], terminate=True, signal="KILL")
    shared_worker.ask_until("active", lambda tasks: not tasks)


def revoked(result: Any) -> str:
    with pytest.raises(TaskRevokedError) as caught:
        result.get(timeout=TIMEOUT)
    assert result.state == "REVOKED"
    return str(caught.value)


# -- What is told ------------------------------------------------------------------------------


def described(watched: Watched, result: Any, **others: Any) -> dict[str, Any]:
    return {
        "id": result.id,
        "name": "controlled.sleep",
        "args": [600],
        "kwargs": {},
        "type": "controlled.sleep",
        "hostname": watched.worker.node,
        "time_start": ANY,
        "acknowledged": True,
        "delivery_info": {
            "exchange": "",
            "routing_key": "celery",
            "priority": 0,
            "redelivered": False,
        },
        "worker_pid": ANY,
        **others,
    }


def test_a_running_task_is_told_in_full(watched):
    before = time.time()
    result = watched.running(600)
    (told,) = watched.ask("active")
    assert told == described(watched, result)
    assert before - 1 <= told["time_start"] <= time.time() + 1
    assert told["worker_pid"] in watched.worker.children()


def test_arguments_are_told_as_they_are_or_safely(watched):
    result = watched.app.sleep.apply_async(
        (600,), {"text": "größer"}, argsrepr="(secret,)", kwargsrepr="{'text': '***'}"
    )
    (told,) = watched.ask_until("active", lambda tasks: result.id in ids(tasks))
    assert (told["args"], told["kwargs"]) == ([600], {"text": "größer"})
    (told,) = watched.ask("active", safe=True)
    assert (told["args"], told["kwargs"]) == ("(secret,)", "{'text': '***'}")


def test_a_task_that_is_acknowledged_late_is_not_acknowledged_while_it_runs(watched):
    result = watched.app.sleep_late.delay(600)
    (told,) = watched.ask_until("active", lambda tasks: result.id in ids(tasks))
    assert told["acknowledged"] is False
    assert told["name"] == "controlled.sleep_late"


def test_a_shadow_is_the_name_and_the_task_is_the_type(watched):
    result = watched.running(600, shadow="another name", priority=3)
    (told,) = watched.ask("active")
    assert (told["name"], told["type"]) == ("another name", "controlled.sleep")
    assert told["delivery_info"]["priority"] == 3
    assert told["id"] == result.id


def test_a_task_with_an_eta_is_told_as_scheduled(watched):
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    result = watched.app.sleep.apply_async((600,), eta=eta)
    (told,) = watched.ask_until("scheduled", lambda entries: entries)
    assert told == {
        "eta": eta.isoformat(),
        "priority": 6,
        "request": described(watched, result, time_start=None, acknowledged=False, worker_pid=None),
    }
    state, request = watched.ask("query_task", ids=[result.id])[result.id]
    assert (state, request["id"]) == ("scheduled", result.id) or KIND == "celery"
    watched.ask("revoke", task_id=result.id)
    assert revoked(result) == "revoked"
    assert result.id not in ids(watched.ask("active"))


def test_tasks_are_found_by_their_ids(watched):
    first, second = watched.both_busy()
    found = watched.ask("query_task", ids=[first.id, "unknown", second.id])
    assert set(found) == {first.id, second.id}
    assert found[first.id] == ["active", described(watched, first)]
    assert watched.ask("query_task", ids=first.id) == {first.id: found[first.id]}


def test_what_ended_is_told_no_longer(watched):
    result = watched.app.add.delay(1, 2)
    assert result.get(timeout=TIMEOUT) == 3
    watched.ask_until("active", lambda tasks: not tasks)
    assert watched.ask("query_task", ids=[result.id]) == {}


def test_reserved_is_what_is_here_and_does_not_run(watched):
    """Celery's worker fetches ahead; one that does not has nothing to tell."""
    busy = watched.both_busy()
    waiting = [watched.app.sleep.delay(600) for _ in range(2)]
    told = watched.ask("reserved")
    if KIND == "celery":
        told = watched.ask_until("reserved", lambda tasks: len(tasks) == 2)
    assert set(ids(told)) <= {result.id for result in waiting}
    assert all(task["time_start"] is None for task in told)
    assert set(ids(watched.ask("active"))) == {result.id for result in busy}
    for result in waiting:
        watched.ask("revoke", task_id=result.id)
        wait_until(lambda: result.state == "REVOKED", "it is revoked before its turn", TIMEOUT)
    for result in busy:
        watched.ask("revoke", task_id=result.id, terminate=True)
    for result in waiting:
        revoked(result)


# -- Revoking ----------------------------------------------------------------------------------


def test_a_task_that_waits_is_revoked(watched):
    busy = watched.both_busy()
    first, second = (watched.app.add.delay(n, 1) for n in range(2))
    assert watched.ask("revoke", task_id=first.id) == {
        "ok": f"tasks {{{first.id!r}}} flagged as revoked"
    }
    assert revoked(first) == "revoked"
    for result in busy:
        watched.ask("revoke", task_id=result.id, terminate=True)
    assert second.get(timeout=TIMEOUT) == 2
    assert first.state == "REVOKED"
    wait_until(
        lambda: f"Discarding revoked task: controlled.add[{first.id}]" in watched.worker.log,
        "it was discarded",
    )
    assert f"Task controlled.add[{first.id}] succeeded" not in watched.worker.log


def test_several_tasks_are_revoked_at_once(watched):
    busy = watched.both_busy()
    waiting = [watched.app.add.delay(n, 1) for n in range(3)]
    chosen = [result.id for result in waiting[:2]]
    reply = watched.ask("revoke", task_id=chosen)["ok"]
    assert all(task_id in reply for task_id in chosen)
    for result in busy:
        watched.ask("revoke", task_id=result.id, terminate=True)
    assert waiting[2].get(timeout=TIMEOUT) == 3
    for result in waiting[:2]:
        revoked(result)
    assert set(chosen) <= set(watched.ask("revoked"))


def test_a_task_that_runs_is_left_alone_when_it_is_only_revoked(watched):
    result = watched.running(1.5)
    reply = watched.ask("revoke", task_id=result.id)
    assert reply == {"ok": f"tasks {{{result.id!r}}} flagged as revoked"}
    assert result.get(timeout=TIMEOUT) == "done"


@pytest.mark.parametrize("number", [None, "SIGTERM", "KILL"])
def test_a_task_that_runs_is_terminated(watched, number, tmp_path):
    file = tmp_path / "notes"
    result = watched.running(600, str(file), "terminated")
    (told,) = watched.ask("active")
    other = watched.running(600)
    reply = watched.ask("revoke", task_id=result.id, terminate=True, signal=number)
    assert reply == {"ok": f"terminate: {result.id}"}
    assert revoked(result) == "terminated"
    wait_until(lambda: not processes.is_running(told["worker_pid"]), "its process ends")
    assert watched.app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
    assert file.read_text() == "start terminated\n"
    assert ids(watched.ask("active")) == [other.id]


def test_a_signal_that_a_process_outlives_ends_the_task_only(watched):
    """What a soft time limit sends."""
    result = watched.running(600)
    (told,) = watched.ask("active")
    watched.ask("revoke", task_id=result.id, terminate=True, signal="SIGUSR1")
    watched.ask_until("active", lambda tasks: not tasks)
    # The state is stored here and there, in any order.
    assert result.state in ("REVOKED", "FAILURE")
    assert processes.is_running(told["worker_pid"])
    assert watched.app.add.delay(1, 1).get(timeout=TIMEOUT) == 2


def test_terminate_is_a_command_of_its_own(watched):
    result = watched.running(600)
    assert watched.ask("terminate", task_id=[result.id], signal="SIGKILL") == {
        "ok": f"terminate: {result.id}"
    }
    assert revoked(result) == "terminated"
    assert watched.ask("terminate", task_id="unknown", signal="TERM") == {
        "ok": "terminate: tasks unknown"
    }


def test_a_client_revokes_through_its_result(watched):
    """As apps do it."""
    result = watched.running(600)
    result.revoke(terminate=True, signal="KILL", wait=True, timeout=1)
    assert revoked(result) == "terminated"


class Stamp(StampingVisitor):
    def __init__(self, **stamps: Any) -> None:
        self.stamps = stamps

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {**self.stamps, "stamped_headers": list(self.stamps)}


def test_tasks_are_revoked_by_their_stamps(watched):
    def send(stamp: Any) -> Any:
        signature = watched.app.add.si(2, 2)
        signature.stamp(Stamp(customer=stamp))
        return signature.apply_async()

    reply = watched.ask("revoke_by_stamped_headers", headers={"customer": ["bad", "worse"]})
    assert reply == {
        "ok": "headers {'customer': ['bad', 'worse']} flagged as revoked, but not terminated"
    }
    bad, good, worse = (send(stamp) for stamp in ("bad", "good", ["worse", "fine"]))
    assert revoked(bad) == revoked(worse) == "revoked"
    assert good.get(timeout=TIMEOUT) == 4


def test_tasks_that_run_are_terminated_by_their_stamps(watched):
    signature = watched.app.sleep.si(600)
    signature.stamp(Stamp(tenant="leaves"))
    result = signature.apply_async()
    other = watched.running(600)
    watched.ask_until("active", lambda tasks: result.id in ids(tasks))
    told = watched.ask("revoke_by_stamped_headers", headers={"tenant": ["x"]}, terminate=True)
    assert told == {"ok": "headers {'tenant': ['x']} were not terminated"}
    reply = watched.ask(
        "revoke_by_stamped_headers", headers={"tenant": ["leaves"]}, terminate=True, signal="KILL"
    )
    assert "leaves" in reply["ok"] and reply["ok"].endswith(" revoked")
    assert revoked(result) == "terminated"
    assert ids(watched.ask("active")) == [other.id]


# -- Limits ------------------------------------------------------------------------------------


def test_a_rate_limit_holds_for_tasks_that_come_after_it(watched, tmp_path):
    file = tmp_path / "notes"

    def send(text: str) -> Any:
        return watched.app.limited.delay(str(file), text)

    def lines() -> list[str]:
        return file.read_text().split() if file.exists() else []

    watched.ask("rate_limit", task_name="controlled.limited", rate_limit="1/h")
    told = watched.ask("registered")
    assert "controlled.limited [rate_limit=1/h]" in told
    send("first").get(timeout=TIMEOUT)
    held = send("held")
    stays(lambda: lines() == ["first"], "the second waits", 1)
    assert watched.ask("active") == []
    watched.ask("rate_limit", task_name="controlled.limited", rate_limit=None)
    assert "controlled.limited" in watched.ask("registered")
    send("free").get(timeout=TIMEOUT)
    assert set(lines()) <= {"first", "free", "held"} and "free" in lines()
    watched.ask("revoke", task_id=held.id)
    watched.ask("rate_limit", task_name="controlled.limited", rate_limit="100/s")


@pytest.mark.skipif(KIND == "celery", reason="has no effect in Celery's worker")
def test_time_limits_hold_for_tasks_that_come_after_them(watched):
    try:
        watched.ask("time_limit", task_name="controlled.has_limits", hard=1)
        with pytest.raises(TimeLimitExceeded):
            watched.app.has_limits.delay(60).get(timeout=TIMEOUT)
        watched.ask("time_limit", task_name="controlled.has_limits", hard=60, soft=1)
        with pytest.raises(SoftTimeLimitExceeded):
            watched.app.has_limits.delay(60).get(timeout=TIMEOUT)
        # A message has the last word.
        with pytest.raises(TimeLimitExceeded):
            watched.app.has_limits.apply_async((60,), time_limit=1, soft_time_limit=30).get(
                timeout=TIMEOUT
            )
        watched.ask("time_limit", task_name="controlled.has_limits")
        assert watched.app.has_limits.delay(1.5).get(timeout=TIMEOUT) is None
    finally:
        watched.ask("time_limit", task_name="controlled.has_limits", hard=600, soft=300)


# -- Queues and processes ----------------------------------------------------------------------


def queues(watched: Watched) -> dict[str, dict[str, Any]]:
    return {queue["name"]: queue for queue in watched.ask("active_queues")}


def test_a_queue_is_taken_up_and_left(watched):
    result = watched.app.add.apply_async((1, 2), queue="later")
    reply = watched.ask("add_consumer", queue="later")
    assert reply == {"ok": "add consumer later"}
    assert result.get(timeout=TIMEOUT) == 3
    told = queues(watched)
    assert set(told) == {"celery", "later"}
    assert told["later"]["exchange"]["type"] == "direct"
    watched.worker.wait_for("Started consuming from later")

    assert watched.ask("cancel_consumer", queue="later") == {"ok": "no longer consuming from later"}
    watched.ask_until("active_queues", lambda told: len(told) == 1)
    left = watched.app.add.apply_async((2, 2), queue="later")
    assert watched.app.add.delay(3, 3).get(timeout=TIMEOUT) == 6
    stays(lambda: not left.ready(), "nobody takes it", 0.5)
    watched.ask("add_consumer", queue="later")
    assert left.get(timeout=TIMEOUT) == 4
    watched.ask("cancel_consumer", queue="later")
    watched.ask_until("active_queues", lambda told: len(told) == 1)


def test_a_queue_with_an_exchange_of_its_own_is_taken_up(watched):
    watched.ask(
        "add_consumer", queue="bound", exchange="news", exchange_type="topic",
        routing_key="news.*",
    )  # fmt: skip
    told = watched.ask_until("active_queues", lambda told: len(told) == 2)
    (bound,) = [queue for queue in told if queue["name"] == "bound"]
    assert (bound["exchange"]["name"], bound["exchange"]["type"]) == ("news", "topic")
    assert bound["routing_key"] == "news.*"
    news = Exchange("news", "topic")
    result = watched.app.add.apply_async(
        (4, 4), exchange=news, routing_key="news.today", declare=[news]
    )
    assert result.get(timeout=TIMEOUT) == 8
    watched.ask("cancel_consumer", queue="bound")
    watched.ask_until("active_queues", lambda told: len(told) == 1)


def test_the_pool_grows_and_shrinks(watched):
    before = set(watched.worker.children())
    assert watched.ask("pool_grow", n=2) == {"ok": "pool will grow"}
    watched.ask_until("stats", lambda stats: len(stats["pool"]["processes"]) == 4)
    busy = [watched.running(600) for _ in range(4)]
    assert len(watched.ask("active")) == 4
    assert before <= set(watched.worker.children())
    for result in busy:
        watched.ask("revoke", task_id=result.id, terminate=True, signal="KILL")
    watched.ask_until("active", lambda tasks: not tasks)
    assert watched.ask("pool_shrink", n=2) == {"ok": "pool will shrink"}
    watched.ask_until("stats", lambda stats: len(stats["pool"]["processes"]) == 2)
    wait_until(lambda: len(watched.worker.children()) == 2, "two are left")
    assert watched.app.add.delay(1, 1).get(timeout=TIMEOUT) == 2


# -- Workers of their own ----------------------------------------------------------------------


@pytest.fixture
def alone(
    fanout_place: Place, start: Callable[..., Worker], client: Callable[..., ModuleType]
) -> Callable[..., Watched]:
    def begin(*arguments: str, **settings: Any) -> Watched:
        fanout_place.settings = {**fanout_place.settings, **settings}
        worker = start(fanout_place, *arguments, app="controlled")
        return Watched(client(fanout_place, "controlled"), worker, fanout_place)

    return begin


def test_autoscale_is_changed(alone):
    watched = alone("--autoscale=3,1")
    assert watched.ask("stats")["autoscaler"] == {"max": 3, "min": 1, "current": 1, "qty": ANY}
    assert watched.ask("autoscale", max=5, min=2) == {"ok": "autoscale now max=5 min=2"}
    wait_until(lambda: len(watched.worker.children()) == 2, "two run")
    for command in ("pool_grow", "pool_shrink"):
        assert watched.ask(command, n=1) == {
            "error": f"{command} is not supported with autoscale. Adjust autoscale range instead."
        }
    assert watched.ask("autoscale", max=4) == {"ok": "autoscale now max=4 min=2"}


def test_shutdown_lets_what_runs_end(alone, tmp_path):
    watched = alone("-c", "1")
    file = tmp_path / "notes"
    result = watched.running(2, str(file), "last")
    watched.app.app.control.shutdown(destination=[watched.worker.node])
    assert watched.worker.wait() == 0
    assert "Got shutdown from remote" in watched.worker.log
    assert result.get(timeout=TIMEOUT) == "last"
    assert Path(file).read_text().split() == ["start", "last", "end", "last"]
    assert watched.worker.leftovers() == []


def test_a_pool_is_restarted_where_that_is_allowed(alone):
    watched = alone("-c", "1", worker_pool_restarts=True)
    before = set(watched.worker.children())
    if KIND != "celery":
        refused = watched.ask("pool_restart", modules=["controlled"], reload=True)["error"]
        assert "restart it" in refused
        assert set(watched.worker.children()) == before
    assert watched.ask("pool_restart") == {"ok": "reload started"}
    wait_until(
        lambda: len(after := set(watched.worker.children())) == 1 and not after & before,
        "another process runs",
        context=lambda: watched.worker.log,
    )
    assert watched.app.add.delay(1, 1).get(timeout=TIMEOUT) == 2


def test_without_remote_control_nobody_answers_and_all_goes_on(alone):
    watched = alone("-c", "1", worker_enable_remote_control=False)
    assert not watched.app.app.control.ping(timeout=1)
    assert watched.app.add.delay(1, 1).get(timeout=TIMEOUT) == 2


@pytest.mark.skipif(KIND == "celery", reason="ends Celery's worker")
def test_an_election_does_not_end_a_worker_that_is_alone(fanout_place, start, client):
    worker = start(fanout_place, "-c", "1", app="controlled", alone=False)
    watched = Watched(client(fanout_place, "controlled"), worker, fanout_place)
    action = watched.app.add.s(1, 1)
    assert watched.ask("election", id="x", topic="task", action=dict(action)) is None
    assert watched.ask("election", id="y", topic="unknown", action=None) is None
    assert watched.app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
    assert worker.stop(signal.SIGTERM) == 0


def test_two_of_one_name_both_answer_on_redis(redis_place, start, client):
    workers = [start(redis_place, "-c", "1", "-n", "twin@host", app="controlled") for _ in range(2)]
    app = client(redis_place, "controlled")
    assert app.app.control.ping(timeout=2) == [{"twin@host": {"ok": "pong"}}] * 2
    for worker in workers:
        assert worker.stop() == 0


def test_the_second_of_one_name_is_refused_by_rabbitmq(rabbit_place, start, client):
    """The queue of its mailbox belongs to the other one's connection."""
    first = start(rabbit_place, "-c", "1", "-n", "twin@host", app="controlled")
    is_ours = KIND == "celeriac"
    second = start(rabbit_place, "-c", "1", "-n", "twin@host", app="controlled", ready=is_ours)
    if is_ours:
        # It works on without remote control, and says how to mend it.
        second.wait_for("twin@host", timeout=TIMEOUT)
        assert "-n" in second.log
        assert second.stop() == 0
    else:
        assert second.wait() != 0
        assert "RESOURCE_LOCKED" in second.log
    app = client(rabbit_place, "controlled")
    assert app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
    assert ask(app.app, "twin@host", "ping") == {"ok": "pong"}
    assert first.stop() == 0
