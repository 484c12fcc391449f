"""RabbitMQ is not as a worker wants it: it runs out of patience, of memory, or has other queues."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import amqp
import pytest
from conftest import Place, place_on_rabbit

from harness import workers
from harness.amqp import connect, is_settled, queue_state
from harness.servers import RabbitServer, RedisServer
from harness.wait import stays, wait_until

TIMEOUT = 60.0
OURS = workers.KIND == "celeriac"


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    server = RabbitServer(
        tmp_path_factory.mktemp("troubled"),
        # How often it looks for consumers over their time.
        advanced="{rabbit, [{channel_tick_interval, 1000}]}",
    )
    yield server
    server.close()


@pytest.fixture
def place(rabbit: RabbitServer, redis_server: RedisServer, tmp_path: Path) -> Place:
    return place_on_rabbit(rabbit, redis_server, tmp_path)


def unacknowledged(rabbit: RabbitServer, place: Place, queue: str = "celery") -> int:
    vhost = place.broker.rpartition("/")[2]
    return int(rabbit.queues(vhost, "messages_unacknowledged")[queue][0])


@pytest.fixture
def impatient(rabbit: RabbitServer) -> Iterator[None]:
    """Channels that are opened now are closed when something is not acknowledged for 5 s."""
    before = rabbit.control("eval", "application:get_env(rabbit, consumer_timeout, undefined).")
    rabbit.control("eval", "application:set_env(rabbit, consumer_timeout, 5000).")
    yield
    rabbit.control("eval", f"application:set_env(rabbit, consumer_timeout, {before.strip()}).")


@pytest.mark.skipif(not OURS, reason="Celery's worker ends when RabbitMQ closes its channel")
@pytest.mark.usefixtures("impatient")
def test_a_task_that_takes_longer_than_the_consumer_timeout_runs_once(place, start, client):
    app = client(place)
    worker = start(place, "-c", "2")
    app.sleep_late.delay(20, place.file(), "long")
    wait_until(lambda: place.lines() == ["start long"], "it runs")
    wait_until(lambda: "end long" in place.lines(), "it ends", TIMEOUT, lambda: worker.log[-3000:])
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    assert worker.stop(timeout=TIMEOUT) == 0
    wait_until(lambda: is_settled(place.broker), "it is acknowledged", TIMEOUT)
    assert place.lines() == ["start long", "end long"]


def declare_otherwise(place: Place) -> None:
    """Makes the queue anew, before the worker does that is told that it is gone."""

    def is_first() -> bool:
        with connect(place.broker) as connection, connection.channel() as channel:
            # In one go: not even an answer is between them.
            channel.queue_delete("celery", nowait=True)
            try:
                channel.queue_declare(
                    "celery", durable=True, auto_delete=False, arguments={"x-max-priority": 7}
                )
            except amqp.PreconditionFailed:
                return False
            return True

    wait_until(is_first, "the queue is ours")


def test_a_queue_that_is_declared_otherwise_ends_the_worker_with_one_message(place, start):
    declare_otherwise(place)
    worker = start(place, "-c", "1", ready=False)
    assert worker.wait(TIMEOUT) != 0
    log = worker.log
    assert "x-max-priority" in log and "'celery'" in log, log
    if OURS:
        errors = [line for line in log.splitlines() if "PRECONDITION_FAILED" in line]
        assert len(errors) == 1, log
        assert "CRITICAL" in errors[0] or "ERROR" in errors[0]
        # What the queue is, what it should be, and what to do about it.
        assert "7" in errors[0] and "none" in errors[0], errors
        assert "task_queue_max_priority" in log or "delete" in log, log
        assert not worker.leftovers()


def test_a_queue_that_is_declared_otherwise_later_ends_the_worker_as_well(place, start, client):
    """The broker is wiped and somebody else is first."""
    app = client(place)
    worker = start(place, "-c", "1")
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    declare_otherwise(place)
    assert worker.wait(TIMEOUT) != 0
    assert "x-max-priority" in worker.log


def test_a_worker_goes_on_where_publishers_are_blocked(place, rabbit, start, client):
    app = client(place)
    worker = start(place, "-c", "2", "-E")
    for number in range(200):
        app.sleep_late.delay(0.05, place.file(), str(number))
    wait_until(lambda: place.lines(), "it works")
    # Whatever connection the worker publishes with is blocked from now on.
    app.app.control.ping(timeout=1)
    rabbit.control("set_vm_memory_high_watermark", "0.00001")
    try:
        wait_until(
            lambda: len(place.lines()) == 400, "all run", TIMEOUT, lambda: worker.log[-3000:]
        )
        wait_until(lambda: unacknowledged(rabbit, place) == 0, "all are acknowledged", TIMEOUT)
    finally:
        rabbit.control("set_vm_memory_high_watermark", "0.4")
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    assert len(place.lines()) == 400
    assert worker.stop(timeout=TIMEOUT) == 0


QUORUM = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "broker_native_delayed_delivery_queue_type": "classic",
}


def test_delayed_tasks_wait_in_the_broker_where_queues_are_quorum_queues(
    place, rabbit, start, client
):
    place.settings = QUORUM
    app = client(place)
    worker = start(place, "-c", "2")
    before = time.time()
    results = [app.about.apply_async(countdown=seconds) for seconds in (2, 4, 6)]
    far = app.about.apply_async(countdown=3600)
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    # They are on the way to the queue, and nobody's.
    assert queue_state(place.broker) is not None
    assert unacknowledged(rabbit, place) == 0
    for seconds, result in zip((2, 4, 6), results, strict=True):
        about = result.get(timeout=TIMEOUT)
        due = datetime.fromisoformat(about["eta"]).timestamp()
        done = result.date_done.timestamp()
        assert due - 0.01 <= done
        assert before + seconds <= due + 0.01
    assert far.state == "PENDING"
    assert worker.stop(timeout=TIMEOUT) == 0


def test_what_is_held_until_it_is_due_is_bounded(place, rabbit, start, client):
    place.settings = {
        "celeriac_delay_store": False,
        "worker_eta_task_limit": 10,
        "worker_prefetch_multiplier": 1,
    }
    app = client(place)
    for number in range(40):
        app.sleep.apply_async((0, place.file(), str(number)), countdown=3600)
    worker = start(place, "-c", "2")
    wait_until(lambda: unacknowledged(rabbit, place) >= 10, "it holds some")
    stays(lambda: unacknowledged(rabbit, place) <= 12, "it holds no more", 3)
    assert worker.stop(timeout=TIMEOUT) == 0
    state = queue_state(place.broker)
    assert state is not None and state.ready == 40
    assert place.lines() == []


def test_heartbeats_go_on_while_all_are_busy(place, rabbit, start, client):
    place.settings = {"broker_heartbeat": 2}
    app = client(place)
    worker = start(place, "-c", "2")
    for number in range(4):
        app.spin.delay(8, place.file(), str(number))
    wait_until(lambda: len(place.lines()) == 8, "all end", TIMEOUT, lambda: worker.log[-3000:])
    assert "Connection to broker lost" not in worker.log
    log = "".join(file.read_text() for file in rabbit.folder.glob("log/*.log"))
    assert "missed heartbeats" not in log
    assert worker.stop(timeout=TIMEOUT) == 0
