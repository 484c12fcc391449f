"""Consumer steps of the app that consume messages of their own."""

from __future__ import annotations

import functools
import queue
import threading
import time
from typing import Any, Callable

import pytest
from celery import Celery, bootsteps
from kombu import Consumer, Queue
from kombu.transport import virtual

from celeriac.host import steps

DEADLINE = 30


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(steps, "POLL", 0.05)
    monkeypatch.setattr(steps, "PAUSE", 0.01)
    monkeypatch.setattr(virtual.Transport, "polling_interval", 0.02)


@pytest.fixture(params=["memory", "redis", "sqlite"])
def broker(request, server, tmp_path):
    return {
        "memory": "memory://",
        "redis": server.url(),
        "sqlite": f"sqla+sqlite:///{tmp_path}/broker.db",
    }[request.param]


@pytest.fixture
def on_broker(quiet_app) -> Callable[[str], Any]:
    """The app on another broker."""

    def move(url: str) -> Any:
        quiet_app.conf.broker_url = url
        return quiet_app

    return move


class Consuming(bootsteps.ConsumerStep):
    """A step whose handler is given by the test."""

    names: tuple[str, ...] = ("mine",)
    handle: Any = None
    notes: Any = None
    prefetch = None

    def get_consumers(self, channel):
        self.note("get_consumers")
        return [
            Consumer(
                channel,
                [Queue(name, routing_key=name) for name in self.names],
                callbacks=[self.on_body],
                accept=["json"],
                prefetch_count=self.prefetch,
            )
        ]

    def on_body(self, body, message):
        type(self).handle(body, message)

    def note(self, what):
        if self.notes is not None:
            self.notes.append(f"{self.label} {what}")

    def close(self, c):
        self.note("close")

    def stop(self, c):
        self.note("stop")
        super().stop(c)

    def shutdown(self, c):
        self.note("shutdown")
        super().shutdown(c)


def step(handle: Callable[[Any, Any], None], **members: Any) -> type[Consuming]:
    members = {"handle": staticmethod(handle), "__module__": __name__, **members}
    made: Any = type(Consuming)
    return made("Mine" + members.get("label", ""), (Consuming,), members)


def send(app: Any, body: Any, name: str = "mine") -> None:
    with app.connection_for_write() as connection:
        target = Queue(name, routing_key=name)(connection.default_channel)
        target.declare()
        connection.Producer().publish(body, routing_key=name, exchange="", serializer="json")


class Handled:
    """A handler that notes what it is given."""

    def __init__(self, does: Callable[[Any], None] = lambda body: None) -> None:
        self.bodies: queue.Queue[Any] = queue.Queue()
        self.does = does

    def __call__(self, body: Any, message: Any) -> None:
        self.bodies.put(body)
        self.does(body)
        message.ack()

    def next(self) -> Any:
        return self.bodies.get(timeout=DEADLINE)


def test_a_step_is_given_its_messages(on_broker, broker, make_hosted):
    app = on_broker(broker)
    handled = Handled()
    app.steps["consumer"].add(step(handled))
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    for number in range(3):
        send(app, {"number": number})
    assert [handled.next()["number"] for _ in range(3)] == [0, 1, 2]
    hosted.call("close_steps")
    hosted.call("end_steps", terminate=False)


def test_a_handler_that_takes_long_holds_up_nothing_else(quiet_app, make_hosted):
    enters, may_leave = threading.Event(), threading.Event()

    def wait(body):
        enters.set()
        assert may_leave.wait(DEADLINE)

    handled = Handled(wait)
    started = []

    class Plain(bootsteps.StartStopStep):
        def start(self, c):
            started.append(c.connection)

    send(quiet_app, 1)
    quiet_app.steps["consumer"].update([step(handled), Plain])
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    assert enters.wait(DEADLINE)
    hosted.call("worker_ready")
    assert len(started) == 1
    may_leave.set()
    assert handled.next() == 1


def test_a_handler_that_raises_is_logged_and_the_next_message_handled(
    on_broker, broker, make_hosted, caplog
):
    def fail(body):
        if body == 1:
            raise RuntimeError("of the app")

    app = on_broker(broker)
    handled = Handled(fail)
    app.steps["consumer"].add(step(handled, label="failing"))
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    send(app, 1)
    send(app, 2)
    assert [handled.next(), handled.next()] == [1, 2]
    record = next(one for one in caplog.records if "its handler raised" in one.getMessage())
    assert "failing" in record.getMessage()
    assert record.exc_info


