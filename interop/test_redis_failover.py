"""A Redis replica is promoted by Sentinel under long tasks: every task runs, and once."""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Place

from harness import workers
from harness.sentinel import Pair
from harness.servers import RedisServer
from harness.wait import wait_until

TASKS = 200
SLOTS = 20
TIMEOUT = 60.0
#: Seconds after which a worker consumes again, from when the replica is promoted.
AGAIN = 5.0
OURS = workers.KIND == "celeriac"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path) as pair:
        yield pair


@pytest.fixture
def place(pair: Pair, redis_server: RedisServer, tmp_path: Path) -> Place:
    results = redis_server.url(redis_server.database())
    settings = {"broker_connection_retry_on_startup": True}
    return Place(pair.url, results, tmp_path, transport_options=pair.options, settings=settings)


def counted(place: Place, what: str) -> collections.Counter[str]:
    lines = (line.split() for line in place.lines())
    return collections.Counter(name for verb, name in lines if verb == what)


def test_tasks_run_behind_a_sentinel(place, pair, start, client):
    app = client(place)
    worker = start(place, "-c", "2")
    assert [app.add.delay(number, 1).get(timeout=TIMEOUT) for number in range(3)] == [1, 2, 3]
    wait_until(lambda: not pair.master().client().exists("unacked"), "all are acknowledged")
    assert worker.stop(timeout=TIMEOUT) == 0


@pytest.mark.skipif(not OURS, reason="Celery's worker ends by an AttributeError as it reconnects")
def test_a_replica_is_promoted_under_long_tasks(place, pair, start, client):
    app = client(place)
    choose = random.Random(5)
    for number in range(TASKS):
        app.sleep_late.delay(choose.uniform(1, 5), place.file(), str(number))
    worker = start(place, "-c", str(SLOTS))
    wait_until(lambda: len(counted(place, "end")) > TASKS // 4, "it works", TIMEOUT)
    pair.promote()
    promoted = time.monotonic()
    before = len(counted(place, "start"))
    wait_until(
        lambda: len(counted(place, "start")) > before,
        "it consumes again",
        TIMEOUT,
        lambda: worker.log[-3000:],
    )
    took = time.monotonic() - promoted
    print(f"consuming again after {took:.1f} s")
    redis = pair.master().client()
    wait_until(
        lambda: len(counted(place, "end")) == TASKS,
        "all ran",
        TIMEOUT + TASKS * 5 / SLOTS,
        lambda: (
            f"{len(counted(place, 'end'))} of {TASKS} ran, {redis.llen('celery')} wait, "
            f"{redis.hlen('unacked')} are taken\n{worker.log[-3000:]}"
        ),
    )
    assert worker.process.poll() is None, worker.log
    assert took < AGAIN
    again = {name: count for name, count in counted(place, "start").items() if count > 1}
    assert not again, f"run again: {again}"
    wait_until(lambda: not redis.exists("unacked", "celery"), "all are acknowledged", TIMEOUT)
    assert worker.stop(timeout=TIMEOUT) == 0
