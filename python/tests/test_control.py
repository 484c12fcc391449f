"""Remote control commands that Python carries out, and messages that Rust can't read."""

from __future__ import annotations

import base64
import datetime
import json
import logging
import pickle
import threading
from typing import Any

import pytest
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state
from celery.worker.control import control_command, inspect_command
from kombu.serialization import dumps

NOW = datetime.datetime(2031, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)


def run(hosted: Any, method: str, **arguments: Any) -> Any:
    """What a command replies."""
    answer = hosted.call("control_command", method=method, arguments=arguments)
    return json.loads(answer["reply"])


def message(content_type: str, encoding: str, **headers: Any) -> dict[str, Any]:
    return {
        "headers": headers,
        "properties": {},
        "content_type": content_type,
        "content_encoding": encoding,
        "delivery_info": {},
    }


def decoded(encoded: dict[str, str]) -> bytes:
    return base64.b64decode(encoded["body"])


def test_a_command_of_the_app_is_given_celerys_state(hosted, panel):
    found = {}

    @inspect_command(alias="old_name")
    def look(state, item, **kwargs):
        found.update(state)
        return {"item": item, "kwargs": kwargs, "one": sorted(state.tset([1]))}

    assert run(hosted, "look", item=1, more=2) == {"item": 1, "kwargs": {"more": 2}, "one": [1]}
    assert run(hosted, "old_name", item=1)["item"] == 1
    assert found["app"] is hosted.app
    assert found["hostname"] == "one@host"
    assert found["consumer"] is hosted.worker.consumer


@pytest.mark.parametrize("name", ["conf", "dump_conf", "report", "memsample", "memdump"])
def test_commands_about_the_interpreter_are_celerys(hosted, name):
    assert run(hosted, name)


def test_a_reply_is_what_kombu_would_write(hosted, panel):
    @inspect_command()
    def times(state, at):
        return {"at": at, "again": NOW, "same": at == NOW, "bytes": b"\xff", "none": float("nan")}

    marked = {"__type__": "datetime", "__value__": NOW.isoformat()}
    reply = hosted.call("control_command", method="times", arguments={"at": marked})["reply"]
    assert '"none": NaN' in reply
    read = json.loads(reply)
    assert (read["at"], read["again"], read["same"]) == (marked, marked, True)
    assert read["bytes"] == {"__type__": "base64", "__value__": "/w=="}


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"item": 0}, "ZeroDivisionError('division by zero')"),
        ({}, "missing 1 required positional argument: 'item'"),
        ({"item": 1, "other": 2}, "unexpected keyword argument 'other'"),
    ],
)
def test_a_command_that_raises_replies_its_error(hosted, panel, caplog, arguments, error):
    @control_command()
    def divide(state, item):
        return 1 / item

    assert error in run(hosted, "divide", **arguments)["error"]
    record = next(one for one in caplog.records if one.name == "kombu.pidbox")
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("pidbox command error: ")
    assert record.exc_info


def test_a_command_that_nobody_knows_replies_so(hosted):
    assert run(hosted, "no_such_command") == {"error": "KeyError('no_such_command')"}


def test_a_reply_that_cannot_be_written_is_none(hosted, panel, caplog):
    @inspect_command()
    def unwritable(state):
        return object()

    assert hosted.call("control_command", method="unwritable") == {}
    assert "Control command error: EncodeError" in caplog.text


@pytest.mark.parametrize(
    "raised, told",
    [
        (WorkerShutdown(3), {"warm": True, "exitcode": 3}),
        (WorkerTerminate(4), {"warm": False, "exitcode": 4}),
        (SystemExit(), {"warm": True, "exitcode": 0}),
        (SystemExit("because"), {"warm": True, "exitcode": 1}),
    ],
)
def test_a_command_may_end_the_worker(hosted, panel, raised, told):
    @control_command()
    def end(state):
        raise raised

    assert hosted.call("control_command", method="end") == {"shutdown": told}


def test_a_command_may_ask_the_worker_to_stop(hosted, panel):
    @control_command()
    def stop_soon(_):
        state.should_stop = 5
        return "bye"

    answer = hosted.call("control_command", method="stop_soon")
    assert answer == {"reply": '"bye"', "shutdown": {"warm": True, "exitcode": 5}}


