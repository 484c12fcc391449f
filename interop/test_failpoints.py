"""A worker is killed before and after every command it gives its broker: nothing is lost, what had
ended is not repeated, and no message is left behind.

``FAILPOINTS=all`` tries every command; otherwise some are drawn, by a seed that is printed and that
``FAILPOINTS_SEED`` repeats."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
from celery import Celery, chain
from conftest import Place, place_on_rabbit, place_on_redis

from harness import workers
from harness.databases import Database, MariaDBServer, PostgresServer
from harness.failpoint import (
    AmqpCommands,
    Commands,
    Failpoint,
    MariaDBCommands,
    Point,
    PostgresCommands,
    RedisCommands,
)
from harness.servers import RabbitServer, RedisServer
from harness.wait import wait_until

TIMEOUT = 60
#: How many of the points are tried, unless all are.
DRAWN = 6
#: How many cases wait at a time.
BESIDE = 6

SETTINGS = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "broker_connection_retry_on_startup": True,
}
#: Between what ended before the kill and what ended after it.
KILL = "kill"
#: Those of the tasks that have a result; ``first`` and ``second`` are a chain.
ENDING = ("plain", "first", "second", "later", "again")
#: Those that send another one before they end, which comes twice if they are run twice.
FOLLOWED_BY = {"first": "second", "retrying": "again"}
#: What can't be run is a dead letter, by its cause.
LETTERS = {"refused": "rejected", "broken": "undecodable"}

pytestmark = pytest.mark.skipif(workers.KIND != "celeriac", reason="Celery's worker loses some")


class Way(Protocol):
    """How a worker comes to its broker, and to its end on the way."""

    def start(self, crew: workers.Crew, place: Place) -> workers.Worker:
        """Starts the worker."""

    def reached(self) -> bool:
        """Whether it was killed."""

    def stop(self) -> None:
        """Once the worker has ended."""

    def seen(self) -> int:
        """How many points there were, in a worker that was left alone."""


class Through:
    """Through a proxy that knows the broker's protocol."""

    def __init__(self, commands: type[Commands], place: Place, point: Point | None) -> None:
        port = re.search(r"127\.0\.0\.1:(\d+)", place.broker)
        assert port, place.broker
        self._failpoint = Failpoint(int(port[1]), commands, point)
        self._broker = place.broker.replace(port[1], str(self._failpoint.port))

    def start(self, crew: workers.Crew, place: Place) -> workers.Worker:
        here = replace(place, broker=self._broker)
        worker = crew.start(here, "-c", "1", app="killed", ready=False)

        def kill() -> None:
            worker.kill()
            wait_until(lambda: not worker.leftovers(), "nothing of it is left")

        self._failpoint.arm(kill)
        return worker

    def reached(self) -> bool:
        return self._failpoint.reached.is_set()

    def stop(self) -> None:
        self._failpoint.stop()

    def seen(self) -> int:
        return self._failpoint.seen


class Traced:
    """SQLite has no commands to count: the worker is killed at a write into the file, which is done
    then. Each of its threads counts by itself."""

    def __init__(self, place: Place, point: Point | None) -> None:
        self._file = place.folder / "writes"
        self._point = point
        self._worker: workers.Worker | None = None

    def start(self, crew: workers.Crew, place: Place) -> workers.Worker:
        inject: tuple[str, ...] = ()
        if self._point is not None:
            inject = ("-e", f"inject=pwrite64:signal=SIGKILL:when={self._point.number}")
        tracer = ("strace", "-D", "-f", "-qq", "-e", "trace=pwrite64", *inject)
        self._worker = crew.start(
            place, "-c", "1", app="killed", ready=False, within=(*tracer, "-o", str(self._file))
        )
        return self._worker

    def reached(self) -> bool:
        assert self._worker is not None
        return self._worker.process.poll() == -signal.SIGKILL

    def stop(self) -> None:
        pass

    def seen(self) -> int:
        lines = self._file.read_text().splitlines()
        return max(Counter(line.split()[0] for line in lines if "pwrite64(" in line).values())


@dataclass
class Broker:
    """One of the brokers."""

    place: Callable[[Path], Place]
    way: Callable[[Place, Point | None], Way]


@pytest.fixture(scope="module")
def databases() -> Iterator[Callable[[type[Database]], Database]]:
    started: dict[type[Database], Database] = {}

    def server(kind: type[Database]) -> Database:
        if kind not in started:
            started[kind] = kind()
        return started[kind]

    yield server
    for one in started.values():
        one.stop()


@pytest.fixture(params=["redis", "rabbit", "postgresql", "mariadb", "sqlite"])
def broker(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    databases: Callable[[type[Database]], Database],
) -> Broker:
    def results() -> str:
        return redis_server.url(redis_server.database())

    if request.param == "redis":
        return Broker(
            lambda folder: place_on_redis(redis_server, folder), partial(Through, RedisCommands)
        )
    if request.param == "rabbit":
        rabbit: RabbitServer = request.getfixturevalue("rabbit_server")
        return Broker(
            lambda folder: place_on_rabbit(rabbit, redis_server, folder),
            partial(Through, AmqpCommands),
        )
    if request.param == "sqlite":
        return Broker(
            lambda folder: Place(f"sqla+sqlite:///{folder}/broker.db", results(), folder), Traced
        )
    kinds: dict[str, tuple[type[Database], type[Commands]]] = {
        "postgresql": (PostgresServer, PostgresCommands),
        "mariadb": (MariaDBServer, MariaDBCommands),
    }
    kind, commands = kinds[request.param]
    return Broker(
        lambda folder: Place(f"sqla+{databases(kind).database()}", results(), folder),
        partial(Through, commands),
    )


