"""Tasks with an ETA wait in the broker: whoever is there when they are due runs them, once."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest
from conftest import Place

from harness import processes, workers
from harness.control import ask
from harness.servers import RabbitServer
from harness.wait import wait_until

FAR = 3600


@pytest.fixture(params=["redis", "rabbit", "sqlite"])
def any_place(request: pytest.FixtureRequest) -> Place:
    place: Place = request.getfixturevalue(f"{request.param}_place")
    return place


def test_an_eta_is_kept_and_comes_in_time(any_place: Place, start: Any, client: Any) -> None:
    app: ModuleType = client(any_place)
    worker = start(any_place, "-c", "1")
    asked = time.time()
    result = app.add.apply_async((1, 2), countdown=5)
    worker.wait_for(f"basic.add[{result.id}] received")
    assert app.add.delay(3, 4).get(timeout=20) == 7
    assert result.get(timeout=30) == 3
    assert time.time() - asked >= 5
    # It came twice, and was told of once.
    assert worker.log.count(f"[{result.id}] received") == 1


def unacknowledged(place: Place, request: pytest.FixtureRequest) -> int:
    """What a worker still has in its hands; other brokers move a message in one step."""
    if not place.broker.startswith("amqp"):
        return 0
    server: RabbitServer = request.getfixturevalue("rabbit_server")
    vhost = place.broker.rpartition("/")[2]
    return sum(int(found) for (found,) in server.queues(vhost, "messages_unacknowledged").values())


def test_a_killed_worker_takes_no_eta_with_it(
    any_place: Place, start: Any, client: Any, request: pytest.FixtureRequest
) -> None:
    app: ModuleType = client(any_place)
    worker = start(any_place, "-c", "1")
    results = [app.add.apply_async((number, 1), countdown=8) for number in range(20)]
    for result in results:
        worker.wait_for(f"[{result.id}] received")
    # Killed between RabbitMQ's confirm and its own ack, it would leave one twice
    # (docs/delay-store.md).
    wait_until(lambda: unacknowledged(any_place, request) == 0, "all are in the store")
    worker.kill()
    other = start(any_place, "-c", "1")
    assert [result.get(timeout=60) for result in results] == [number + 1 for number in range(20)]
    assert other.stop() == 0
    ran = [other.log.count(f"[{result.id}] succeeded") for result in results]
    assert ran == [1] * len(results)


def test_what_waits_is_listed_and_takes_no_memory(
    fanout_place: Place, start: Any, client: Any
) -> None:
    app: ModuleType = client(fanout_place)
    worker = start(fanout_place, "-c", "1")
    app.add.delay(1, 1).get(timeout=20)
    before = processes.rss_kib(worker.pid)
    with app.app.producer_pool.acquire() as producer:
        for number in range(2000):
            app.add.apply_async((number, 1), countdown=FAR, producer=producer)
    wait_until(lambda: worker.log.count(" received") >= 2001, "all are stored", timeout=60)
    assert app.add.delay(3, 4).get(timeout=20) == 7
    scheduled = ask(app.app, worker.node, "scheduled")
    assert len(scheduled) == 1000, "the first thousand"
    assert scheduled[0]["request"]["args"] == [0, 1]
    assert processes.rss_kib(worker.pid) - before < 20_000


def test_what_is_revoked_meanwhile_does_not_run(any_place: Place, start: Any, client: Any) -> None:
    app: ModuleType = client(any_place)
    worker = start(any_place, "-c", "1")
    result = app.add.apply_async((1, 2), countdown=6)
    worker.wait_for(f"[{result.id}] received")
    # kombu's client reaches no workers over SQLite.
    variables: dict[str, Any] = any_place.variables()
    workers.run("celeriac", "-A", app.app.main, "control", "revoke", result.id, **variables)
    worker.wait_for(f"Discarding revoked task: basic.add[{result.id}]")
    assert result.state == "REVOKED"


def test_a_fleet_may_go_back_to_celery(redis_place: Place, start: Any, client: Any) -> None:
    redis_place.transport_options = {
        "visibility_timeout": 60,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    app: ModuleType = client(redis_place)
    ours = start(redis_place, "-c", "1")
    result = app.add.apply_async((1, 2), countdown=10)
    ours.wait_for(f"[{result.id}] received")
    assert ours.stop() == 0
    start(redis_place, "-c", "1", kind="celery")
    assert result.get(timeout=60) == 3
