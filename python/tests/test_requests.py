"""What main does for single tasks, with Celery's own request over the parent's message."""

from __future__ import annotations

import json
import pickle
from datetime import date
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import signals
from celery.exceptions import Ignore, NotRegistered, Reject, Retry, WorkerLostError
from celery.worker.request import Request
from kombu.serialization import dumps

from celeriac.host.requests import Requests


@pytest.fixture
def requests(app):
    @app.task(name="add", shared=False)
    def add(x, y):
        return x + y

    app.finalize()
    return Requests(SimpleNamespace(app=app, consumer=object(), hostname="one@host"))


def message(**members: Any) -> dict[str, Any]:
    return {
        "headers": {"task": "add", "id": "id-1", "lang": "py", "root_id": "root", "retries": 0},
        "properties": {"correlation_id": "id-1", "reply_to": "r", "delivery_info": {}},
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_info": {"routing_key": "celery", "exchange": ""},
        **members,
    }


BODY = json.dumps([[1, 2], {}, {}]).encode()


@pytest.fixture
def sent():
    """Connects a receiver to signals, and collects what they send."""
    found: list[dict[str, Any]] = []
    connected = []

    def receive(**members: Any) -> None:
        found.append(members)

    def connect(*names: str) -> list[dict[str, Any]]:
        for name in names:
            signal = getattr(signals, name)
            signal.connect(receive, weak=False)
            connected.append(signal)
        return found

    yield connect
    for signal in connected:
        signal.disconnect(receive)


def test_the_task_of_a_lost_child_fails(app, requests, sent):
    failures = sent("task_failure")
    requests.lost(message(), BODY, "signal 9 (SIGKILL)", pid=5, time_start=1.0)
    result = app.AsyncResult("id-1")
    assert result.state == "FAILURE"
    assert isinstance(result.result, WorkerLostError)
    assert "signal 9 (SIGKILL)" in str(result.result)
    assert [failure["task_id"] for failure in failures] == ["id-1"]


class Heard(Request):
    """A Request class of an app's own, which notes what it hears."""

    heard: ClassVar[list[BaseException]] = []

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        self.heard.append(exc)
        return super().on_failure(exc_info, send_failed_event, return_ok)


@pytest.fixture
def heard(app, requests, monkeypatch):
    monkeypatch.setattr(app.tasks["add"], "Request", Heard, raising=False)
    Heard.heard.clear()
    return Heard.heard


def test_a_task_that_exits_is_heard_of_as_that_and_stored_as_lost(app, requests, heard):
    requests.lost(message(), BODY, "exitcode 3", pid=5, time_start=1.0, status=3)
    assert [(type(exc), exc.args) for exc in heard] == [(SystemExit, (3,))]
    result = app.AsyncResult("id-1").result
    assert isinstance(result, WorkerLostError)
    assert "exitcode 3" in str(result)


def test_a_lost_task_that_goes_back_to_its_queue_is_heard_of_and_not_stored(
    app, requests, heard, sent, monkeypatch
):
    task = app.tasks["add"]
    monkeypatch.setattr(task, "acks_late", True)
    monkeypatch.setattr(task, "reject_on_worker_lost", True)
    failures = sent("task_failure")
    requests.lost(message(), BODY, "signal 9 (SIGKILL)", requeues=True)
    assert [type(exc) for exc in heard] == [WorkerLostError]
    assert (app.AsyncResult("id-1").state, failures) == ("PENDING", [])


def test_a_task_that_is_given_up_fails_where_celery_would_repeat_it(app, requests, monkeypatch):
    task = app.tasks["add"]
    monkeypatch.setattr(task, "acks_late", True)
    monkeypatch.setattr(task, "reject_on_worker_lost", True)
    requests.lost(message(), BODY, "signal 11 (SIGSEGV)")
    assert app.AsyncResult("id-1").state == "FAILURE"
    assert task.reject_on_worker_lost is True


def test_a_lost_task_is_not_sent_again_by_its_failure(app, requests, monkeypatch):
    # The parent has had that tried already.
    monkeypatch.setattr(app.tasks["add"], "retry_on_worker_lost", True, raising=False)
    monkeypatch.setattr(app.tasks["add"], "apply_async", lambda *_, **__: pytest.fail("sent"))
    requests.lost(message(), BODY, "signal 9 (SIGKILL)")
    assert app.AsyncResult("id-1").state == "FAILURE"


@pytest.mark.parametrize(
    "exc", [Ignore(), Retry("later", KeyError("k")), Reject("no", requeue=True), ValueError("v")]
)
def test_a_request_class_hears_of_what_a_child_has_dealt_with(app, requests, heard, sent, exc):
    failures = sent("task_failure")
    try:
        raise exc
    except type(exc):
        data = pickle.dumps(ExceptionInfo()).hex()
    requests.notify(message(), BODY, "on_failure", 5, 1.0, exception=repr(exc), pickle=data)
    assert [type(one) for one in heard] == [type(exc)]
    assert (app.AsyncResult("id-1").state, failures) == ("PENDING", [])