def test_what_a_handler_did_not_acknowledge_comes_back(on_broker, server, make_hosted):
    app = on_broker(server.url())

    def fail(body):
        raise RuntimeError

    handled = Handled(fail)
    app.steps["consumer"].add(step(handled))
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    send(app, 1)
    assert handled.next() == 1
    hosted.call("close_steps")
    hosted.call("end_steps", terminate=False)
    assert server.client.llen("mine") == 1


def test_a_lost_connection_is_made_again(on_broker, server, make_hosted):
    app = on_broker(server.url())
    handled = Handled()
    notes: list[str] = []
    app.steps["consumer"].add(step(handled, notes=notes, label="one"))
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    send(app, 1)
    assert handled.next() == 1
    for client in server.client.client_list():
        if client["cmd"] != "client|list":
            server.client.client_kill_filter(_id=client["id"])
    send(app, 2)
    assert handled.next() == 2
    assert notes[:3] == ["one get_consumers", "one stop", "one get_consumers"]


def test_a_handler_that_finds_its_connection_lost_gets_the_message_again(
    on_broker, server, make_hosted
):
    app = on_broker(server.url())
    seen = []

    def fail_once(body):
        seen.append(body)
        if len(seen) == 1:
            raise ConnectionResetError("down")

    handled = Handled(fail_once)
    app.steps["consumer"].add(step(handled))
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    send(app, 1)
    assert [handled.next(), handled.next()] == [1, 1]


def test_a_broker_that_is_not_there_is_waited_for(
    on_broker, start_server, make_hosted, monkeypatch
):
    down = start_server()
    app = on_broker(down.url())
    down.stop()
    monkeypatch.setattr(steps, "RETRY", {"interval_start": 0, "interval_step": 0})
    handled = Handled()
    app.steps["consumer"].add(step(handled))
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    hosted.call("worker_ready")
    again = start_server(port=down.port)
    other = Celery("sender", broker=again.url(), set_as_current=False)
    send(other, 1)
    assert handled.next() == 1
    other.close()


def test_a_step_that_cannot_be_started_does_not_keep_the_others_from_it(
    quiet_app, make_hosted, caplog
):
    class Broken(bootsteps.ConsumerStep):
        label = "broken"

        def get_consumers(self, channel):
            raise RuntimeError("of the app")

    handled = Handled()
    quiet_app.steps["consumer"].update([Broken, step(handled)])
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    send(quiet_app, 1)
    assert handled.next() == 1
    assert "Consumer step broken can't be started: RuntimeError('of the app')" in caplog.text


@pytest.mark.parametrize("terminate", [False, True])
def test_steps_end_in_celerys_order(quiet_app, make_hosted, terminate):
    notes: list[str] = []
    handled = Handled()
    one = step(handled, names=("one",), label="one", notes=notes)
    two = step(handled, names=("two",), label="two", notes=notes, requires=(one,))
    quiet_app.steps["consumer"].update([two, one])
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    send(quiet_app, 1, "two")
    assert handled.next() == 1
    hosted.call("close_steps")
    closed = ["one close", "two close", "two stop", "one stop"]
    assert notes == ["one get_consumers", "two get_consumers", *closed]
    hosted.call("end_steps", terminate=terminate)
    assert notes[-2:] == ["two shutdown", "one shutdown"]


def test_a_handler_that_never_ends_does_not_keep_the_worker_from_ending(
    quiet_app, make_hosted, monkeypatch, caplog
):
    enters, may_leave = threading.Event(), threading.Event()

    def wait(body):
        enters.set()
        may_leave.wait(DEADLINE)

    monkeypatch.setattr(steps, "CLOSING", 0.01)
    monkeypatch.setattr(steps, "TERMINATING", 0.01)
    quiet_app.steps["consumer"].add(step(Handled(wait)))
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    send(quiet_app, 1)
    assert enters.wait(DEADLINE)
    hosted.call("close_steps")
    hosted.call("end_steps", terminate=True)
    assert "A handler of a consumer step still runs" in caplog.text
    assert not may_leave.is_set()
    may_leave.set()
    consuming = hosted.worker.consumer.consuming
    consuming._thread.join(DEADLINE)
    assert not consuming._thread.is_alive()


