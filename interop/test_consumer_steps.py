"""Consumer steps of the app: what their handlers do holds up nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Place

from harness import workers
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
