"""Every way from one of Celery's producers to a queue of the worker."""

from __future__ import annotations

from celery.utils.nodenames import worker_direct

from harness.wait import stays, wait_until

TIMEOUT = 30


def test_exchanges_of_bindings_are_there_before_any_producer(fanout_place, start, client):
    worker = start(fanout_place, "-c", "1", app="routed")
    app = client(fanout_place, "routed")
    # On Redis a producer has to know the type of an exchange, and learns it by declaring a queue.
    known = {} if fanout_place.broker.startswith("amqp") else {"queue": "pictures"}
    for key in ("media.picture.new", "old.thumbnail"):
        result = app.where.apply_async(exchange="media", routing_key=key, **known)
        assert result.get(timeout=TIMEOUT) == [worker.node, key]
    # What matches no binding comes to no queue.
    lost = app.where.apply_async(exchange="media", routing_key="media.sound", **known)
    assert app.where.delay().get(timeout=TIMEOUT)[1] == "celery"
    stays(lambda: lost.state == "PENDING", "nobody runs it", 0.3)


def test_bindings_have_arguments(rabbit_place, start, client):
    start(rabbit_place, "-c", "1", app="routed")
    app = client(rabbit_place, "routed")
    send = {"exchange": "matching", "routing_key": "any"}
    blue = app.where.apply_async(headers={"colour": "blue"}, **send)
    assert app.where.apply_async(headers={"colour": "red"}, **send).get(timeout=TIMEOUT)
    stays(lambda: blue.state == "PENDING", "it matches nothing", 0.3)
    assert app.where.apply_async(exchange="news", routing_key="any").get(timeout=TIMEOUT)


def test_a_broadcast_reaches_each_worker_once(rabbit_place, start, client):
    for name in ("w1@host", "w2@host"):
        start(rabbit_place, "-c", "1", "-n", name, app="routed")
    app = client(rabbit_place, "routed")
    app.note.apply_async(("heard by",), queue="everybody")
    wait_until(lambda: len(rabbit_place.lines()) >= 2, "both hear it", TIMEOUT)
    heard = ["heard by w1@host", "heard by w2@host"]
    stays(lambda: sorted(rabbit_place.lines()) == heard, "each once", 0.3)


def test_a_worker_has_a_queue_of_its_own(fanout_place, start, client):
    names = ("w1@host", "w2@host")
    for name in names:
        start(fanout_place, "-c", "1", "-n", name, app="routed")
    app = client(fanout_place, "routed")
    for name in names:
        results = [app.where.apply_async(queue=worker_direct(name)) for _ in range(4)]
        assert {result.get(timeout=TIMEOUT)[0] for result in results} == {name}


def test_urgent_messages_come_first(rabbit_place, start, client):
    app = client(rabbit_place, "routed")
    with app.app.connection_for_write() as connection:
        app.app.amqp.queues["urgent"](connection.default_channel).declare()
    for priority in (1, 9, 5):
        app.note.apply_async((f"priority {priority}",), queue="urgent", priority=priority)
    start(rabbit_place, "-c", "1", "-Q", "urgent", app="routed")
    wait_until(lambda: len(rabbit_place.lines()) == 3, "all ran", TIMEOUT)
    order = [int(line.split()[1]) for line in rabbit_place.lines()]
    assert order == [9, 5, 1]
