"""What is stored in Redis, and published, is what Celery's own method stores and publishes."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Callable

import pytest
import redis
from celery import Celery, states
from celery.app.task import Context
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import BackendStoreError, Retry

from celeriac.host import results

TASK = "0b5e1ba5-6a2e-4a8c-8c53-6d7f9a0e2f11"
KEY = f"celery-task-meta-{TASK}".encode()
DEADLINE = 30


class Server:
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


@pytest.fixture(scope="module")
def started_server() -> Iterator[Server]:
    started = Server()
    yield started
    started.stop()


@pytest.fixture
def server(started_server: Server) -> Server:
    started_server.empty()
    return started_server


@pytest.fixture
def make_app(server: Server) -> Iterator[Callable[..., Any]]:
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
def make_short(make_app: Callable[..., Any]) -> Callable[..., Any]:
    """The backend of an app, with the script in place."""

    def make(url: str | None = None, **settings: Any) -> Any:
        app = make_app(url, **settings)
        assert results.shorten(app) == 1
        return app.backend

    return make


def request(**members: Any) -> Any:
    return Context(
        {
            "id": TASK,
            "task": "tested.add",
            "args": [1, "ö"],
            "kwargs": {"y": 2},
            "group": "a-group",
            "parent_id": "a-parent",
            "hostname": "one@host",
            "retries": 3,
            "delivery_info": {"routing_key": "hot"},
            **members,
        }
    )


def outcome(server: Server, backend: Any, steps: list[tuple[Any, ...]]) -> dict[str, Any]:
    """What the steps leave: the keys with their values and whether and how long they are kept,
    and what was published."""
    server.empty()
    listener = server.client.pubsub()
    listener.psubscribe("*")
    assert listener.get_message(timeout=DEADLINE)["type"] == "psubscribe"
    returned = [
        backend.store_result(TASK, result, state, traceback=traceback, request=request())
        for result, state, traceback in steps
    ]
    server.client.publish("the-end", "")
    published = []
    while True:
        message = listener.get_message(timeout=DEADLINE)
        if message["channel"] == b"the-end":
            break
        published.append((message["channel"], message["data"]))
    listener.close()
    stored = {}
    for key in server.client.keys():
        # Rounded up to minutes: some milliseconds have passed.
        kept = server.client.pttl(key)
        stored[key] = server.client.get(key), kept if kept < 0 else -(-kept // 60_000)
    return {"stored": stored, "published": published, "returned": [repr(one) for one in returned]}


class OwnError(Exception):
    pass


SUCCEEDS = ({"sum": 3}, states.SUCCESS, None)
FAILS = (OwnError("no", 7), states.FAILURE, "Traceback: …")
RETRIES = (Retry("later", ValueError("why")), states.RETRY, "Traceback")
STARTS = ({"pid": 7, "hostname": "one@host"}, states.STARTED, None)
PROGRESSES = ({"done": 5}, "PROGRESS", None)

STEPS = {
    "success": [SUCCEEDS],
    "failure": [FAILS],
    "retry": [RETRIES],
    "started, then success": [STARTS, SUCCEEDS],
    "started twice, then failure": [STARTS, STARTS, FAILS],
    "progress, retry and success": [STARTS, PROGRESSES, PROGRESSES, RETRIES, SUCCEEDS],
    "success, then failure": [SUCCEEDS, FAILS],
    "success, then another": [SUCCEEDS, ("other", states.SUCCESS, None)],
    "failure, then success": [FAILS, SUCCEEDS],
    "the text of a success": [("{\"status\": \"SUCCESS\"}", "PROGRESS", None), FAILS],
    "signs": [("žluťoučký 🐎 \udcef \x00", states.SUCCESS, None)],
    "large": [("x" * 300_000, states.SUCCESS, None)],
    "too large for a script": [("x" * 3_000_000, states.SUCCESS, None), FAILS],
    "large progress": [("x" * 300_000, "PROGRESS", None), SUCCEEDS],
}


def check_same(server: Server, make_app: Any, steps: Any, **settings: Any) -> dict[str, Any]:
    own, short = make_app(**settings), make_app(**settings)
    assert results.shorten(short) == 1
    expected = outcome(server, own.backend, steps)
    assert server.calls("evalsha", "eval") == [0, 0]
    assert outcome(server, short.backend, steps) == expected
    assert expected["stored"] and expected["published"]
    return expected


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_state_is_stored_and_published_as_celery_does(server, make_app, steps):
    check_same(server, make_app, steps)


@pytest.mark.parametrize("serializer", ["json", "yaml", "pickle"])
@pytest.mark.parametrize("steps", [[FAILS, SUCCEEDS, FAILS], [STARTS, FAILS]])
def test_each_serializer_gives_the_same_bytes(server, make_app, serializer, steps):
    check_same(server, make_app, steps, result_serializer=serializer)
    assert server.calls("evalsha")[0] >= len(steps)


@pytest.mark.parametrize(
    "expires, minutes",
    [(None, -1), (0, -1), (3600, 60), (5400.75, 90), (datetime.timedelta(hours=3), 180)],
)
def test_a_result_is_kept_as_long_as_celery_keeps_it(server, make_app, expires, minutes):
    expected = check_same(server, make_app, [SUCCEEDS], result_expires=expires)
    assert expected["stored"][KEY][1] == minutes
    check_same(server, make_app, [FAILS], result_expires=expires)


def test_a_failure_may_be_kept_for_another_time(server, make_app):
    settings = {"result_expires": 3600, "result_failure_expires": 7200}
    assert check_same(server, make_app, [FAILS], **settings)["stored"][KEY][1] == 120
    assert check_same(server, make_app, [SUCCEEDS], **settings)["stored"][KEY][1] == 60


def test_a_backend_whose_expiry_was_changed_to_a_timedelta_keeps_that(server, make_short):
    backend = make_short()
    backend.expires = datetime.timedelta(hours=2)
    assert outcome(server, backend, [SUCCEEDS])["stored"][KEY][1] == 120
    assert server.calls("multi") == [0]


@pytest.mark.parametrize(
    "settings",
    [
        {"result_extended": True},
        {"result_compression": "gzip"},
        {"result_backend_transport_options": {"global_keyprefix": "mine:"}},
        {"result_backend_transport_options": {"global_keyprefix": "ö"}},
        {"result_backend_always_retry": True},
        {"result_backend_thread_safe": True},
        {"redis_backend_health_check_interval": 1},
        {"redis_max_connections": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [[STARTS, SUCCEEDS, FAILS], [STARTS, FAILS, SUCCEEDS]])
def test_settings_of_the_backend_count(server, make_app, settings, steps):
    check_same(server, make_app, steps, **settings)
    assert server.calls("multi") == [0]


def test_decoded_responses_are_understood(server, make_app):
    url = server.url(query="?decode_responses=true")
    check_same(server, make_app, [FAILS, PROGRESSES, SUCCEEDS, FAILS], url=url)
    assert server.calls("multi") == [0]


def test_one_request_is_enough_also_for_a_state_that_this_process_stored(server, make_short):
    backend = make_short()
    outcome(server, backend, [STARTS, PROGRESSES, SUCCEEDS])
    # The first was sent twice: the server did not know the script.
    assert server.calls("evalsha", "eval", "multi") == [3, 1, 0]


def test_what_another_process_stored_costs_a_second_request(server, make_short):
    backend, other = make_short(), make_short()
    outcome(server, other, [STARTS])
    backend.store_result(TASK, 1, states.SUCCESS)
    assert server.calls("evalsha", "eval", "multi") == [3, 1, 0]
    assert backend.get_task_meta(TASK)["result"] == 1


def test_a_success_stored_by_another_process_since_is_kept(server, make_short):
    backend, other = make_short(), make_short()
    outcome(server, backend, [STARTS])
    other.store_result(TASK, "first", states.SUCCESS)
    backend.store_result(TASK, OwnError("second"), states.FAILURE)
    assert backend.get_task_meta(TASK)["result"] == "first"
    assert server.calls("multi") == [0]


def test_a_state_that_changes_time_and_again_is_left_to_celery(server, make_short, monkeypatch):
    backend = make_short()
    changes = iter(range(100))
    decode = backend.decode_result

    def change(payload: Any) -> Any:
        meta = decode(payload)
        server.client.set(KEY, backend.encode({**meta, "result": next(changes)}))
        return meta

    server.client.set(KEY, backend.encode({"status": "PROGRESS", "result": -1}))
    monkeypatch.setattr(backend, "decode_result", change)
    backend.store_result(TASK, "end", states.SUCCESS)
    assert next(changes) == results.MAX_ATTEMPTS + 1
    monkeypatch.undo()
    assert backend.get_task_meta(TASK)["result"] == "end"


# -- trouble -----------------------------------------------------------------------------------


def test_a_connection_that_was_dropped_is_made_anew(server, make_short):
    backend = make_short()
    backend.store_result("before", 1, states.SUCCESS)
    for _ in range(results.MAX_FAILURES + 1):
        server.client.client_kill_filter(_type="normal", skipme=True)
        backend.store_result(TASK, {"sum": 3}, states.SUCCESS)
        assert backend.get_task_meta(TASK, cache=False)["result"] == {"sum": 3}
    server.client.config_resetstat()
    backend.store_result("after", 1, states.SUCCESS)
    assert server.calls("evalsha", "multi") == [1, 0]


def test_a_connection_lost_after_the_request_is_left_to_celery(server, make_short, monkeypatch):
    backend = make_short()
    backend.store_result("before", 1, states.SUCCESS)
    connection = backend.client.connection_pool.get_connection()
    backend.client.connection_pool.release(connection)
    ask = results._Store._ask

    def lose(self: Any, *arguments: Any) -> Any:
        ask(self, *arguments)
        connection.disconnect()
        raise redis.ConnectionError("lost")

    monkeypatch.setattr(results._Store, "_ask", lose)
    got = outcome(server, backend, [SUCCEEDS])
    # Celery's method found it stored and left it alone.
    assert list(got["stored"]) == [KEY] and len(got["published"]) == 1
    assert server.calls("multi") == [0]


def test_a_server_that_is_gone_is_the_error_that_it_is_with_celery(make_app):
    lost = Server()
    try:
        app = make_app(url=lost.url())
        assert results.shorten(app) == 1
        app.backend.store_result("before", 1, states.SUCCESS)
    finally:
        lost.stop()
    with pytest.raises(redis.ConnectionError):
        app.backend.store_result(TASK, 1, states.SUCCESS)


def test_a_user_that_may_not_run_scripts_is_served_by_celery(server, make_app):
    rights = "on >secret ~* &* +@all -eval -evalsha"
    server.client.execute_command("ACL", "SETUSER", "limited", "reset", *rights.split())
    url = server.url("limited:secret@")
    check_same(server, make_app, [STARTS, SUCCEEDS, FAILS], url=url)
    statistics = server.client.info("commandstats")["cmdstat_evalsha"]
    # It is asked no second time.
    assert statistics["rejected_calls"] == 1
    assert server.calls("multi") == [2]


def test_a_server_without_scripts_is_served_by_celery(make_app):
    commands = ("EVAL", "EVALSHA")
    bare = Server(*(part for name in commands for part in ("--rename-command", name, "")))
    try:
        check_same_on(bare, make_app, [STARTS, SUCCEEDS, FAILS])
        app = make_app(url=bare.url())
        assert results.shorten(app) == 1
        app.backend.store_result("first", 1, states.SUCCESS)
        errors = bare.client.info("errorstats")
        app.backend.store_result("second", 1, states.SUCCESS)
        # It is asked no second time.
        assert bare.client.info("errorstats") == errors
    finally:
        bare.stop()


def check_same_on(server: Server, make_app: Any, steps: Any) -> None:
    server.empty = server.client.flushall  # type: ignore[method-assign]
    check_same(server, make_app, steps, url=server.url())


def test_a_user_that_may_not_publish_stores_nothing_as_with_celery(server, make_app):
    rights = "on >secret ~* resetchannels +@all"
    server.client.execute_command("ACL", "SETUSER", "mute", "reset", *rights.split())
    for is_short in (False, True):
        app = make_app(url=server.url("mute:secret@"))
        assert not is_short or results.shorten(app) == 1
        with pytest.raises(redis.exceptions.ResponseError, match="permissions"):
            app.backend.store_result(TASK, 1, states.SUCCESS)
        assert server.client.keys() == []


def test_a_value_of_another_type_is_the_error_that_it_is_with_celery(server, make_short):
    server.client.rpush(KEY, "a list")
    for _ in range(results.MAX_FAILURES + 1):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            make_short().store_result(TASK, 1, states.SUCCESS)


def test_an_expiry_that_redis_refuses_is_the_error_that_it_is_with_celery(server, make_short):
    with pytest.raises(redis.ResponseError, match="invalid expire time"):
        make_short(result_expires=-5).store_result(TASK, 1, states.SUCCESS)
    assert server.client.keys() == []


def test_a_value_too_large_for_redis_is_refused_by_celery(server, make_short):
    backend = make_short()
    backend._MAX_STR_VALUE_SIZE = results.MAX_BYTES
    with pytest.raises(BackendStoreError, match="too large"):
        backend.store_result(TASK, "x" * (results.MAX_BYTES + 1), states.SUCCESS)


def test_a_time_limit_that_strikes_leaves_no_answer_behind(server, make_short):
    class LimitError(Exception):
        pass

    def strike(*_: Any) -> None:
        raise LimitError

    backend = make_short()
    backend.store_result("before", 1, states.SUCCESS)
    inherited = signal.signal(signal.SIGUSR1, strike)
    server.client.client_pause(DEADLINE * 1000)
    sent = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    sent.start()
    try:
        with pytest.raises(LimitError):
            backend.store_result("struck", 1, states.SUCCESS)
    finally:
        sent.join()
        signal.signal(signal.SIGUSR1, inherited)
        server.client.client_unpause()
    backend.store_result(TASK, "mine", states.SUCCESS)
    assert backend.get_task_meta(TASK)["result"] == "mine"


def test_each_process_has_a_connection_of_its_own(server, make_short):
    backend = make_short()
    # Before and after: the app may have used the backend while it was loaded.
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                backend.store_result(f"child-{number}", backend.client.client_id(), states.SUCCESS)
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        backend.store_result(f"parent-{number}", backend.client.client_id(), states.SUCCESS)
    names = ("child-0", "child-1", "parent-0", "parent-1")
    ids = [backend.get_task_meta(name)["result"] for name in names]
    assert len(set(ids)) == 3 and ids[2] == ids[3]
    assert server.calls("multi") == [0]


# -- what is left alone ------------------------------------------------------------------------


class OwnBackend(RedisBackend):
    pass


def test_backends_of_other_classes_are_left_alone(make_app, server):
    app = make_app(url=f"{__name__}:OwnBackend+{server.url()}")
    assert type(app.backend) is OwnBackend
    assert results.shorten(app) == 0
    sentinel = Celery("tested", backend="sentinel://127.0.0.1:1/0", set_as_current=False)
    assert type(sentinel.backend) is SentinelBackend
    assert results.shorten(sentinel) == 0
    memory = Celery("tested", backend="cache+memory://", set_as_current=False)
    assert results.shorten(memory) == 0
    assert results.shorten(Celery("tested", set_as_current=False)) == 0


def test_a_backend_of_a_task_is_shortened_as_well(make_app, server):
    app = make_app()
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
    server, make_app, monkeypatch, owner, name, is_early
):
    seen: list[str] = []
    proxy = _Proxy(getattr(owner, name), seen)
    app = make_app()
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


def test_an_unknown_version_of_celery_is_left_alone(make_app, monkeypatch):
    monkeypatch.setattr("celery.VERSION", type("v", (tuple,), {})((6, 0, 0)))
    assert results.shorten(make_app()) == 0
