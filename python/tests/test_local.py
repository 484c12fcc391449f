"""Remote control and events where the broker has no fanout: the client's side."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.control import Control
from celery.app.events import Events
from kombu import Connection

from celeriac.host import client, local

DEADLINE = 30
#: What the tests of the node's side read as well: URL, ``connect_args``, identity.
IDENTITIES = [
    line
    for line in (Path(__file__).parents[2] / "crates/celeriac-broker/src/sql/identities.tsv")
    .read_text()
    .splitlines()
    if not line.startswith("#")
]


class Node:
    """A node that answers every command, as `crates/celeriac-broker/src/local` does."""

    def __init__(self, folder: Path, name: str, commands: bool = True) -> None:
        self.name, self.commands = name, commands
        self.requests: list[dict[str, Any]] = []
        self.wishes: list[str] = []
        self.heard = threading.Event()
        self.reply: Any = {"ok": "pong"}
        #: Whether replies are for somebody else.
        self.is_late = False
        self.closes = False
        self.peers: list[socket.socket] = []
        self.listeners: list[socket.socket] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid.uuid5(uuid.NAMESPACE_URL, name).hex[:16]}.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.peers.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        hello = {"kind": "hello", "node": self.name, "commands": self.commands, "events": None}
        try:
            # Something new is to be ignored.
            self.send(peer, {"kind": "news", "of": "tomorrow"})
            self.send(peer, hello)
            file = peer.makefile("rb")
            while head := file.read(4):
                frame = json.loads(file.read(struct.unpack(">I", head)[0]))
                self._take(peer, frame)
            peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _take(self, peer: socket.socket, frame: dict[str, Any]) -> None:
        if frame["kind"] == "events":
            self.listeners.append(peer)
            self.wishes.append(frame["routing_key"])
            self.heard.set()
            return
        request, message = local.unseal(frame["message"], ["json"])
        self.requests.append({**request, "headers": message.headers, "key": frame.get("reply_key")})
        self.heard.set()
        if self.closes:
            peer.shutdown(socket.SHUT_RDWR)
        elif self.commands and "reply_key" in frame:
            ticket = "another" if self.is_late else request["ticket"]
            headers = {"ticket": ticket, "clock": 700}
            reply = local.seal({self.name: self.reply}, "json", headers, "")
            self.send(peer, {"kind": "reply", "message": reply})

    def tell(self, event: Any) -> None:
        """Sends an event to all who listen."""
        sealed = local.seal(event, "json", {"hostname": self.name}, "")
        for peer in self.listeners:
            self.send(peer, {"kind": "event", "message": sealed})

    def send(self, peer: socket.socket, frame: dict[str, Any]) -> None:
        packed = local.pack(frame)
        # In pieces, as a stream may come.
        for first in range(0, len(packed), 100):
            peer.sendall(packed[first : first + 100])

    def stop(self) -> None:
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def folder(monkeypatch):
    """A short one: the path of a socket is 107 bytes at most."""
    made = tempfile.mkdtemp(prefix="run", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", made)
    os.mkdir(f"{made}/celeriac", 0o700)
    yield Path(made) / "celeriac"
    shutil.rmtree(made)


@pytest.fixture
def app(folder, tmp_path, monkeypatch):
    initialize = Control.__init__
    monkeypatch.setattr(Control, "__init__", initialize)
    monkeypatch.setattr(Control, "Mailbox", Control.Mailbox)
    monkeypatch.setattr(Events, "receiver_cls", Events.receiver_cls)
    client.install()
    made = Celery("tested", broker=f"sqla+sqlite:///{tmp_path}/b.db", set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def make_node(app, folder, tmp_path):
    started = []

    def make(name: str, **options: Any) -> Node:
        text = f"sqlite://{os.path.realpath(tmp_path)}/b.db#celery"
        broker = uuid.uuid5(uuid.NAMESPACE_URL, text).hex[:16]
        started.append(Node(folder / broker, name, **options))
        return started[-1]

    yield make
    for one in started:
        one.stop()


def test_every_node_replies(app, make_node):
    make_node("one@h")
    two = make_node("two@h")
    two.reply = {"ok": "x" * 200_000}
    replies = app.control.inspect(timeout=DEADLINE).ping()
    assert replies == {"one@h": {"ok": "pong"}, "two@h": two.reply}
    assert app.control.mailbox.clock.value > 700
    (request,) = two.requests
    assert (request["method"], request["arguments"]) == ("ping", {})
    assert request["reply_to"]["routing_key"] == request["key"]
    assert request["headers"]["clock"] > 0


def test_a_command_that_wants_no_reply_arrives(app, make_node):
    node = make_node("one@h")
    assert app.control.enable_events() is None
    assert node.heard.wait(DEADLINE)
    (request,) = node.requests
    assert (request["method"], request["key"]) == ("enable_events", None)
    assert "ticket" not in request


def test_as_many_replies_as_destinations_are_waited_for(app, make_node):
    # The node that is not meant does not reply.
    other = make_node("other@h", commands=False)
    make_node("one@h")
    seen: list[Any] = []
    replies = app.control.broadcast(
        "ping", reply=True, destination=["one@h"], timeout=DEADLINE, callback=seen.append
    )
    assert replies == [{"one@h": {"ok": "pong"}}] == seen
    assert [one["destination"] for one in other.requests] in ([], [["one@h"]])


@pytest.mark.parametrize("trouble", ["takes no commands", "closes", "replies late", "is dead"])
def test_a_node_in_trouble_is_waited_for_no_longer_than_needed(app, make_node, trouble):
    make_node("good@h")
    bad = make_node("bad@h", commands=trouble != "takes no commands")
    bad.closes = trouble == "closes"
    bad.is_late = trouble == "replies late"
    if trouble == "is dead":
        bad.stop()
    # Only who might still reply is waited for.
    timeout = 0.3 if trouble == "replies late" else DEADLINE
    assert app.control.inspect(timeout=timeout).ping() == {"good@h": {"ok": "pong"}}


def test_where_no_node_is_nobody_replies(app):
    assert app.control.inspect(timeout=DEADLINE).ping() is None


def test_a_folder_that_others_may_use_is_not_looked_into(app, make_node, folder):
    make_node("one@h")
    os.chmod(folder, 0o755)
    assert app.control.inspect(timeout=DEADLINE).ping() is None


def test_what_is_no_frame_ends_a_connection(app, make_node, monkeypatch):
    node = make_node("one@h")

    def send(peer, frame):
        peer.sendall(struct.pack(">I", local.LARGEST + 1) + b"x")

    monkeypatch.setattr(node, "send", send)
    assert app.control.inspect(timeout=DEADLINE).ping() is None


def listen(app: Any, heard: list[dict[str, Any]], limit: int) -> None:
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        receiver.capture(limit=limit, timeout=DEADLINE, wakeup=True)


def test_events_of_all_nodes_are_heard(app, make_node, monkeypatch):
    monkeypatch.setattr(local, "LOOK_AGAIN", 0.05)
    one = make_node("one@h")
    heard: list[dict[str, Any]] = []
    listener = threading.Thread(target=listen, args=(app, heard, 3), daemon=True)
    listener.start()
    wait_for_wish(one)
    one.tell({"type": "worker-online", "hostname": "one@h", "timestamp": 1.0, "clock": 900})
    # A node that begins later, and one that comes back, are found.
    two = make_node("two@h")
    wait_for_wish(two)
    batch = [{"type": "task-received", "uuid": str(number), "clock": 1} for number in range(2)]
    two.tell(batch)
    two.stop()
    os.unlink(two.path)
    again = make_node("two@h")
    wait_for_wish(again)
    again.tell({"type": "task-succeeded", "uuid": "1", "clock": 2})
    listener.join(DEADLINE)
    assert not listener.is_alive()
    types = ["worker-online", "task-received", "task-received", "task-succeeded"]
    assert [event["type"] for event in heard] == types
    assert all("local_received" in event for event in heard)
    assert set(one.wishes + two.wishes + again.wishes) == {"#"}
    # Workers are asked to show themselves.
    assert [request["method"] for request in one.requests] == ["heartbeat"]


def wait_for_wish(node: Node) -> None:
    deadline = time.monotonic() + DEADLINE
    while not node.wishes:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_hears_nothing_for_long_is_told_so(app, monkeypatch):
    monkeypatch.setattr(local, "LOOK_AGAIN", 0.01)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection)
        with pytest.raises(socket.timeout):
            receiver.capture(timeout=0.05, wakeup=False)


def test_a_broker_with_fanout_is_used_as_ever(app, monkeypatch):
    app.conf.broker_url = "memory://"
    monkeypatch.setattr(local, "sockets", None)
    assert app.control.inspect(timeout=0.05).ping() is None
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection)
        with pytest.raises(socket.timeout):
            receiver.capture(timeout=0.05, wakeup=False)


@pytest.mark.parametrize("line", IDENTITIES)
def test_a_broker_has_the_identity_that_its_nodes_find(line):
    url, arguments, named = line.split("\t")
    assert local.identity(url, json.loads(arguments or "null")) == named


@pytest.mark.parametrize(
    "url, named",
    [
        ("sqlalchemy+sqlite:///q.db", f"sqlite://{os.path.realpath('q.db')}"),
        ("sqla+sqlite://", None),
        ("sqla+oracle://h/q", None),
    ],
)
def test_an_identity_is_a_real_path_or_none(url, named):
    assert local.identity(url) == named


def test_nodes_are_looked_for_by_the_transport_options_as_well(folder):
    broker = uuid.uuid5(uuid.NAMESPACE_URL, "postgresql://h:6000/q#celery").hex[:16]
    (folder / broker).mkdir()
    (folder / broker / "n.sock").touch()
    options = {"connect_args": {"host": "H", "port": 6000}}
    with Connection("sqla+postgresql:///q", transport_options=options) as connection:
        assert local.sockets(connection, "celery") == [str(folder / broker / "n.sock")]


def test_a_revoke_is_kept_for_workers_that_start_later(app):
    replies = app.control.revoke(["1", "2"], reply=True, timeout=0.1)
    assert replies == [{"revoked": {"ok": client.KEPT}}]
    app.control.broadcast("terminate", arguments={"task_id": "3", "signal": "KILL"})
    app.control.revoke_by_stamped_headers({"who": ["z"]})
    # Stamps may come again: they are kept only where a store is named.
    app.conf.celeriac_revoke_store = "broker"
    app.control.revoke_by_stamped_headers({"who": ["x"]})
    client.keep(app, "revoke_by_stamped_headers", {"headers": ["what=y", "nonsense"]})
    loaded = client_store(app)
    assert loaded == {"ids": ["1", "2", "3"], "headers": {"who": ["x"], "what": ["y"]}}


def client_store(app: Any) -> Any:
    from celeriac.host.revocations import Revocations

    return Revocations(app).load()


def test_a_revoke_that_a_node_has_heard_shows_its_reply(app, make_node):
    make_node("one@h").reply = {"ok": "tasks {'1'} flagged as revoked"}
    replies = app.control.revoke("1", reply=True, timeout=DEADLINE)
    assert replies == [{"one@h": {"ok": "tasks {'1'} flagged as revoked"}}]
    assert client_store(app)["ids"] == ["1"]


def test_what_is_for_some_nodes_is_not_kept(app):
    assert app.control.revoke("1", reply=True, timeout=0.1, destination=["one@h"]) == []
    assert app.control.ping(timeout=0.1) == []
    assert client_store(app)["ids"] == []


def test_a_revoke_that_cannot_be_kept_is_sent_all_the_same(app, make_node, capsys):
    app.conf.celeriac_revoke_store = "redis://127.0.0.1:1/0"
    make_node("one@h")
    replies = app.control.revoke("1", reply=True, timeout=DEADLINE)
    assert replies == [{"one@h": {"ok": "pong"}}]
    assert "Workers that start later will not know of this" in capsys.readouterr().err