@contextmanager
def client(place: Place) -> Iterator[Celery]:
    app = Celery("client", broker=place.broker, backend=place.backend)
    try:
        yield app
    finally:
        app.close()


def send(app: Celery) -> list[Any]:
    """Sends what a worker can meet, and returns the results that are to come."""

    def task(name: str, called: str, **options: Any) -> Any:
        return app.signature(f"killed.{name}", (called,), immutable=True, task_id=called, **options)

    task("work", "plain").apply_async()
    chain(task("work", "first"), task("work", "second")).apply_async()
    task("work", "later").apply_async(countdown=2.5)
    task("again", "again").apply_async()
    task("refuse", "refused").apply_async()
    with app.producer_or_acquire() as producer:
        producer.publish(
            b"{",
            routing_key="celery",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"task": "killed.work", "id": "broken", "lang": "py"},
        )
    return [app.AsyncResult(name) for name in ENDING]


def letters(place: Place) -> Counter[tuple[str, str]]:
    variables: dict[str, Any] = place.variables()
    listed = workers.run("celeriac", "-A", "killed", "dlq", "list", "--json", **variables)
    assert listed.returncode == 0, listed.stderr
    found = [json.loads(line) for line in listed.stdout.splitlines()]
    return Counter((letter["id"], letter["cause"]) for letter in found)


def waiting(app: Celery) -> int:
    with app.connection_or_acquire() as connection:
        channel = connection.default_channel
        return int(channel.queue_declare("celery", durable=True, auto_delete=False).message_count)


def judge(place: Place, app: Celery, was_killed: bool) -> None:
    """What has to be so once another worker has done what was left."""
    lines = place.lines()
    until = lines.index(KILL) if was_killed else 0
    ends = Counter(line.removeprefix("end ") for line in lines if line != KILL)
    assert set(ends) == {*ENDING, *FOLLOWED_BY, "refused"}
    # The broker had not been told of the last, and of the one before only where it is told of
    # several at a time. Whoever is run again sends what follows it again.
    untold = {line.removeprefix("end ") for line in lines[max(until - 2, 0) : until]}
    untold |= {FOLLOWED_BY[name] for name in untold & FOLLOWED_BY.keys()}
    assert {name for name, count in ends.items() if count > 1} <= untold, lines
    assert all(count <= 2 for count in ends.values()), lines
    kept = letters(place)
    assert set(kept) == set(LETTERS.items())
    # One that RabbitMQ has confirmed and whose message was not acknowledged (docs/dead-letters.md).
    assert kept.total() <= len(LETTERS) + was_killed, kept
    assert waiting(app) == 0


def live(broker: Broker, folder: Path, point: Point | None) -> Way:
    """Has a worker do everything until it is killed, and another one the rest."""
    folder.mkdir()
    place = broker.place(folder)
    place.settings = SETTINGS
    way = broker.way(place, point)
    with client(place) as app, workers.Crew(folder) as crew:
        results = send(app)

        def are_done() -> bool:
            return all(result.state == "SUCCESS" for result in results)

        first = way.start(crew, place)
        try:
            wait_until(lambda: way.reached() or are_done(), "it works", TIMEOUT, lambda: first.log)
            if not way.reached():
                first.send(signal.SIGTERM)
            first.wait(TIMEOUT)
            wait_until(lambda: not first.leftovers(), "nothing of it is left")
            if way.reached():
                with open(place.file(), "a") as notes:
                    notes.write(f"{KILL}\n")
        finally:
            way.stop()
        second = crew.start(place, "-c", "1", app="killed")
        wait_until(are_done, "the other does the rest", TIMEOUT, lambda: second.log)
        wait_until(lambda: letters(place).total() >= len(LETTERS), "letters are there", TIMEOUT)
        assert second.stop() == 0
        judge(place, app, way.reached())
    return way


def drawn(commands: int) -> list[Point]:
    points = [Point(number, after) for number in range(1, commands + 1) for after in (False, True)]
    if os.environ.get("FAILPOINTS") == "all":
        return points
    seed = int(os.environ.get("FAILPOINTS_SEED") or random.randrange(1 << 32))
    print(f"FAILPOINTS_SEED={seed}")  # pytest shows it when the test fails
    return random.Random(seed).sample(points, DRAWN)


@pytest.mark.timeout(1800)
def test_a_kill_at_any_command_loses_nothing(broker: Broker, tmp_path: Path) -> None:
    commands = live(broker, tmp_path / "whole", None).seen()
    points = drawn(commands)

    def problem(numbered: tuple[int, Point]) -> str | None:
        number, point = numbered
        try:
            reached = live(broker, tmp_path / str(number), point).reached()
        except Exception as error:
            return f"{point} of {commands}: {error!r}"
        return None if reached else f"{point} of {commands}: not reached"

    with ThreadPoolExecutor(BESIDE) as pool:
        problems = [found for found in pool.map(problem, enumerate(points)) if found]
    missed = [found for found in problems if found.endswith("not reached")]
    assert len(problems) == len(missed), "\n".join(problems)
    # Two runs are never quite the same: the last commands of one may be none of the other's.
    assert len(missed) <= len(points) // 4, "\n".join(missed)
    print(f"{len(points) - len(missed)} kills at {commands} commands")
