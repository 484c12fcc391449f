"""Consumer steps of the app: what their handlers do holds up nobody else."""

from __future__ import annotations

import os
import signal
import uuid
from typing import Any

import pytest
import redis
from conftest import Place

from harness import workers
from harness.control import ask, ask_until
from harness.wait import wait_until

TIMEOUT = 60.0
OURS = workers.KIND == "celeriac"
only_ours = pytest.mark.skipif(not OURS, reason="Celery's handlers run in the worker's only loop")


@pytest.fixture
def app(fanout_place: Place, start: Any, client: Any) -> Any:
    # Nobody hears from a connection for long that sends no heartbeats.
    fanout_place.settings = {"broker_heartbeat": 4}
    loaded: Any = client(fanout_place, "foreign")
    loaded.place = fanout_place
    loaded.worker = start(fanout_place, "-c", "1", app="foreign")
    return loaded


def send(app: Any, name: str, **what: Any) -> None:
    with app.app.producer_or_acquire() as producer:
        producer.publish(
            {"name": name, **what},
            exchange=app.QUEUE.exchange,
            routing_key="foreign.message",
            declare=[app.QUEUE],
        )


def happens(app: Any, line: str, times: int = 1) -> None:
    wait_until(
        lambda: app.place.lines().count(line) >= times,
        line,
        TIMEOUT,
        lambda: app.worker.log[-3000:],
    )


def assert_works(app: Any) -> None:
    """Tasks run, and the worker answers."""
    results = [app.add.delay(number, 1) for number in range(20)]
    assert [result.get(timeout=TIMEOUT) for result in results] == list(range(1, 21))
    assert app.app.control.ping(destination=[app.worker.node], timeout=TIMEOUT)


def test_messages_that_are_no_tasks_are_handled(app):
    for number in range(10):
        send(app, str(number))
    for number in range(10):
        happens(app, f"end {number}")
    assert_works(app)
    assert app.worker.stop(timeout=TIMEOUT) == 0
    assert len(app.place.lines()) == 20


@only_ours
def test_a_handler_that_takes_long_holds_up_nobody(app):
    send(app, "slow", seconds=30)
    send(app, "next")
    happens(app, "begin slow")
    for _ in range(3):
        assert_works(app)
    assert "end slow" not in app.place.lines()
    happens(app, "end next")
    # Twice the heartbeat's time is long over.
    assert "Connection to broker lost" not in app.worker.log
    assert_works(app)
    assert app.place.lines() == ["begin slow", "end slow", "begin next", "end next"]
    assert app.worker.stop(timeout=TIMEOUT) == 0


@only_ours
def test_a_worker_ends_while_a_handler_takes_long(app):
    send(app, "slow", seconds=300)
    happens(app, "begin slow")
    assert app.worker.stop(timeout=TIMEOUT) == 0
    wait_until(lambda: not app.worker.leftovers(), "nothing is left of it")


@only_ours
def test_a_handler_that_fails_harms_nobody(app):
    for number in range(5):
        send(app, f"bad {number}", fails=True)
        send(app, f"good {number}")
    for number in range(5):
        happens(app, f"begin bad {number}")
        happens(app, f"end good {number}")
    assert_works(app)
    assert "its mistake" in app.worker.log
    assert app.worker.process.poll() is None
    assert app.worker.stop(timeout=TIMEOUT) == 0


def test_what_is_declared_for_a_step_is_declared_again_after_a_restart(app, start):
    """The binding is gone, as after a wiped broker: events flow again."""
    send(app, "first")
    happens(app, "end first")
    assert app.worker.stop(timeout=TIMEOUT) == 0
    with app.app.connection_for_write() as connection:
        app.QUEUE(connection.default_channel).delete()
    app.worker = start(app.place, "-c", "1", app="foreign")
    with app.app.producer_or_acquire() as producer:
        producer.publish(
            {"name": "second"}, exchange=app.QUEUE.exchange, routing_key="foreign.message"
        )
    happens(app, "end second")
    assert app.worker.stop(timeout=TIMEOUT) == 0


# -- The process of the steps dies ---------------------------------------------------------------


def command(app: Any, name: str, **arguments: Any) -> Any:
    return ask(app.app, app.worker.node, name, **arguments)


def kill_main(app: Any) -> None:
    killed = app.worker.host("main")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: app.worker.host("main") != killed, "it has a successor", TIMEOUT)


@only_ours
def test_a_successor_of_main_knows_and_does_what_main_did(app):
    assert app.place.lines("starts") == ["worker step"]
    loaded = command(app, "knows")
    command(app, "add_consumer", queue="later")
    command(app, "add_consumer", queue="left")
    ask_until(app.app, app.worker.node, "active_queues", lambda told: len(told) == 3)
    command(app, "cancel_consumer", queue="left")
    command(app, "rate_limit", task_name="foreign.add", rate_limit="7/s")
    command(app, "time_limit", task_name="foreign.add", soft=50, hard=60)
    command(app, "enable_events")
    command(app, "pool_grow", n=1)
    command(app, "revoke", task_id=["one", "two"])
    known = command(app, "knows")
    assert known["queues"] == ["celery", "later"]
    assert known["limits"] == ["7/s", 50, 60]
    assert all(known[name] != loaded[name] for name in loaded), known
    for times in (2, 3):
        kill_main(app)
        assert command(app, "knows") == known
        assert app.place.lines("starts") == ["worker step"] * times
        send(app, f"message {times}")
        happens(app, f"end message {times}")
        assert app.add.apply_async((1, times), queue="later").get(timeout=TIMEOUT) == 1 + times
    assert "add [rate_limit=7/s]" in str(command(app, "registered"))
    assert app.worker.stop(timeout=TIMEOUT) == 0


@only_ours
def test_a_revoke_that_main_did_not_store_is_stored_by_its_successor(app):
    os.kill(app.worker.host("main"), signal.SIGSTOP)
    revoked = uuid.uuid4().hex
    command(app, "revoke", task_id=revoked)
    assert app.add.AsyncResult(revoked).state == "PENDING"
    kill_main(app)
    wait_until(
        lambda: app.add.AsyncResult(revoked).state == "REVOKED",
        "it is stored in the result backend",
        TIMEOUT,
        lambda: app.worker.log,
    )
    if app.place.redis_database is not None:
        store = redis.Redis.from_url(app.place.broker)
        wait_until(lambda: store.zscore("_celeriac.revoked", revoked), "it is kept", TIMEOUT)
        store.close()
    assert app.worker.stop(timeout=TIMEOUT) == 0
