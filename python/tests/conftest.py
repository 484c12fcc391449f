"""What tests are given: an app in memory, and Redis servers with apps that use them."""

from __future__ import annotations

import datetime
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import redis
from celery import Celery
from celery.backends.cache import _DUMMY_CLIENT_CACHE

from celeriac.host import results

DEADLINE = 30


@pytest.fixture
def app() -> Iterator[Any]:
    made = Celery("tested", broker="memory://", backend="cache+memory://", set_as_current=False)
    made.conf.accept_content = ["json", "yaml", "pickle"]
    yield made
    # The memory is one for all apps of the process.
    _DUMMY_CLIENT_CACHE.clear()
    made.close()


class RedisServer:
    """A Redis server of the tests' own."""

    def __init__(self, *options: str) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        place = ("--port", str(self.port), "--bind", "127.0.0.1")
        self.process = subprocess.Popen(
            [program, *place, "--save", "", "--appendonly", "no", *options],
            stdout=subprocess.DEVNULL,
        )
        self.client = redis.Redis(port=self.port)
        deadline = time.monotonic() + DEADLINE
        while not self._answers():
            assert time.monotonic() < deadline, "Redis does not answer"
            assert self.process.poll() is None, "Redis has ended"

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def url(self, user: str = "", query: str = "") -> str:
        return f"redis://{user}127.0.0.1:{self.port}/0{query}"

    def calls(self, *names: str) -> list[int]:
        """How often the server has been given each command since it was last emptied."""
        statistics = self.client.info("commandstats")
        return [statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names]

    def empty(self) -> None:
        self.client.flushall()
        self.client.script_flush()
        self.client.config_resetstat()

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def started_server() -> Iterator[RedisServer]:
    started = RedisServer()
    yield started
    started.stop()


@pytest.fixture
def start_server() -> Iterator[Callable[..., RedisServer]]:
    """Starts a server with options of its own."""
    started: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        started.append(RedisServer(*options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def server(started_server: RedisServer) -> RedisServer:
    """A server that holds nothing, has counted nothing and knows no script."""
    started_server.empty()
    return started_server


@pytest.fixture
def make_redis_app(server: RedisServer) -> Iterator[Callable[..., Any]]:
    """Makes an app whose results are in Redis, and whose clock stands still."""
    made = []

    def make(url: str | None = None, **settings: Any) -> Any:
        app = Celery("tested", broker="memory://", set_as_current=False)
        app.conf.update(
            result_backend=url or server.url(),
            accept_content=["json", "yaml", "pickle"],
            **settings,
        )
        app.now = lambda: datetime.datetime(2031, 2, 3, 4, 5, 6, 7, datetime.timezone.utc)
        made.append(app)
        return app

    yield make
    for app in made:
        app.backend.client.connection_pool.disconnect()
        app.close()


@pytest.fixture
def make_short(make_redis_app: Callable[..., Any]) -> Callable[..., Any]:
    """The backend of an app, with the script in place."""

    def make(url: str | None = None, **settings: Any) -> Any:
        app = make_redis_app(url, **settings)
        assert results.shorten(app) == 1
        return app.backend

    return make
