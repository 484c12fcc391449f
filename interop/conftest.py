"""What the tests in this folder share: servers, brokers, workers and clients."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# The ledger's harness is tested here as well.
sys.path.insert(0, str(Path(__file__).parents[1] / "ledger"))

from harness import workers
from harness.queues import queues_of
from harness.servers import RabbitServer, RedisServer
from harness.target import Target
from harness.wait import wait_until


@pytest.fixture(scope="session", autouse=True)
def runtime_folder() -> Iterator[None]:
    """Workers and clients of this process of pytest meet at sockets of their own, and are not
    found by whoever asks for all workers of this user elsewhere."""
    # Paths of sockets are short.
    folder = tempfile.mkdtemp(prefix="run")
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("XDG_RUNTIME_DIR", folder)
        yield
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    server = RabbitServer(tmp_path_factory.mktemp("rabbit"))
    yield server
    server.close()


@dataclass
class Place:
    """A broker, a result backend, and the folder of one test."""

    broker: str
    backend: str
    folder: Path
    redis_database: int | None = None
    transport_options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        return {
            "INTEROP_BROKER": self.broker,
            "INTEROP_BACKEND": self.backend,
            "INTEROP_FOLDER": str(self.folder),
            "INTEROP_TRANSPORT_OPTIONS": repr(self.transport_options),
            # Celery gives up at once what nobody knows; a test that waits for that says so.
            "INTEROP_SETTINGS": repr({"celeriac_unknown_task_grace": 0, **self.settings}),
        }

    def file(self, name: str = "notes") -> str:
        return str(self.folder / name)

    def lines(self, name: str = "notes") -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


def place_on_redis(redis: RedisServer, folder: Path) -> Place:
    broker, backend = redis.database(), redis.database()
    return Place(redis.url(broker), redis.url(backend), folder, redis_database=broker)


def place_on_rabbit(rabbit: RabbitServer, redis: RedisServer, folder: Path) -> Place:
    """With results in Redis."""
    return Place(rabbit.url(rabbit.vhost()), redis.url(redis.database()), folder)


@pytest.fixture
def redis_place(redis_server: RedisServer, tmp_path: Path) -> Place:
    return place_on_redis(redis_server, tmp_path)


@pytest.fixture
def rabbit_place(rabbit_server: RabbitServer, redis_server: RedisServer, tmp_path: Path) -> Place:
    return place_on_rabbit(rabbit_server, redis_server, tmp_path)


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Place:
    return Place(
        f"sqla+sqlite:///{tmp_path}/broker.db", f"db+sqlite:///{tmp_path}/results.db", tmp_path
    )


@pytest.fixture(params=["redis", "sqlite"])
def place(request: pytest.FixtureRequest) -> Place:
    """Both brokers, one after the other."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture(params=["redis", "rabbit"])
def fanout_place(request: pytest.FixtureRequest) -> Place:
    """The brokers that remote control and events go through, one after the other."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture(scope="module", params=["redis", "rabbit"])
def shared_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """As ``fanout_place``, for all tests of a module."""
    redis = request.getfixturevalue("redis_server")
    folder = tmp_path_factory.mktemp("shared")
    if request.param == "redis":
        return place_on_redis(redis, folder)
    return place_on_rabbit(request.getfixturevalue("rabbit_server"), redis, folder)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., workers.Worker]]:
    """Starts workers, which end with the test."""
    with workers.Crew(tmp_path) as crew:
        yield crew.start


@pytest.fixture(scope="module")
def shared_start(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., workers.Worker]]:
    """As ``start``, for all tests of a module."""
    folder = tmp_path_factory.mktemp("workers")
    with workers.Crew(folder) as crew:
        yield crew.start


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Loads an app as a client of a place: real Celery, in this process."""

    def load(place: Place, app: str = "basic") -> ModuleType:
        for name, value in place.variables().items():
            monkeypatch.setenv(name, value)
        return workers.load_app(app)

    return load


@pytest.fixture(scope="module")
def shared_client() -> Iterator[Callable[..., ModuleType]]:
    """As ``client``, for all tests of a module."""
    with pytest.MonkeyPatch.context() as variables:

        def load(place: Place, app: str) -> ModuleType:
            for name, value in place.variables().items():
                variables.setenv(name, value)
            return workers.load_app(app)

        yield load


@pytest.fixture
def target(
    place: Place, start: Callable[..., workers.Worker], client: Callable[..., ModuleType]
) -> Callable[..., Target]:
    """Starts a worker for messages that nobody should send."""

    def begin(*arguments: str, **settings: Any) -> Target:
        # What nobody knows is not kept for others: the broker is to be empty.
        place.settings = {
            "broker_connection_retry_on_startup": True,
            "celeriac_unknown_task_grace": 0,
            **settings,
        }
        app = client(place)
        # The broker's tables are those that kombu makes.
        app.add.delay(1, 1)
        worker = start(place, "-c", "1", *arguments)
        queues = queues_of(place.broker)
        wait_until(lambda: len(worker.children()) == 1, "the child runs")
        begun = Target(worker, queues, app, worker.host("main"), set(worker.children()))
        begun.assert_well("the start")
        return begun

    return begin