def test_a_command_that_takes_long_holds_up_only_other_commands(hosted, panel):
    enters, may_leave = threading.Event(), threading.Event()
    order = []

    @control_command()
    def slow(state):
        enters.set()
        assert may_leave.wait(30)
        order.append("slow")

    @control_command()
    def quick(state):
        order.append("quick")

    first = hosted.begin("control_command", method="slow")
    second = hosted.begin("control_command", method="quick")
    assert enters.wait(30)
    hosted.call("worker_ready")
    assert order == []
    may_leave.set()
    assert hosted.answer(second) == {"ok": {"reply": "null"}}
    assert hosted.answer(first) == {"ok": {"reply": "null"}}
    assert order == ["slow", "quick"]


def test_celerys_own_commands_do_not_wait_for_those_of_the_app(hosted, panel):
    enters, may_leave = threading.Event(), threading.Event()

    @control_command()
    def slow(state):
        enters.set()
        assert may_leave.wait(30)

    first = hosted.begin("control_command", method="slow")
    assert enters.wait(30)
    assert "broker_url" in run(hosted, "conf")
    assert not may_leave.is_set()
    may_leave.set()
    assert hosted.answer(first) == {"ok": {"reply": "null"}}


def test_a_command_of_the_app_under_a_name_of_celerys_is_the_apps(hosted, panel):
    order = []
    enters, may_leave = threading.Event(), threading.Event()

    @control_command()
    def slow(state):
        enters.set()
        assert may_leave.wait(30)
        order.append("slow")

    @inspect_command()
    def conf(state, **kwargs):
        order.append("conf")

    first = hosted.begin("control_command", method="slow")
    second = hosted.begin("control_command", method="conf")
    assert enters.wait(30)
    may_leave.set()
    assert hosted.answer(second) == {"ok": {"reply": "null"}}
    assert hosted.answer(first) == {"ok": {"reply": "null"}}
    assert order == ["slow", "conf"]


def test_more_commands_than_can_wait_are_refused(hosted, panel, monkeypatch):
    may_leave = threading.Event()

    @control_command()
    def slow(state):
        assert may_leave.wait(30)

    numbers = [hosted.begin("control_command", method="slow") for _ in range(300)]
    # The last is refused while the first still runs.
    refused = hosted.answer(numbers[-1])
    assert "too many" in refused["error"]
    may_leave.set()
    answers = [hosted.answer(number) for number in numbers[:-1]]
    assert answers.count({"ok": {"reply": "null"}}) >= 256


def test_commands_hear_of_the_parents_clock(hosted, panel):
    @inspect_command()
    def time_is(state):
        return state.app.clock.value

    assert json.loads(hosted.call("control_command", method="time_is", clock=5000)["reply"]) > 5000


def test_what_a_command_asks_of_the_worker_reaches_the_parent(hosted, panel, quiet_app):
    @quiet_app.task(name="t", shared=False)
    def task():
        pass

    @control_command()
    def change(state):
        consumer = state.consumer
        consumer.pool.grow(2)
        consumer.pool.shrink(1)
        consumer.pool.terminate_job(42, "KILL")
        consumer.qos.increment_eventually(3)
        consumer.call_soon(consumer.add_task_queue, "more", expires=3.5)
        consumer.cancel_task_queue("less")
        state.app.tasks["t"].rate_limit = "3/s"
        consumer.reset_rate_limits()
        consumer.controller.stop(exitcode=3)
        return [consumer.pool.num_processes, consumer.qos.value]

    assert run(hosted, "change") == [3, 2 * hosted.worker.prefetch_multiplier + 3]
    assert hosted.asked == [
        ("pool_grow", {"n": 2}),
        ("pool_shrink", {"n": 1}),
        ("terminate_job", {"pid": 42, "signal": 9}),
        ("prefetch_count", {"by": 3}),
        (
            "add_consumer",
            {
                "queue": "more",
                "exchange": None,
                "exchange_type": None,
                "routing_key": None,
                "expires": 3.5,
            },
        ),
        ("cancel_consumer", {"queue": "less"}),
        ("rate_limit", {"task_name": "t", "rate_limit": "3/s"}),
        ("shutdown", {"warm": True, "exitcode": 3}),
    ]


@pytest.mark.parametrize("arguments", [{}, {"modules": []}, {"modules": ["json"]}])
def test_the_pool_is_restarted(hosted, quiet_app, arguments):
    quiet_app.conf.worker_pool_restarts = True
    assert run(hosted, "pool_restart", **arguments) == {"ok": "reload started"}
    assert hosted.asked == [("pool_restart", {})]


@pytest.mark.parametrize("arguments", [{"reload": True}, {"modules": ["json", "not.imported"]}])
def test_what_can_not_be_reloaded_is_told(hosted, quiet_app, arguments):
    quiet_app.conf.worker_pool_restarts = True
    assert "while the worker runs: restart it" in run(hosted, "pool_restart", **arguments)["error"]
    assert hosted.asked == []


