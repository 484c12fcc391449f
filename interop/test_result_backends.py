"""celeriac's own result backends and Celery's: each reads what the other has stored.

On one side stands a program that has celeriac's backends and nothing else, on the other Celery's
backend classes as they are.
"""

from __future__ import annotations

import decimal
import pickle
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult

from harness.backend_peer import Peer, PeerError
from harness.databases import Database, MariaDBServer, MongoServer, PostgresServer
from harness.objects import S3Server
from harness.servers import RabbitServer, RedisServer
from harness.wait import wait_until

TIMEOUT = 60
DONE = "2026-11-22T01:26:37+00:00"

KEEPING = ["redis", "sqlite", "postgresql", "mariadb", "filesystem", "mongodb", "s3"]
#: Those whose documents tell of groups and parents; Celery's tables have no columns for them, and
#: its class for MongoDB leaves them out when it reads.
RELATED = ["redis", "filesystem", "s3"]
#: Celery's other classes ignore ``result_compression``.
COMPRESSED = ["redis", "filesystem", "mongodb"]


@dataclass
class Store:
    """A store, and how each side opens it."""

    celery_url: str
    peer_url: str
    settings: dict[str, Any] = field(default_factory=dict)
    peers: list[Peer] = field(default_factory=list)

    def app(self, **settings: Any) -> Celery:
        app = Celery("peer", broker="memory://", backend=self.celery_url, set_as_current=False)
        app.conf.update(self.settings)
        app.conf.update(settings)
        return app

    def peer(self, **opened: Any) -> Peer:
        peer = Peer(self.peer_url, options=self.settings, **opened)
        self.peers.append(peer)
        return peer


class Stores:
    """Makes stores; starts servers when they are first needed."""

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        self._redis = redis
        self._folder = folder
        self._servers: dict[str, Any] = {}

    def server(self, kind: Callable[[], Any]) -> Any:
        name = repr(kind)
        if name not in self._servers:
            self._servers[name] = kind()
        return self._servers[name]

    def s3(self) -> S3Server:
        if "s3" not in self._servers:
            self._servers["s3"] = S3Server(self._folder)
        server: S3Server = self._servers["s3"]
        return server

    def make(self, name: str, folder: Path) -> Store:
        if name == "redis":
            url = self._redis.url(self._redis.database())
            return Store(url, url)
        if name == "sqlite":
            url = f"db+sqlite:///{folder}/results.db"
            return Store(url, url)
        if name == "filesystem":
            (folder / "results").mkdir()
            url = f"file://{folder}/results"
            return Store(url, url)
        if name == "s3":
            return Store("s3://", "s3://", dict(self.s3().settings()))
        kinds: dict[str, Callable[[], Database]] = {
            "postgresql": PostgresServer,
            "mariadb": MariaDBServer,
            "mongodb": MongoServer,
        }
        url = self.server(kinds[name]).database()
        if name == "mongodb":
            return Store(url, url)
        peer_url = f"db+{url}"
        return Store(peer_url.replace("postgresql:", "postgresql+psycopg:"), peer_url)

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()


