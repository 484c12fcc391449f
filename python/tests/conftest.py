"""What tests are given: an app in memory, and Redis servers with apps that use them."""

from __future__ import annotations

import datetime
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import redis
from celery import Celery
from celery.app import trace
from celery.backends.cache import _DUMMY_CLIENT_CACHE
from celery.worker import state
from celery.worker.control import Panel

from celeriac.host import results
from celeriac.host.main import Main
from celeriac.host.wire import Channel
from celeriac.host.worker import hosted_worker_class

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

    def __init__(self, *options: str, port: int = 0) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = port or probe.getsockname()[1]
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

    def start(*options: str, port: int = 0) -> RedisServer:
        started.append(RedisServer(*options, port=port))
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


@pytest.fixture
def quiet_app(app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An app of which a worker can be made here."""
    # The logging and the streams of this process are pytest's.
    monkeypatch.setattr(app.log, "setup", lambda *_, **__: True)
    app.conf.worker_redirect_stdouts = False
    app.conf.accept_content = ["json"]
    yield app
    trace.reset_worker_optimizations(app)
    for changed in (state.revoked, state.revoked_stamps):
        changed.clear()
    state.should_stop = None


class Hosted:
    """A worker's main, which runs in a thread of the test, seen from the parent's side."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.app = app
        options = {"hostname": "one@host", "concurrency": 2, **options}
        self.worker = hosted_worker_class(app)(app=app, **options)
        self._socket, mains = socket.socketpair()
        self._socket.settimeout(DEADLINE)
        self.channel = Channel(self._socket)
        self.main = Main(Channel(mains), self.worker)
        self._mains = mains
        self._thread = threading.Thread(target=self.main.run, daemon=True)
        self._thread.start()
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        #: What main has asked of the parent.
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def tell(self, call: str, blob: bytes = b"", **members: Any) -> None:
        self.channel.write({"call": call, **members}, blob)

    def begin(self, call: str, blob: bytes = b"", **members: Any) -> int:
        """Calls; returns the number of its answer."""
        self._number += 1
        self.channel.write({"id": self._number, "call": call, **members}, blob)
        return self._number

    def answer(self, number: int) -> dict[str, Any]:
        while number not in self._answers:
            self.read()
        return self._answers.pop(number)

    def read(self) -> None:
        frame, _ = self.channel.read()
        if "command" in frame:
            self.asked.append((frame["command"], frame["arguments"]))
        else:
            self._answers[frame.pop("id")] = frame

    def call(self, call: str, blob: bytes = b"", **members: Any) -> Any:
        answer = self.answer(self.begin(call, blob, **members))
        assert "error" not in answer, answer
        return answer["ok"]

    def leave(self) -> None:
        self.tell("leave")
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self._socket.close()
        self._mains.close()
        self.worker.consumer.end_consuming(DEADLINE)
        self.worker.consumer.close()


@pytest.fixture
def make_hosted(quiet_app: Any) -> Iterator[Callable[..., Hosted]]:
    made: list[Hosted] = []

    def make(app: Any = None, **options: Any) -> Hosted:
        made.append(Hosted(app or quiet_app, **options))
        return made[-1]

    yield make
    for one in made:
        one.leave()


@pytest.fixture
def hosted(make_hosted: Callable[..., Hosted]) -> Hosted:
    return make_hosted()


@pytest.fixture
def panel() -> Iterator[Any]:
    """The panel of commands, which is as it was when the test is done."""
    data, meta = dict(Panel.data), dict(Panel.meta)
    yield Panel
    Panel.data.clear()
    Panel.meta.clear()
    Panel.data.update(data)
    Panel.meta.update(meta)