def test_what_a_child_pickled_is_what_fails_the_task(app, requests):
    try:
        raise KeyError("theirs")
    except KeyError:
        data = pickle.dumps(ExceptionInfo()).hex()
    requests.raised(message(), BODY, "KeyError('theirs')", data)
    result = app.AsyncResult("id-1")
    assert (result.state, repr(result.result)) == ("FAILURE", "KeyError('theirs')")


@pytest.mark.parametrize("data", ["", "00", b"cos\nnothing\n.".hex(), pickle.dumps(1).hex()])
def test_an_exception_that_cannot_be_had_is_made_from_its_text(app, requests, data):
    requests.raised(message(), BODY, "Strange(1)", data)
    result = app.AsyncResult("id-1")
    assert result.state == "FAILURE"
    assert "Strange(1)" in str(result.result)


def test_a_memory_error_fails_the_task_and_not_main(app, requests, sent):
    failures = sent("task_failure")
    try:
        raise MemoryError
    except MemoryError:
        data = pickle.dumps(ExceptionInfo()).hex()
    requests.raised(message(), BODY, "MemoryError()", data)
    assert app.AsyncResult("id-1").state == "FAILURE"
    assert len(failures) == 1


def test_a_task_over_its_time_limit_fails_once(app, requests, monkeypatch):
    hooked = []
    task = app.tasks["add"]
    monkeypatch.setattr(task, "on_failure", lambda *given: hooked.append(given), raising=False)
    requests.timed_out(message(), BODY, 3.0, 5, 1.0)
    assert repr(app.AsyncResult("id-1").result).startswith("TimeLimitExceeded")
    assert [given[1] for given in hooked] == ["id-1"]


def test_a_revoked_task_is_stored_and_announced(app, requests, sent):
    revoked = sent("task_revoked")
    requests.task_revoked(message(), BODY, "expired", expired=True)
    assert app.AsyncResult("id-1").state == "REVOKED"
    assert [(one["expired"], one["terminated"]) for one in revoked] == [(True, False)]
    assert revoked[0]["request"].id == "id-1"


def test_an_unknown_task_is_stored_and_announced(app, requests, sent):
    unknown = sent("task_unknown")
    requests.task_unknown(message(), BODY, "no.such", "id-1")
    assert isinstance(app.AsyncResult("id-1").result, NotRegistered)
    assert [(one["name"], one["id"]) for one in unknown] == [("no.such", "id-1")]
    # As Celery: what its look-up raised.
    assert repr(unknown[0]["exc"]) == "KeyError('no.such')"
    requests.task_unknown(message(), BODY, "no.such", None)
    assert len(unknown) == 2


def test_a_rejected_message_is_announced_with_its_reason(requests, sent):
    rejected = sent("task_rejected")
    requests.task_rejected(message(headers={}), b"{", "no task")
    requests.task_rejected(message(headers={}), b"{")
    assert [str(one["exc"]) for one in rejected] == ["no task", "None"]


def test_a_received_task_has_the_request_that_celery_makes(requests, sent):
    received = sent("task_received")
    requests.task_received(message(), BODY)
    request = received[0]["request"]
    assert (request.id, request.name, request.hostname) == ("id-1", "add", "one@host")
    assert request.root_id == "root"
    assert (request.args, request.kwargs) == ([1, 2], {})


def test_marked_headers_are_read_as_kombu_reads_them(requests, sent):
    received = sent("task_received")
    made = message()
    made["headers"]["when"] = {"__type__": "date", "__value__": "2026-01-02"}
    requests.task_received(made, BODY)
    assert received[0]["request"].request_dict["when"] == date(2026, 1, 2)


PROTOCOL_1 = {"task": "add", "id": "id-1", "args": [1, 2], "kwargs": {}, "retries": 3, "utc": True}


def test_a_task_of_protocol_1_has_a_request_as_well(requests, sent):
    received = sent("task_received")
    requests.task_received(message(headers={}), json.dumps(PROTOCOL_1).encode())
    assert (received[0]["request"].id, received[0]["request"].args) == ("id-1", [1, 2])


@pytest.mark.parametrize("serializer", ["json", "yaml", "pickle"])
def test_the_head_of_protocol_1_is_read_in_every_serializer(requests, serializer):
    content_type, encoding, text = dumps(PROTOCOL_1, serializer=serializer)
    raw = text.encode() if isinstance(text, str) else text
    members = {"content_type": content_type, "content_encoding": encoding, "headers": {}}
    head = requests.open_v1(message(**members), raw)
    assert head == {"task": "add", "id": "id-1", "retries": 3, "utc": True}


def test_what_is_no_mapping_has_no_head(requests):
    assert requests.open_v1(message(headers={}), b"[1]") is None
    assert requests.open_v1(message(headers={}), b'{"kwargs": []}') == {"kwargs": None}