def test_an_autoscaler_is_there_where_the_worker_has_one(make_hosted, panel):
    @control_command()
    def scale(state):
        scaler = state.consumer.controller.autoscaler
        return scaler and scaler.update(9, 1)

    assert run(make_hosted(), "scale") is None
    scaled = make_hosted(autoscale=(4, 2))
    assert run(scaled, "scale") == [9, 1]
    assert scaled.asked == [("autoscale", {"max": 9, "min": 1})]


def test_what_the_parent_has_changed_is_known_to_commands(hosted, panel, quiet_app):
    @quiet_app.task(name="t", shared=False)
    def task():
        pass

    hosted.tell("set_pool_size", limit=7)
    hosted.tell("set_task_attributes", task="t", attributes={"rate_limit": "1/m"})

    @inspect_command()
    def look(state):
        return [state.consumer.pool.num_processes, state.app.tasks["t"].rate_limit]

    assert run(hosted, "look") == [7, "1/m"]


@pytest.mark.parametrize("events, groups", [(True, []), (False, ["worker"])])
def test_a_command_sends_events_of_the_groups_that_are_on(make_hosted, panel, events, groups):
    hosted = make_hosted(task_events=events)
    heard: list[dict[str, Any]] = []

    @control_command()
    def send(state):
        dispatcher = state.consumer.event_dispatcher
        dispatcher.send("worker-custom", a=1)
        dispatcher.send("task-custom", uuid="1")
        return sorted(dispatcher.groups)

    with hosted.app.connection_for_read() as connection:
        receiver = hosted.app.events.Receiver(connection, handlers={"*": heard.append})
        consumers = receiver.get_consumers(connection.Consumer, connection.default_channel)
        consumers[0].consume()
        assert run(hosted, "send") == groups
        connection.drain_events(timeout=30)
        if events:
            connection.drain_events(timeout=30)
        else:
            hosted.call("set_event_groups", groups=["worker", "task"])
            assert run(hosted, "send") == ["task", "worker"]
            for _ in range(2):
                connection.drain_events(timeout=30)
    types = [one["type"] for one in heard]
    first = ["worker-custom"] if not events else []
    assert types == [*first, "worker-custom", "task-custom"]
    assert {one["hostname"] for one in heard} == {"one@host"}


def test_a_request_in_another_serializer_is_opened(hosted, quiet_app):
    quiet_app.conf.accept_content = ["json", "pickle"]
    request = {"method": "m", "arguments": {"at": NOW, "odd": {1, 2}}, "destination": None}
    content_type, encoding, body = dumps(request, serializer="pickle")
    opened = hosted.call("control_open", body, message=message(content_type, encoding))
    assert opened["method"] == "m"
    assert opened["arguments"]["at"] == {"__type__": "datetime", "__value__": NOW.isoformat()}
    assert opened["arguments"]["odd"] == "{1, 2}"


@pytest.mark.parametrize(
    "serializer, value, logged",
    [
        ("pickle", {"method": "m"}, "Refusing to deserialize untrusted content of type pickle"),
        ("json", ["m"], "Control command error: the request is of type list"),
    ],
)
def test_what_is_no_request_is_logged_and_refused(hosted, caplog, serializer, value, logged):
    content_type, encoding, body = dumps(value, serializer=serializer)
    blob = body if isinstance(body, bytes) else body.encode()
    assert hosted.call("control_open", blob, message=message(content_type, encoding)) is None
    assert logged in caplog.text


def test_replies_and_events_are_written_in_the_apps_serializers(quiet_app, make_hosted, panel):
    quiet_app.conf.task_serializer = "pickle"
    quiet_app.conf.event_serializer = "yaml"

    @inspect_command()
    def odd(state):
        return {1, 2}

    hosted = make_hosted()
    command = hosted.call("control_command", method="odd")["message"]
    assert (command["content_type"], command["content_encoding"]) == (
        "application/x-python-serialize",
        "binary",
    )
    assert pickle.loads(decoded(command)) == {"one@host": {1, 2}}
    reply = hosted.call("control_reply", reply={"one@host": {"ok": "pong"}})
    assert pickle.loads(decoded(reply)) == {"one@host": {"ok": "pong"}}
    event = hosted.call("encode_event", event=[{"type": "worker-online"}])
    assert event["content_type"] == "application/x-yaml"
    assert decoded(event) == b"- type: worker-online\n"
