"""Queues that a worker begins or ceases to consume from while it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured
from celery.worker import control
from kombu import Exchange, Queue, binding

from celeriac.host.worker import hosted_worker_class


def consumed(app: Any) -> list[str]:
    return sorted(app.amqp.queues.consume_from)


def test_a_queue_that_nobody_knows_is_made_up_as_celery_does(hosted, quiet_app):
    made = hosted.call("select_queue", queue="new")
    assert (made["name"], made["routing_key"]) == ("new", "new")
    assert (made["exchange"]["name"], made["exchange"]["type"]) == ("new", "direct")
    assert consumed(quiet_app) == ["celery", "new"]


def test_a_made_up_queue_has_what_was_asked_for(hosted):
    made = hosted.call(
        "select_queue",
        queue="new",
        exchange="x",
        exchange_type="topic",
        routing_key="a.#",
        options={"queue_arguments": {"x-queue-type": "quorum"}, "expires": 3, "durable": False},
    )
    assert (made["exchange"]["name"], made["exchange"]["type"]) == ("x", "topic")
    assert made["routing_key"] == "a.#"
    assert made["arguments"] == {"x-queue-type": "quorum"}
    assert (made["expires"], made["durable"]) == (3, False)


def test_a_queue_of_the_app_is_taken_as_it_is(quiet_app, make_hosted):
    quiet_app.conf.task_queues = [
        Queue("one"),
        Queue(
            "two", Exchange("x", "topic"), "b", alias="second", consumer_arguments={"x-priority": 3}
        ),
    ]
    hosted = make_hosted(queues=["one"])
    assert consumed(quiet_app) == ["one"]
    selected = hosted.call("select_queue", queue="two", exchange="other")
    assert selected["exchange"]["name"] == "x"
    assert selected["consumer_arguments"] == {"x-priority": 3}
    assert consumed(quiet_app) == ["one", "two"]
    assert hosted.call("deselect_queue", queue="second") == "two"
    assert consumed(quiet_app) == ["one"]
    assert hosted.call("deselect_queue", queue="unknown") == "unknown"


@pytest.mark.parametrize(
    "queue",
    [
        Queue("plain"),
        Queue(
            "rich",
            Exchange("x", "topic", delivery_mode=1),
            "b",
            queue_arguments={"x-max-priority": 3},
            max_priority=5,
            message_ttl=2.5,
        ),
        Queue("bound", [binding(Exchange("y"), "a"), binding(Exchange("z"), "b")]),
    ],
)
def test_an_operator_is_shown_what_celery_shows(hosted, quiet_app, queue):
    quiet_app.amqp.queues.add(queue)
    shown = hosted.call("select_queue", queue=queue.name)["info"]
    consumer = SimpleNamespace(task_consumer=SimpleNamespace(queues=[queue]))
    (celerys,) = control.active_queues(SimpleNamespace(consumer=consumer))
    assert shown == celerys


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["celery", "mail"]),
        ({"queues": ["one"]}, ["mail", "one"]),
        ({"exclude_queues": ["celery"]}, ["mail"]),
    ],
)
def test_the_queues_of_pools_are_consumed_from_as_well(make_hosted, quiet_app, given, expected):
    make_hosted(pool_queues=["mail"], **given)
    assert consumed(quiet_app) == expected


def test_a_pools_queue_that_there_is_not_is_refused(quiet_app):
    quiet_app.conf.task_create_missing_queues = False
    with pytest.raises(ImproperlyConfigured, match="The queue 'mail' of a pool"):
        hosted_worker_class(quiet_app)(app=quiet_app, pool_queues=["mail"])
