"""A place to measure in: an empty Redis, a folder, and the workers that are started there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery

from comparison.backlog import Backlog
from comparison.completions import Completions
from comparison.worker import Worker
from harness.servers import RedisServer

#: How long a worker may take to start and to run what it is warmed up with.
_WARM_UP = 120.0


class Place:
    """What one measurement of one worker has for itself."""

    def __init__(self, redis: RedisServer, folder: Path, is_quick: bool) -> None:
        url = f"redis://127.0.0.1:{redis.port}"
        self.is_quick = is_quick
        self._folder = folder
        self._broker, self._backend = f"{url}/0", f"{url}/1"
        connection = redis.client()
        connection.flushall()
        info: Any = connection.info("server")
        self._redis_pid = int(info["process_id"])
        self.client = Celery("bench", broker=self._broker, set_as_current=False)
        self.backlog = Backlog(self.client, connection)
        self.completions = Completions(folder / "completions")

    def pick(self, full: float, quick: float) -> Any:
        """A size for a full run, or for a quick one."""
        return quick if self.is_quick else full

    @contextmanager
    def worker(self, kind: str, *options: str, app: str = "small") -> Iterator[Worker]:
        """A worker that ends with the block."""
        variables = {
            "BENCH_BROKER": self._broker,
            "BENCH_BACKEND": self._backend,
            "BENCH_COMPLETIONS": str(self.completions.file),
        }
        log_file = self._folder / f"{kind}.log"
        worker = Worker(kind, app, options, variables, log_file, self._redis_pid)
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


@contextmanager
def place(redis: RedisServer, is_quick: bool) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        here = Place(redis, Path(folder), is_quick)
        try:
            yield here
        finally:
            here.client.close()
