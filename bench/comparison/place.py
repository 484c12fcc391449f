"""A place to measure in: an empty broker, a folder, and the workers that are started there."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery

from comparison.backlog import Backlog, RabbitBacklog, RedisBacklog
from comparison.completions import Completions
from comparison.servers import Servers
from comparison.worker import Worker
from harness.servers import RedisServer

#: How long a worker may take to start and to run what it is warmed up with.
_WARM_UP = 120.0


class Place(ABC):
    """What one measurement of one worker has for itself. Results go to Redis."""

    def __init__(self, redis: RedisServer, broker: str, folder: Path, is_quick: bool) -> None:
        self.is_quick = is_quick
        self.broker = broker
        self._folder = folder
        self._backend = redis.url(1)
        redis.client().flushall()
        self.client = Celery("bench", broker=broker, set_as_current=False)
        self.completions = Completions(folder / "completions")

    @property
    @abstractmethod
    def backlog(self) -> Backlog:
        """The messages for the workers here."""

    @property
    @abstractmethod
    def broker_pid(self) -> int:
        """The process of the broker."""

    def clean_up(self) -> None:
        """Leaves the servers as they were."""
        self.client.close()

    def pick(self, full: float, quick: float) -> Any:
        """A size for a full run, or for a quick one."""
        return quick if self.is_quick else full

    @contextmanager
    def worker(self, kind: str, *options: str, app: str = "small") -> Iterator[Worker]:
        """A worker that ends with the block."""
        variables = {
            "BENCH_BROKER": self.broker,
            "BENCH_BACKEND": self._backend,
            "BENCH_COMPLETIONS": str(self.completions.file),
        }
        log_file = self._folder / f"{kind}.log"
        worker = Worker(kind, app, options, variables, log_file, self.broker_pid)
        try:
            yield worker
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{worker.log_tail()}") from exc
        finally:
            worker.end()

    def warm_up(self, worker: Worker, count: int, task: str = "ignored", *args: Any) -> None:
        """Has the worker run some tasks, so that its start is no part of what is measured."""
        before = self.completions.count()
        self.backlog.stage(task, count, *args, ignore_result=task != "stored")
        self.backlog.release()
        self.completions.wait_for(before + count, _WARM_UP, worker.is_alive)


class RedisPlace(Place):
    """Both broker and results in one Redis."""

    def __init__(self, servers: Servers, folder: Path, is_quick: bool) -> None:
        super().__init__(servers.redis, servers.redis.url(0), folder, is_quick)
        self._connection = servers.redis.client()
        self._backlog = RedisBacklog(self.client, self._connection)

    @property
    def backlog(self) -> Backlog:
        return self._backlog

    @property
    def broker_pid(self) -> int:
        info: Any = self._connection.info("server")
        return int(info["process_id"])


class RabbitPlace(Place):
    """A virtual host of RabbitMQ."""

    def __init__(self, servers: Servers, folder: Path, is_quick: bool) -> None:
        self._server = servers.rabbitmq
        self._vhost = self._server.vhost()
        url = self._server.url(self._vhost)
        super().__init__(servers.redis, url, folder, is_quick)
        self._backlog = RabbitBacklog(self.client, url)

    @property
    def backlog(self) -> Backlog:
        return self._backlog

    @property
    def broker_pid(self) -> int:
        return self._server.pid

    def clean_up(self) -> None:
        super().clean_up()
        # What is left in it would be in the way of the next measurement.
        self._server.control("delete_vhost", self._vhost)


PLACES = {"redis": RedisPlace, "rabbitmq": RabbitPlace}


@contextmanager
def place(broker: str, servers: Servers, is_quick: bool) -> Iterator[Place]:
    """A place with a broker of a kind of :data:`PLACES`."""
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        here = PLACES[broker](servers, Path(folder), is_quick)
        try:
            yield here
        finally:
            here.clean_up()
