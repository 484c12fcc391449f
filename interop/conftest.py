"""What the tests in this folder share: servers, brokers, workers and clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import workers
from harness.queues import queues_of
from harness.servers import RedisServer
from harness.target import Target
from harness.wait import wait_until


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


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
            "INTEROP_SETTINGS": repr(self.settings),
        }

    def file(self, name: str = "notes") -> str:
        return str(self.folder / name)

    def lines(self, name: str = "notes") -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def redis_place(redis_server: RedisServer, tmp_path: Path) -> Place:
    broker, backend = redis_server.database(), redis_server.database()
    url = f"redis://127.0.0.1:{redis_server.port}"
    return Place(f"{url}/{broker}", f"{url}/{backend}", tmp_path, redis_database=broker)


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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., workers.Worker]]:
    """Starts workers, which end with the test."""
    started = []

    def start_worker(place: Place, *arguments: str, app: str = "basic", **options: Any) -> Any:
        variables = {**place.variables(), **options.pop("variables", {})}
        ready = options.pop("ready", True)
        worker = workers.Worker(tmp_path, app, *arguments, variables=variables, **options)
        started.append(worker)
        return worker.wait_ready() if ready else worker

    yield start_worker
    for worker in started:
        worker.clean_up()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Loads an app as a client of a place: real Celery, in this process."""

    def load(place: Place, app: str = "basic") -> ModuleType:
        for name, value in place.variables().items():
            monkeypatch.setenv(name, value)
        # Not among the imported modules: each place has an app of its own, and tasks are named by
        # the module that the worker imports.
        module = ModuleType(app)
        file = workers.APPS / f"{app}.py"
        exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
        return module

    return load


@pytest.fixture
def target(
    place: Place, start: Callable[..., workers.Worker], client: Callable[..., ModuleType]
) -> Callable[..., Target]:
    """Starts a worker for messages that nobody should send."""

    def begin(*arguments: str, **settings: Any) -> Target:
        place.settings = {"broker_connection_retry_on_startup": True, **settings}
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