def test_a_step_finds_what_celerys_steps_find(quiet_app, make_hosted):
    found: dict[str, Any] = {}
    ready = threading.Event()

    class Looking(bootsteps.ConsumerStep):
        requires = ("celery.worker.consumer:Connection", "celery.worker.consumer.tasks:Tasks")

        def __init__(self, c, **kwargs):
            found.update(timer=c.timer, pool=c.pool, hostname=c.hostname, app=c.app)
            super().__init__(c, **kwargs)

        def get_consumers(self, channel):
            return []

        def start(self, c):
            super().start(c)
            found["connected"] = c.connection.connected
            found["connection"] = c.connection
            ready.set()

    quiet_app.steps["consumer"].add(Looking)
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    assert ready.wait(DEADLINE)
    consumer = hosted.worker.consumer
    assert found["connected"]
    # The connection belongs to the thread of the steps.
    assert consumer.connection is not found["connection"]
    assert (found["timer"], found["pool"]) == (consumer.timer, consumer.pool)
    assert (found["hostname"], found["app"]) == ("one@host", quiet_app)


def test_an_app_without_such_steps_has_no_thread_for_them(hosted):
    hosted.call("start_steps", blueprint="consumer")
    hosted.call("close_steps")
    hosted.call("end_steps", terminate=False)
    assert "celeriac-steps" not in [thread.name for thread in threading.enumerate()]


# -- Other workers -----------------------------------------------------------------------------


class Knowing(bootsteps.StartStopStep):
    """A step that is called when other workers come and go."""

    requires = ("celery.worker.consumer.gossip:Gossip",)
    heard: Any = None

    def start(self, c):
        c.gossip.interval = 0.05
        for name in ("node_join", "node_leave", "node_lost"):
            getattr(c.gossip.on, name).add(functools.partial(self.hear, name))

    def hear(self, name, worker):
        self.heard.put((name, worker.hostname))


@pytest.fixture
def heard(monkeypatch):
    monkeypatch.setattr(Knowing, "heard", queue.Queue())
    return Knowing.heard


def tell_until_heard(app: Any, heard: Any, hostname: str, kind: str, freq: float) -> Any:
    """Sends an event of another worker until a step has heard of it."""
    deadline = time.monotonic() + DEADLINE
    with app.connection_for_write() as connection:
        dispatcher = app.events.Dispatcher(connection, hostname=hostname)
        while time.monotonic() < deadline:
            dispatcher.send(kind, freq=freq)
            try:
                return heard.get(timeout=0.2)
            except queue.Empty:
                # Whoever listens on Redis hears only what is sent from then on.
                pass
    raise AssertionError("nothing was heard")


def test_a_step_hears_of_other_workers(on_broker, server, make_hosted, heard):
    app = on_broker(server.url())
    app.steps["consumer"].add(Knowing)
    hosted = make_hosted()
    hosted.call("start_steps", blueprint="consumer")
    tell = functools.partial(tell_until_heard, app, heard)
    assert tell("two@host", "worker-online", 60) == ("node_join", "two@host")
    gossip = hosted.worker.consumer.gossip
    assert [worker.hostname for worker in gossip.state.alive_workers()] == ["two@host"]
    assert tell("two@host", "worker-offline", 60) == ("node_leave", "two@host")
    # With such an interval it is missed as soon as it was heard of.
    assert tell("three@host", "worker-heartbeat", 0) == ("node_join", "three@host")
    assert heard.get(timeout=DEADLINE) == ("node_lost", "three@host")
    hosted.call("close_steps")
    hosted.call("end_steps", terminate=False)
    assert "celeriac-steps" not in [thread.name for thread in threading.enumerate()]


def test_what_is_no_step_hears_of_other_workers(on_broker, server, make_hosted, heard):
    app = on_broker(server.url())
    consumer = make_hosted(app).worker.consumer
    consumer.gossip.on.node_join.add(lambda worker: heard.put(worker.hostname))
    assert tell_until_heard(app, heard, "two@host", "worker-online", 60) == "two@host"


def test_elections_are_held_by_the_parent(on_broker, server, make_hosted):
    consumer = make_hosted(on_broker(server.url())).worker.consumer
    asked = []
    consumer.parent.send = lambda name, arguments: asked.append((name, arguments))
    consumer.gossip.election("1", "task", {"task": "t"})
    expected = {"id": "1", "topic": "task", "action": {"task": "t"}}
    assert asked == [("election", expected)]


@pytest.mark.parametrize("broker, options", [("redis", {"without_gossip": True}), ("memory", {})])
def test_where_there_is_no_gossip_nobody_listens(
    on_broker, server, make_hosted, heard, broker, options
):
    # As in Celery there is none on a broker in memory.
    app = on_broker(server.url() if broker == "redis" else "memory://")
    app.steps["consumer"].add(Knowing)
    hosted = make_hosted(**options)
    hosted.call("start_steps", blueprint="consumer")
    assert not hosted.worker.consumer.gossip.enabled
    assert "celeriac-steps" not in [thread.name for thread in threading.enumerate()]
