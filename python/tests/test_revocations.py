"""Revoked tasks that outlive the workers that were told of them."""

from __future__ import annotations

import threading
from typing import Any, Callable

import pytest
import redis
from celery import Celery

from celeriac.host import revocations
from celeriac.host.revocations import Revocations


@pytest.fixture
def at(monkeypatch):
    """Sets the clock."""
    now = [1_900_000_000.0]
    monkeypatch.setattr(revocations.time, "time", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


@pytest.fixture
def make_app():
    made = []

    def make(broker: str, **settings: Any) -> Any:
        app = Celery("tested", broker=broker, set_as_current=False)
        app.conf.update(settings)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture(params=["redis", "redis with a prefix", "sqlite", "a server of its own"])
def make(request, server, tmp_path, make_app) -> Callable[[], Revocations]:
    """Opens the same store anew each time."""
    broker, settings = {
        "redis": (server.url(), {}),
        "redis with a prefix": (
            server.url(),
            {"broker_transport_options": {"global_keyprefix": "mine:"}},
        ),
        "sqlite": (f"sqla+sqlite:///{tmp_path}/broker.db", {}),
        "a server of its own": ("memory://", {"celeriac_revoke_store": server.url()}),
    }[request.param]
    return lambda: Revocations(make_app(broker, **settings))


def test_what_was_revoked_is_known_to_those_who_begin_later(make, at):
    assert make().load() == {"ids": [], "headers": {}}
    assert make().add(ids=["b", "a"], headers={"who": ["x", "y"]})
    at(1)
    one = make()
    assert one.add(ids=["ünïcode"], headers={"who": "x", "what": [1]})
    assert make().load() == {
        "ids": ["b", "a", "ünïcode"],
        "headers": {"who": ["y", "x"], "what": [1]},
    }
    at(1)
    assert one.add(ids=["b"])
    assert make().load()["ids"] == ["a", "ünïcode", "b"]


def test_nothing_to_keep_is_no_error(make):
    assert make().add()
    assert make().load() == {"ids": [], "headers": {}}


def test_the_oldest_go_when_there_are_too_many(make, at, monkeypatch):
    monkeypatch.setattr(revocations, "MOST", 3)
    make().add(ids=["1", "2"])
    at(1)
    make().add(ids=["3", "4", "5"])
    assert make().load()["ids"] == ["3", "4", "5"]
    at(1)
    make().add(ids=[str(number) for number in range(10)])
    assert make().load()["ids"] == ["7", "8", "9"]


def test_what_is_old_is_forgotten(make, at):
    make().add(ids=["1"])
    at(revocations.KEPT / 2)
    make().add(ids=["2"])
    at(revocations.KEPT / 2 + 1)
    assert make().load()["ids"] == ["2"]
    make().add(ids=["3"])
    at(-revocations.KEPT)
    assert make().load()["ids"] == ["2", "3"]


def test_many_may_keep_the_same_at_once(make):
    errors = []

    def keep(number):
        try:
            one = make()
            for _ in range(5):
                one.add(ids=[str((number + shift) % 7) for shift in range(4)])
        except Exception as exc:
            errors.append(exc)

    keepers = [threading.Thread(target=keep, args=(number,)) for number in range(6)]
    for keeper in keepers:
        keeper.start()
    for keeper in keepers:
        keeper.join(60)
    assert not errors
    assert sorted(make().load()["ids"]) == [str(number) for number in range(7)]


def test_a_store_that_was_lost_is_opened_again(server, make_app):
    one = Revocations(make_app(server.url()))
    one.add(ids=["1"])
    for client in server.client.client_list():
        if client["cmd"] != "client|list":
            server.client.client_kill_filter(_id=client["id"])
    try:
        one.add(ids=["2"])
    except redis.ConnectionError:
        one.add(ids=["2"])
    assert one.load()["ids"] == ["1", "2"]


def test_redis_holds_what_others_may_read(server, make_app):
    app = make_app(server.url(), broker_transport_options={"global_keyprefix": "mine:"})
    Revocations(app).add(ids=["1"], headers={"who": ["x"]})
    assert sorted(server.client.keys()) == [
        b"mine:_celeriac.revoked",
        b"mine:_celeriac.revoked.headers",
    ]
    assert server.client.zrange("mine:_celeriac.revoked", 0, -1) == [b"1"]
    assert server.client.zrange("mine:_celeriac.revoked.headers", 0, -1) == [b'["who", "x"]']


@pytest.mark.parametrize(
    "broker, setting, variable, where",
    [
        ("redis://h", None, None, "broker"),
        ("sentinel://h", None, None, "broker"),
        ("sqla+sqlite:///x.db", None, None, "broker"),
        ("amqp://h", None, None, None),
        ("memory://", None, None, None),
        ("amqp://h", "redis://r", None, "redis://r"),
        ("amqp://h", "redis://r", "redis://e", "redis://e"),
        ("redis://h", "", None, None),
        ("redis://h", "redis://r", "", None),
    ],
)
def test_where_they_are_kept(make_app, monkeypatch, broker, setting, variable, where):
    monkeypatch.delenv("CELERIAC_REVOKE_STORE", raising=False)
    if variable is not None:
        monkeypatch.setenv("CELERIAC_REVOKE_STORE", variable)
    settings = {} if setting is None else {"celeriac_revoke_store": setting}
    app = make_app(broker, **settings)
    assert revocations.where(app) == where
    if where is None:
        assert Revocations(app).load() is None
        assert not Revocations(app).add(ids=["1"])


@pytest.mark.parametrize(
    "broker, settings, reader",
    [
        ("redis://h", {}, "broker"),
        ("sqla+sqlite:///x.db", {}, "broker"),
        ("redis://h", {"celeriac_revoke_store": "broker"}, "broker"),
        ("redis://h;redis://i", {}, "broker"),
        ("amqp://h", {}, None),
        ("redis://h", {"celeriac_revoke_store": ""}, None),
        ("redis://h", {"celeriac_revoke_store": "redis://r"}, "elsewhere"),
        # Python can say what is wrong with it.
        ("amqp://h", {"celeriac_revoke_store": "broker"}, "elsewhere"),
        # They are kept where messages are sent to.
        ("redis://h", {"broker_read_url": "redis://replica"}, "elsewhere"),
    ],
)
def test_who_reads_them(make_app, monkeypatch, broker, settings, reader):
    monkeypatch.delenv("CELERIAC_REVOKE_STORE", raising=False)
    assert revocations.reader(make_app(broker, **settings)) == reader


def test_a_broker_that_can_keep_nothing_is_named(make_app):
    app = make_app("memory://", celeriac_revoke_store="broker")
    with pytest.raises(ValueError, match="can't keep revoked tasks; name a Redis server"):
        Revocations(app).load()


def test_main_loads_and_keeps_them(quiet_app, make_hosted, server):
    quiet_app.conf.celeriac_revoke_store = server.url()
    hosted = make_hosted()
    assert hosted.call("revoked_store_add", ids=["1"], headers={"who": ["x"]}) is True
    loaded = hosted.call("revoked_store_load")
    assert loaded == {"ids": ["1"], "headers": {"who": ["x"]}}


def test_main_says_that_there_is_no_store(hosted):
    assert hosted.call("revoked_store_load") is None
    assert hosted.call("revoked_store_add", ids=["1"]) is False
