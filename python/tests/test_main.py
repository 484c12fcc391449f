"""The calls that main answers."""

from __future__ import annotations

import json
import socket
import struct
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.host.main import Main
from celeriac.host.wire import Channel


class Parent:
    """The Rust parent's side of main's channel."""

    def __init__(self, app: Any) -> None:
        self._socket, mains = socket.socketpair()
        self._socket.settimeout(10)
        self._channel = Channel(self._socket)
        self._mains = mains
        self._frames = b""
        worker = SimpleNamespace(app=app, consumer=SimpleNamespace(), hostname="one@host")
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
