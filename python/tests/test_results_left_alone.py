"""Which backends store results by Celery's own method alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import redis
from celery import Celery, states
from celery.backends.redis import RedisBackend, SentinelBackend

from celeriac.host import results

TASK = "0b5e1ba5-6a2e-4a8c-8c53-6d7f9a0e2f11"
KEY = f"celery-task-meta-{TASK}".encode()


class OwnBackend(RedisBackend):
    pass


def test_backends_of_other_classes_are_left_alone(make_redis_app, server):
    app = make_redis_app(url=f"{__name__}:OwnBackend+{server.url()}")
    assert type(app.backend) is OwnBackend
    assert results.shorten(app) == 0
    sentinel = Celery("tested", backend="sentinel://127.0.0.1:1/0", set_as_current=False)
    assert type(sentinel.backend) is SentinelBackend
    assert results.shorten(sentinel) == 0
    memory = Celery("tested", backend="cache+memory://", set_as_current=False)
    assert results.shorten(memory) == 0
    assert results.shorten(Celery("tested", set_as_current=False)) == 0


def test_a_backend_of_a_task_is_shortened_as_well(make_redis_app, server):
    app = make_redis_app()
    own = RedisBackend(app=app, url=server.url())

    @app.task(backend=own)
    def task() -> None: ...

    assert results.shorten(app) == 2
    task.backend.store_result(TASK, 1, states.SUCCESS)
    assert server.calls("multi", "eval") == [0, 1]
    assert results.shorten(app) == 0


PATCHED = [
    (RedisBackend, "_store_result"),
    (RedisBackend, "_set"),
    (RedisBackend, "set"),
    (RedisBackend, "get"),
    (redis.Redis, "execute_command"),
    (redis.Redis, "get"),
    (redis.client.Pipeline, "execute"),
    (redis.client.Pipeline, "setex"),
    (redis.client.Pipeline, "publish"),
    (redis.connection.Connection, "send_command"),
]


class _Proxy:
    """As packages for tracing wrap a method: it passes for what it wraps."""

    def __init__(self, wrapped: Any, seen: list[Any]) -> None:
        self.__wrapped__, self._seen = wrapped, seen
        self.__name__, self.__module__ = wrapped.__name__, wrapped.__module__

    def __eq__(self, other: object) -> bool:
        return bool(self.__wrapped__ == other)

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._seen.append(self.__name__)
        return self.__wrapped__(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else partial(self, instance)


@pytest.mark.parametrize("is_early", [True, False], ids=["before the fork", "later"])
@pytest.mark.parametrize("owner, name", PATCHED, ids=[f"{o.__name__}.{n}" for o, n in PATCHED])
def test_a_method_that_somebody_wrapped_is_called(
    server, make_redis_app, monkeypatch, owner, name, is_early
):
    seen: list[str] = []
    proxy = _Proxy(getattr(owner, name), seen)
    app = make_redis_app()
    app.backend.client.ping()
    if is_early:
        monkeypatch.setattr(owner, name, proxy)
        assert results.shorten(app) == 0
    else:
        assert results.shorten(app) == 1
        monkeypatch.setattr(owner, name, proxy)
    app.backend.client.set(KEY, app.backend.encode({"status": "PROGRESS", "result": 1}))
    seen.clear()
    app.backend.store_result(TASK, 1, states.SUCCESS)
    assert seen
    assert server.calls("evalsha", "multi") == [0, 1]


def test_a_method_wrapped_on_the_instance_is_called(server, make_short, monkeypatch):
    backend = make_short()
    seen = []
    own = backend.set

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return own(*args, **kwargs)

    monkeypatch.setattr(backend, "set", wrapped, raising=False)
    backend.store_result(TASK, 1, states.SUCCESS)
    assert len(seen) == 1
    assert server.calls("evalsha", "multi") == [0, 1]


def test_an_unknown_version_of_celery_is_left_alone(make_redis_app, monkeypatch):
    monkeypatch.setattr("celery.VERSION", type("v", (tuple,), {})((6, 0, 0)))
    assert results.shorten(make_redis_app()) == 0
