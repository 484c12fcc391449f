"""The calls that main answers."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from celery import bootsteps, signals
from celery.app import trace

from celeriac.host.main import Main
from celeriac.host.wire import Channel
from celeriac.host.worker import hosted_worker_class


class Parent:
    """The Rust parent's side of main's channel."""

    def __init__(self, app: Any) -> None:
        self._socket, mains = socket.socketpair()
        self._socket.settimeout(10)
        self._channel = Channel(self._socket)
        self._mains = mains
        self._frames = b""
        worker = SimpleNamespace(
            app=app,
            consumer=SimpleNamespace(begin=lambda: None),
            hostname="one@host",
            parent=SimpleNamespace(),
        )
        self.main = Main(Channel(mains), worker)

    def send(self, text: str, blob: bytes = b"") -> None:
        data = text.encode()
        self._frames += struct.pack(">II", len(data), len(blob)) + data + blob

    def run(self) -> None:
        """Has main answer what was sent, and leave."""
        self.send('{"call": "leave"}')
        # More than the socket's buffer holds may have to be sent while main reads.
        sender = threading.Thread(target=self._socket.sendall, args=(self._frames,))
        sender.start()
        self.main.run()
        sender.join(10)

    def answer(self) -> dict[str, Any]:
        return self._channel.read()[0]

    def close(self) -> None:
        self._socket.close()
        self._mains.close()


@pytest.fixture
def parent(app):
    made = Parent(app)
    yield made
    made.close()


MESSAGE = (
    '{{"headers": {headers}, "properties": {{}}, "content_type": null, '
    '"content_encoding": null, "delivery_info": {{}}}}'
)


@pytest.mark.parametrize(
    "headers",
    [
        '{"x": {"__type__": "datetime", "__value__": "never"}}',
        '{"x": {"__type__": "no such type", "__value__": 1}}',
        '{"x": ' + "[" * 20_000 + "]" * 20_000 + "}",
    ],
)
def test_headers_that_cannot_be_read_fail_their_own_call_alone(parent, headers):
    message = MESSAGE.format(headers=headers)
    parent.send(f'{{"id": 7, "call": "open_v1", "message": {message}}}', b"{}")
    parent.send(f'{{"call": "open_v1", "message": {message}}}', b"{}")
    parent.send(f'{{"id": 8, "call": "open_v1", "message": {MESSAGE.format(headers="{}")}}}', b"1")
    parent.run()
    refused = parent.answer()
    assert refused["id"] == 7
    assert refused["error"]
    assert parent.answer() == {"id": 8, "ok": None}


def test_the_frame_itself_has_no_marks(parent):
    parent.main._calls["keep"] = lambda value: value
    marked = {"__type__": "decimal", "__value__": "1"}
    parent.send(json.dumps({"id": 1, "call": "keep", "value": marked}))
    parent.run()
    assert parent.answer() == {"id": 1, "ok": marked}


def test_what_is_revoked_is_kept_before_main_leaves(parent, monkeypatch):
    leaves, kept = threading.Event(), []
    stores = parent.main._stores
    finish = stores.finish

    def leave(timeout):
        leaves.set()
        finish(timeout)

    monkeypatch.setattr(stores, "finish", leave)
    parent.main._calls["revoked_store_add"] = lambda ids: kept.append(leaves.wait(10) and ids)
    parent.send('{"call": "revoked_store_add", "ids": ["1"]}')
    parent.run()
    assert kept == [["1"]]


def test_what_is_told_in_vain_is_in_the_log(parent, caplog):
    parent.main._errands["revoked_store_add"] = SimpleNamespace(take=lambda errand: False)
    parent.send('{"call": "revoked_store_add", "ids": ["1"]}')
    parent.run()
    assert "Hook revoked_store_add is left out: too many calls" in caplog.text


class Noted(bootsteps.StartStopStep):
    """A step that notes what is called of it, and fails where it is told to."""

    fails = ""
    notes: ClassVar[list[str]] = []

    def _note(self, what: str) -> None:
        self.notes.append(f"{self.alias} {what}")
        if f"{self.alias} {what}" == Noted.fails:
            raise RuntimeError(what)

    def start(self, parent):
        self._note("start")

    def close(self, parent):
        self._note("close")

    def stop(self, parent):
        self._note("stop")

    def terminate(self, parent):
        self._note("terminate")


class One(Noted):
    label = "one"


class Two(Noted):
    label = "two"
    requires = (One,)


class Fed(Noted):
    label = "fed"

    def shutdown(self, parent):
        self._note("shutdown")


@pytest.fixture
def notes(app, monkeypatch):
    Noted.notes.clear()
    monkeypatch.setattr(Noted, "fails", "")
    monkeypatch.setattr(app.loader, "shutdown_worker", lambda: Noted.notes.append("loader"))
    # The logging and the streams of this process are pytest's.
    monkeypatch.setattr(app.log, "setup", lambda *_, **__: True)
    app.conf.worker_redirect_stdouts = False
    app.conf.accept_content = ["json"]
    yield Noted.notes
    trace.reset_worker_optimizations(app)


def main_of(app: Any) -> Main:
    worker = hosted_worker_class(app)(app=app, hostname="one@host", concurrency=1)
    worker.after_setup()
    ours, mains = socket.socketpair()
    ours.close()
    return Main(Channel(mains), worker)


@pytest.fixture
def main(app, notes):
    app.steps["worker"].update([One, Two])
    app.steps["consumer"].add(Fed)
    return main_of(app)


STARTED = ["one start", "two start", "fed start"]
CLOSED = ["loader", "one close", "two close", "fed close", "fed stop"]


@pytest.mark.parametrize("terminate, last", [(False, "stop"), (True, "terminate")])
def test_steps_hear_of_the_end_in_celerys_order(main, notes, terminate, last):
    main.start_steps("worker")
    main.start_steps("consumer")
    assert notes == STARTED
    main.close_steps()
    assert notes == STARTED + CLOSED
    main.end_steps(terminate)
    assert notes == [*STARTED, *CLOSED, f"two {last}", f"one {last}", "fed shutdown"]
    main.worker_shutdown()
    assert notes[-1] == "fed shutdown"


def test_a_step_that_fails_to_end_does_not_keep_others_from_it(main, notes, monkeypatch):
    main.start_steps("worker")
    main.start_steps("consumer")
    monkeypatch.setattr(Noted, "fails", "one close")
    main.close_steps()
    assert notes == STARTED + CLOSED
    monkeypatch.setattr(Noted, "fails", "two stop")
    main.end_steps(False)
    assert notes[-3:] == ["two stop", "one stop", "fed shutdown"]


def test_where_a_step_fails_to_start_no_step_hears_of_the_end(main, notes, monkeypatch):
    monkeypatch.setattr(Noted, "fails", "two start")
    with pytest.raises(RuntimeError):
        main.start_steps("worker")
    main.close_steps()
    main.end_steps(False)
    assert notes == ["one start", "two start"]


def test_consumer_steps_that_were_never_started_hear_of_no_end(main, notes):
    main.start_steps("worker")
    main.close_steps()
    main.end_steps(False)
    end = ["loader", "one close", "two close", "two stop", "one stop"]
    assert notes == ["one start", "two start", *end]


@pytest.mark.parametrize("terminate", [False, True])
def test_an_app_without_steps_ends_as_well(app, notes, terminate):
    main = main_of(app)
    main.close_steps()
    main.end_steps(terminate)
    assert notes == ["loader"]


def test_a_forwarded_record_has_celerys_file(main):
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append
    target = logging.getLogger("celery.worker.strategy")
    target.addHandler(handler)
    try:
        record = {"name": target.name, "level": logging.ERROR, "message": "m", "created": 1.0}
        main.log([record])
    finally:
        target.removeHandler(handler)
    assert [(one.module, one.filename) for one in found] == [("strategy", "strategy.py")]


def test_the_heart_is_the_sender_of_heartbeats(main):
    found = []

    def receive(sender, **_):
        found.append(sender)

    signals.heartbeat_sent.connect(receive)
    try:
        main.heartbeat_sent()
    finally:
        signals.heartbeat_sent.disconnect(receive)
    assert [one.interval for one in found] == [2.0]