@pytest.fixture(scope="module")
def stores(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    stores = Stores(redis_server, tmp_path_factory.mktemp("stores"))
    yield stores
    stores.stop()


@pytest.fixture
def make(stores: Stores, tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    """Makes stores whose peers end with the test."""
    made: list[Store] = []

    def store(name: str) -> Store:
        made.append(stores.make(name, tmp_path))
        return made[-1]

    yield store
    for store_ in made:
        for peer in store_.peers:
            peer.close()


@pytest.fixture(params=KEEPING)
def store(request: pytest.FixtureRequest, make: Callable[[str], Store]) -> Store:
    """Every store that keeps results, one after the other."""
    return make(request.param)


def document(status: str, result: Any, **members: Any) -> dict[str, Any]:
    ready = status in ("SUCCESS", "FAILURE", "REVOKED")
    return {
        "status": status,
        "result": result,
        "traceback": None,
        "children": [],
        "date_done": DONE if ready else None,
        "task_id": str(uuid.uuid4()),
        **members,
    }


def exception(*arguments: Any) -> dict[str, Any]:
    return {"exc_type": "ValueError", "exc_message": list(arguments), "exc_module": "builtins"}


#: What a task may return, and how it stands in JSON.
VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (-1.5, -1.5),
    (2**63, 2**63),
    (0.1 + 0.2, 0.30000000000000004),
    ("ü😀\n\"'\\", "ü😀\n\"'\\"),
    ([1, [2, {"k": []}]], [1, [2, {"k": []}]]),
    (
        decimal.Decimal("1.10"),
        {"__type__": "decimal", "__value__": "1.10"},
    ),
    (
        datetime(2026, 11, 22, 1, 2, 3, tzinfo=timezone.utc),
        {"__type__": "datetime", "__value__": "2026-11-22T01:02:03+00:00"},
    ),
    (
        uuid.UUID(int=7),
        {"__type__": "uuid", "__value__": {"hex": uuid.UUID(int=7).hex}},
    ),
    (b"\xff\x00", {"__type__": "base64", "__value__": "/wA="}),
]


def test_celery_reads_what_celeriac_stores(store: Store) -> None:
    app, peer = store.app(), store.peer()
    documents = [document("SUCCESS", value) for _, value in VALUES]
    peer.store(*documents)
    for (value, _), stored in zip(VALUES, documents):
        result = AsyncResult(stored["task_id"], app=app)
        assert result.get(timeout=TIMEOUT) == value
        assert result.successful()
        done = result.date_done
        if isinstance(done, str):
            done = datetime.fromisoformat(done)
        assert done.replace(tzinfo=timezone.utc) == datetime.fromisoformat(DONE)


def test_celeriac_reads_what_celery_stores(store: Store) -> None:
    app, peer = store.app(), store.peer()
    for value, expected in VALUES:
        task_id = str(uuid.uuid4())
        app.backend.store_result(task_id, value, "SUCCESS")
        found = peer.get(task_id)
        assert found["task_id"] == task_id
        assert found["status"] == "SUCCESS"
        assert found["result"] == expected
        age = datetime.now(timezone.utc) - datetime.fromisoformat(found["date_done"])
        assert -5 < age.total_seconds() < TIMEOUT
    assert peer.get("unknown") is None


@pytest.mark.parametrize("name", ["mongodb", "s3"])
def test_the_suite_of_all_backends(name: str, make: Callable[[str], Store]) -> None:
    """Where the server is one of Python's; the others are started by the crate's own tests."""
    make(name).peer(extended=True).ask("conformance")


def test_exceptions_arrive_as_such(store: Store) -> None:
    app, peer = store.app(), store.peer()
    failed = document("FAILURE", exception("böse", 42), traceback="Traceback:\n  …")
    revoked = document(
        "REVOKED",
        {
            "exc_type": "TaskRevokedError",
            "exc_message": ["terminated"],
            "exc_module": "celery.exceptions",
        },
    )
    foreign = document("FAILURE", {"exc_type": "Oops", "exc_message": ["x"], "exc_module": "app"})
    retried = document("RETRY", exception("again"))
    peer.store(failed, revoked, foreign, retried)

    result = AsyncResult(failed["task_id"], app=app)
    with pytest.raises(ValueError) as caught:
        result.get(timeout=TIMEOUT)
    assert caught.value.args == ("böse", 42)
    assert result.traceback == "Traceback:\n  …"
    assert repr(AsyncResult(revoked["task_id"], app=app).result) == "TaskRevokedError('terminated')"
    assert repr(AsyncResult(foreign["task_id"], app=app).result) == "Oops('x')"
    result = AsyncResult(retried["task_id"], app=app)
    assert (result.state, repr(result.result)) == ("RETRY", "ValueError('again')")

    task_id = str(uuid.uuid4())
    app.backend.mark_as_failure(task_id, KeyError("k", 1), traceback="lines")
    found = peer.get(task_id)
    assert found["status"] == "FAILURE"
    assert found["result"] == {
        "exc_type": "KeyError",
        "exc_message": ["k", 1],
        "exc_module": "builtins",
    }
    assert found["traceback"] == "lines"


def test_states_of_all_kinds(store: Store) -> None:
    app, peer = store.app(), store.peer()
    progress = document("PROGRESS", {"done": 1, "total": 3})
    started = document("STARTED", {"pid": 1, "hostname": "w@h"}, task_id=progress["task_id"])
    result = AsyncResult(progress["task_id"], app=app)
    assert result.state == "PENDING"
    for stored in (started, progress):
        peer.store(stored)
        assert result.state == stored["status"]
        assert result.info == stored["result"]
    app.backend.store_result(result.id, {"done": 2}, "a state of its own")
    found = peer.get(result.id)
    assert (found["status"], found["result"]) == ("a state of its own", {"done": 2})
    # SQLAlchemy gives a row that is updated the moment when that was.
    if not store.celery_url.startswith("db+"):
        assert found["date_done"] is None


def test_children(store: Store) -> None:
    app, peer = store.app(), store.peer()
    children = [
        [["child", None], None],
        [["group", None], [[["member", None], None]]],
    ]
    parent = document("SUCCESS", 1, children=children)
    peer.store(parent)
    found = AsyncResult(parent["task_id"], app=app).children
    assert [child.as_tuple() for child in found or ()] == [
        (("child", None), None),
        (("group", None), [(("member", None), None)]),
    ]

    task_id = str(uuid.uuid4())
    request = Context(id=task_id, _children=[AsyncResult("child", app=app)])
    app.backend.store_result(task_id, 1, "SUCCESS", request=request)
    assert peer.get(task_id)["children"] == [[["child", None], None]]


@pytest.mark.parametrize("name", RELATED)
def test_groups_and_parents_of_tasks(name: str, make: Callable[[str], Store]) -> None:
    store = make(name)
    app, peer = store.app(), store.peer()
    stored = document("SUCCESS", 1, group_id="g", parent_id="p")
    peer.store(stored)
    meta = app.backend.get_task_meta(stored["task_id"])
    assert (meta["group_id"], meta["parent_id"]) == ("g", "p")
    task_id = str(uuid.uuid4())
    request = Context(id=task_id, group="g", parent_id="p")
    app.backend.store_result(task_id, 1, "SUCCESS", request=request)
    found = peer.get(task_id)
    assert (found["group_id"], found["parent_id"]) == ("g", "p")


def test_extended_results(store: Store) -> None:
    app, peer = store.app(result_extended=True), store.peer(extended=True)
    extended = {
        "name": "tasks.add",
        "args": [1, "ü"],
        "kwargs": {"x": None},
        "worker": "w@h",
        "retries": 2,
        "queue": "celery",
    }
    stored = document("SUCCESS", 1, **extended)
    peer.store(stored)
    result = AsyncResult(stored["task_id"], app=app)
    shown = {name: getattr(result, name) for name in extended}
    assert shown == extended

    task_id = str(uuid.uuid4())
    request = Context(
        id=task_id,
        task="tasks.add",
        args=[1, "ü"],
        kwargs={"x": None},
        hostname="w@h",
        retries=2,
        delivery_info={"routing_key": "celery"},
    )
    app.backend.store_result(task_id, 1, "SUCCESS", request=request)
    found = peer.get(task_id)
    assert {name: found[name] for name in extended} == extended


def test_the_first_success_stays(store: Store) -> None:
    app, peer = store.app(), store.peer()
    ours, theirs = document("SUCCESS", "first"), str(uuid.uuid4())
    peer.store(ours)
    app.backend.store_result(ours["task_id"], "late", "SUCCESS")
    app.backend.mark_as_failure(ours["task_id"], ValueError("late"))
    assert peer.get(ours["task_id"])["result"] == "first"

    app.backend.store_result(theirs, "first", "SUCCESS")
    for status in ("SUCCESS", "STARTED", "REVOKED"):
        peer.store(document(status, exception("late"), task_id=theirs))
    assert AsyncResult(theirs, app=app).get(timeout=TIMEOUT) == "first"


def test_what_is_forgotten(store: Store) -> None:
    app, peer = store.app(), store.peer()
    one, two = document("SUCCESS", 1), document("SUCCESS", 2)
    peer.store(one, two)
    AsyncResult(one["task_id"], app=app).forget()
    assert peer.get(one["task_id"]) is None
    peer.ask("forget", ids=[two["task_id"]])
    assert AsyncResult(two["task_id"], app=app).state == "PENDING"


def test_groups(store: Store) -> None:
    app, peer = store.app(), store.peer()
    group_id = str(uuid.uuid4())
    documents = [document("SUCCESS", number) for number in range(3)]
    peer.store(*documents)
    members = [[[stored["task_id"], None], None] for stored in documents]
    peer.ask("save_group", id=group_id, members=[[group_id, None], members])
    group = GroupResult.restore(group_id, backend=app.backend, app=app)
    if isinstance(group, list):
        # Celery's MongoDB has lists of results for groups.
        assert [result.get(timeout=TIMEOUT) for result in group] == [0, 1, 2]
    else:
        assert group.get(timeout=TIMEOUT) == [0, 1, 2]
    app.backend.delete_group(group_id)
    assert peer.ask("group", id=group_id) is None

    results = [AsyncResult(stored["task_id"], app=app) for stored in documents]
    GroupResult(group_id, results, app=app).save(backend=app.backend)
    assert peer.ask("group", id=group_id) == [[group_id, None], members]
    peer.ask("forget_group", id=group_id)
    assert app.backend.restore_group(group_id, cache=False) is None


def test_who_waits_hears_of_the_other(store: Store) -> None:
    app, peer = store.app(), store.peer()
    waits = store.peer()
    task_id = str(uuid.uuid4())
    started = document("STARTED", {}, task_id=task_id)
    peer.store(started)
    waits.begin({"ask": "changed", "id": task_id, "known": waits.get(task_id)})
    app.backend.store_result(task_id, 7, "SUCCESS")
    assert waits.end()["result"] == 7

    stored = document("SUCCESS", 8)
    app.backend.on_task_call(None, stored["task_id"])
    result = AsyncResult(stored["task_id"], app=app)
    peer.store(stored)
    assert result.get(timeout=TIMEOUT, interval=0.02) == 8


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_results_are_read(name: str, make: Callable[[str], Store]) -> None:
    store = make(name)
    app, peer = store.app(result_compression="gzip"), store.peer()
    task_id = str(uuid.uuid4())
    value = ["much " * 1000]
    app.backend.store_result(task_id, value, "SUCCESS")
    assert peer.get(task_id)["result"] == value
    peer.store(document("FAILURE", exception("late"), task_id=task_id))
    assert AsyncResult(task_id, app=app).get(timeout=TIMEOUT) == value


def test_a_pickle_is_refused_with_a_remedy(store: Store) -> None:
    app = store.app(result_serializer="pickle", accept_content=["pickle", "json"])
    peer = store.peer()
    task_id = str(uuid.uuid4())
    if store.celery_url.startswith("s3"):
        # Celery's class can't read its own pickles.
        key = app.backend.get_key_for_task(task_id)
        app.backend.set(key, pickle.dumps({"status": "SUCCESS"}, protocol=2))
    else:
        app.backend.store_result(task_id, {1}, "SUCCESS")
    with pytest.raises(PeerError) as refused:
        peer.get(task_id)
    assert refused.value.kind == "Unreadable"
    assert "pickle" in refused.value.message
    assert "result_serializer" in (refused.value.hint or "")


class Body:
    """The body of a chord, as it was sent by Celery."""

    def __init__(self, app: Celery) -> None:
        self.signature = app.signature("body", options={"task_id": str(uuid.uuid4())})
        self._app = app

    def sent(self) -> Any:
        with self._app.connection_for_read() as connection:
            queue = connection.SimpleQueue("celery")
            wait_until(lambda: queue.qsize() > 0, "a body")
            message = queue.get_nowait()
            message.ack()
            return message.payload[0]


def celery_part(app: Celery, body: Body, group: str, index: int, result: Any, state: str) -> None:
    task_id = f"{group}-{index}"
    request = Context(
        id=task_id, group=group, group_index=index, chord=body.signature, task="header"
    )
    app.backend.on_chord_part_return(request, state, result)


def peer_part(peer: Peer, group: str, index: int, result: Any, status: str = "SUCCESS") -> Any:
    task_id = f"{group}-{index}"
    return peer.ask("chord_part", id=group, task=task_id, index=index, status=status, result=result)


def test_a_chord_whose_last_part_is_celerys(make: Callable[[str], Store]) -> None:
    store = make("redis")
    app, peer = store.app(), store.peer()
    body, group = Body(app), str(uuid.uuid4())
    peer.ask("open_chord", id=group, size=3)
    assert peer_part(peer, group, 2, "c") is None
    assert peer_part(peer, group, 0, "a") is None
    # A copy of a part counts once, whoever runs it.
    celery_part(app, body, group, 0, "again", "SUCCESS")
    celery_part(app, body, group, 1, "b", "SUCCESS")
    assert body.sent() == [["a", "b", "c"]]
    # The chord is done.
    assert peer_part(peer, group, 1, "late") is None


def test_a_chord_whose_last_part_is_celeriacs(make: Callable[[str], Store]) -> None:
    store = make("redis")
    app, peer = store.app(), store.peer()
    body, group = Body(app), str(uuid.uuid4())
    app.backend.set_chord_size(group, 2)
    celery_part(app, body, group, 1, [1, None], "SUCCESS")
    assert peer_part(peer, group, 0, "a") == {"results": ["a", [1, None]]}
    peer.ask("close_chord", id=group)
    client = app.backend.client
    left = {key.decode().removeprefix("celery-taskset-meta-") for key in client.keys("*taskset*")}
    assert left == {f"{group}.c"}
    assert client.get(f"celery-taskset-meta-{group}.c") == b"done"


def test_a_chord_with_a_failed_part(make: Callable[[str], Store]) -> None:
    store = make("redis")
    app, peer = store.app(), store.peer()
    # celeriac's part fails, Celery fails the body.
    body, group = Body(app), str(uuid.uuid4())
    app.backend.set_chord_size(group, 2)
    assert peer_part(peer, group, 0, exception("boom"), "FAILURE") is None
    celery_part(app, body, group, 1, 1, "SUCCESS")
    failed = AsyncResult(body.signature.id, app=app)
    with pytest.raises(ChordError, match=rf"Dependency {group}-0 raised ValueError\('boom'\)"):
        failed.get(timeout=TIMEOUT)
    # Celery's part fails, celeriac is told in the same words.
    group = str(uuid.uuid4())
    app.backend.set_chord_size(group, 2)
    celery_part(app, body, group, 0, ValueError("boom"), "FAILURE")
    told = peer_part(peer, group, 1, 1)["exception"]
    assert told == {
        "exc_type": "ChordError",
        "exc_message": [f"Dependency {group}-0 raised ValueError('boom')"],
        "exc_module": "celery.exceptions",
    }
    peer.ask("close_chord", id=group)


def test_prefixes_of_keys(make: Callable[[str], Store]) -> None:
    store = make("redis")
    prefix = {"global_keyprefix": "here"}
    app = store.app(result_backend_transport_options=prefix)
    store.settings.update(prefix)
    peer = store.peer()
    stored = document("SUCCESS", 1)
    peer.store(stored)
    assert AsyncResult(stored["task_id"], app=app).get(timeout=TIMEOUT) == 1
    assert app.backend.client.keys() == [f"here_celery-task-meta-{stored['task_id']}".encode()]


def test_documents_are_the_same_byte_for_byte(make: Callable[[str], Store]) -> None:
    store = make("redis")
    app, peer = store.app(), store.peer()
    client = app.backend.client
    task_id = str(uuid.uuid4())
    key = f"celery-task-meta-{task_id}"
    # Celery writes members as they come, celeriac in the order of their names.
    values: list[Any] = ["ü\x7f😀", {"a": 1e22, "b": [1.0, 1e-7]}, [], None]
    for value in values:
        client.delete(key)
        app.backend.store_result(task_id, value, "SUCCESS")
        theirs = client.get(key)
        found = peer.get(task_id)
        client.delete(key)
        peer.store(found)
        assert client.get(key) == theirs


@pytest.mark.parametrize("broker", ["redis", "rabbit"])
def test_results_as_messages(
    broker: str, request: pytest.FixtureRequest, redis_server: RedisServer
) -> None:
    if broker == "rabbit":
        rabbit: RabbitServer = request.getfixturevalue("rabbit_server")
        url = rabbit.url(rabbit.vhost())
    else:
        url = redis_server.url(redis_server.database())
    app = Celery("rpc", broker=url, backend="rpc://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.02}
    peer = Peer("rpc://", broker=url)
    try:
        # celeriac answers Celery.
        stored = document("SUCCESS", {"n": [1, "ü"]})
        failed = document("FAILURE", exception("boom"), traceback="lines")
        result = AsyncResult(stored["task_id"], app=app)
        with app.connection_for_write() as connection:
            app.backend.binding(connection.default_channel).declare()
        progress = document("PROGRESS", {"done": 1}, task_id=stored["task_id"])
        peer.store(progress, stored, failed, reply_to=app.thread_oid)
        assert result.get(timeout=TIMEOUT) == {"n": [1, "ü"]}
        with pytest.raises(ValueError, match="boom"):
            AsyncResult(failed["task_id"], app=app).get(timeout=TIMEOUT)
        # Nobody has asked: nothing is sent.
        peer.store(document("SUCCESS", 1))

        # Celery answers celeriac.
        task_id = str(uuid.uuid4())
        peer.ask("expect", id=task_id)
        reply_to = peer.ask("reply_to")
        request_ = Context(id=task_id, reply_to=reply_to, correlation_id=task_id)
        app.backend.store_result(task_id, {"done": 1}, "PROGRESS", request=request_)
        seen = peer.ask("changed", id=task_id)
        assert (seen["status"], seen["result"]) == ("PROGRESS", {"done": 1})
        peer.begin({"ask": "changed", "id": task_id, "known": seen})
        app.backend.store_result(task_id, KeyError("k"), "FAILURE", request=request_)
        ended = peer.end()
        assert ended["status"] == "FAILURE"
        assert ended["result"]["exc_type"] == "KeyError"
        # What it has heard it keeps until it is told to forget.
        assert peer.get(task_id) == ended
        peer.ask("forget", ids=[task_id])
        assert peer.get(task_id) is None
        # It keeps no groups and counts no chords, as Celery's does not.
        for question in ({"ask": "group", "id": "g"}, {"ask": "open_chord", "id": "g", "size": 1}):
            peer.begin(question)
            with pytest.raises(PeerError, match="Unsupported"):
                peer.end()
    finally:
        peer.close()
        app.close()
