"""RabbitMQ is killed and restarted, and connections to it are cut: every task runs, and once.

What ran while its connection was lost is delivered again. Celery's worker runs it again; ours
takes the new delivery for the old one.
"""

from __future__ import annotations

import collections
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Callable

import pytest
from conftest import Place, place_on_rabbit

from harness import workers
from harness.amqp import is_settled, queue_state
from harness.proxy import Proxy
from harness.servers import RabbitServer, RedisServer
from harness.wait import wait_until
from harness.workers import Worker

TASKS = 200
#: More of each on request (50 and 1000): a restart takes RabbitMQ some seconds, and a worker that
#: is cut off while it connects waits for some.
RESTARTS = int(os.environ.get("INTEROP_RESTARTS", "10"))
CUTS = int(os.environ.get("INTEROP_CUTS", "50"))
#: Seconds after which a worker consumes again, from when the broker answers.
AGAIN = 5.0
TIMEOUT = 60.0
OURS = workers.KIND == "celeriac"
#: Whoever publishes here knows that what was published is kept.
CONFIRMED = {"confirm_publish": True}


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """Not the one of all tests, which need it to stay."""
    server = RabbitServer(tmp_path_factory.mktemp("restarted"))
    yield server
    server.close()


@pytest.fixture
def place(rabbit: RabbitServer, redis_server: RedisServer, tmp_path: Path) -> Place:
    place = place_on_rabbit(rabbit, redis_server, tmp_path)
    place.transport_options = CONFIRMED
    place.settings = {
        "broker_connection_retry_on_startup": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }
    return place


def counted(place: Place, what: str) -> collections.Counter[str]:
    lines = (line.split() for line in place.lines())
    return collections.Counter(name for verb, name in lines if verb == what)


def assert_each_ran_once(place: Place, tasks: int) -> None:
    begun, ended = counted(place, "start"), counted(place, "end")
    assert len(ended) == tasks, f"lost: {sorted(set(map(str, range(tasks))) - set(ended))}"
    if OURS:
        again = {name: count for name, count in begun.items() if count > 1}
        assert not again, f"run again: {again}"
        assert set(ended.values()) == {1}


def finish(place: Place, worker: Worker, tasks: int, timeout: float = TIMEOUT) -> None:
    """All end, each once, and nothing is left on the queue."""
    wait_until(
        lambda: len(counted(place, "end")) == tasks,
        "all ran",
        timeout,
        lambda: f"{len(counted(place, 'end'))} of {tasks} ran\n{worker.log[-3000:]}",
    )
    assert worker.process.poll() is None, worker.log
    assert worker.stop(timeout=TIMEOUT) == 0
    wait_until(lambda: is_settled(place.broker), "all are acknowledged", TIMEOUT)
    assert_each_ran_once(place, tasks)
    assert "panicked" not in worker.log


def consumes_again(place: Place, worker: Worker) -> float:
    """The seconds that it takes from now until the worker consumes."""
    began = time.monotonic()

    def consumes() -> bool:
        state = queue_state(place.broker)
        return state is not None and state.consumers > 0

    wait_until(consumes, "it consumes again", TIMEOUT, lambda: worker.log[-3000:])
    return time.monotonic() - began


@pytest.mark.timeout(180 + 30 * RESTARTS)
def test_rabbitmq_is_killed_and_restarted_under_long_tasks(place, rabbit, start, client):
    app = client(place)
    choose = random.Random(11)
    for number in range(TASKS):
        app.sleep_late.delay(choose.uniform(1, 5), place.file(), str(number))
    # So many that there is work until the last restart.
    slots = max(2, 60 // RESTARTS)
    worker = start(place, "-c", str(slots))
    took = []
    for _ in range(RESTARTS):
        before = len(counted(place, "end"))
        wait_until(lambda: len(counted(place, "end")) > before, "it works", TIMEOUT)
        # In the midst of things, whatever they are.
        time.sleep(choose.uniform(0, 0.5))
        rabbit.kill()
        rabbit.start()
        took.append(consumes_again(place, worker))
        assert worker.process.poll() is None, worker.log
    print(f"{slots} slots; consuming again after {sorted(took)} s")
    if OURS:
        assert max(took) < AGAIN
    finish(place, worker, TASKS, timeout=TASKS * 5 / slots + TIMEOUT)


@pytest.fixture
def proxy(rabbit: RabbitServer) -> Iterator[Proxy]:
    way = Proxy(rabbit.port)
    yield way
    way.stop()


def start_through(proxy: Proxy, place: Place, start: Callable[..., Worker]) -> Worker:
    """A worker whose connections can be cut, with the clients' own left alone."""
    vhost = place.broker.rpartition("/")[2]
    cut = Place(
        f"amqp://guest:guest@127.0.0.1:{proxy.port}/{vhost}",
        place.backend,
        place.folder,
        transport_options=CONFIRMED,
        settings=place.settings,
    )
    return start(cut, "-c", "4")


@pytest.mark.timeout(180 + 5 * CUTS)
@pytest.mark.parametrize("task", ["sleep", "sleep_late"], ids=["early", "late"])
def test_connections_are_cut_at_any_moment(place, proxy, start, client, task):
    """Short tasks, so that cuts meet all that is said about one."""
    app = client(place)
    choose = random.Random(7)
    worker = start_through(proxy, place, start)
    sent = 0

    def send(app: ModuleType, count: int) -> None:
        nonlocal sent
        for _ in range(count):
            getattr(app, task).delay(choose.uniform(0, 0.05), place.file(), str(sent))
            sent += 1

    cuts = 0
    while cuts < CUTS:
        state = queue_state(place.broker)
        if state is not None and state.ready < 20:
            send(app, 40)
        if choose.random() < 0.9:
            # As it consumes. Else it connects, or waits before it tries that again.
            lines = len(place.lines())
            wait_until(
                lambda: len(place.lines()) > lines, "it works", TIMEOUT, lambda: worker.log[-3000:]
            )
        time.sleep(choose.choice([0, 0.005, 0.02, 0.1]) * choose.random())
        cuts += proxy.cut() > 0
        assert worker.process.poll() is None, worker.log
    print(f"{cuts} cuts, {sent} tasks")
    consumes_again(place, worker)
    finish(place, worker, sent)


def test_the_broker_closes_all_connections_again_and_again(place, rabbit, start, client):
    app = client(place)
    worker = start(place, "-c", "4")
    for number in range(40):
        app.sleep_late.delay(1, place.file(), str(number))
    for _ in range(5):
        rabbit.close_connections()
        consumes_again(place, worker)
    finish(place, worker, 40)
