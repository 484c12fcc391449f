"""Frames on a stream."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator

import pytest

from celeriac.host.wire import Channel, Closed, Unreadable


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        yield Channel(ours), theirs


def test_a_frame_is_two_lengths_a_text_and_bytes(pair):
    channel, other = pair
    channel.write({"ok": 1}, b"\x00\xff")
    assert other.recv(100) == struct.pack(">II", 9, 2) + b'{"ok": 1}\x00\xff'


def test_a_frame_comes_back_as_it_was_written(pair):
    channel, other = pair
    message, blob = {"text": "zwölf \U0001f40b"}, bytes(range(256))
    Channel(other).write(message, blob)
    Channel(other).write({})
    assert channel.read() == (message, blob)
    assert channel.read() == ({}, b"")


def test_a_frame_that_comes_in_pieces_is_put_together(pair):
    channel, other = pair
    for byte in struct.pack(">II", 2, 3) + b"{}abc":
        other.sendall(bytes([byte]))
    assert channel.read() == ({}, b"abc")


def test_a_lone_surrogate_is_replaced_because_it_is_no_utf_8(pair):
    channel, other = pair
    channel.write({"path": "na\udcefve"})
    assert json.loads(other.recv(100)[8:].decode()) == {"path": "na?ve"}


def test_what_json_does_not_have_is_written_as_its_repr(pair):
    channel, other = pair
    channel.write({"value": {1}})
    assert json.loads(other.recv(100)[8:]) == {"value": "{1}"}


@pytest.mark.parametrize("sent", [b"", b"\0\0", struct.pack(">II", 5, 0) + b"{}"])
def test_the_end_within_a_frame_is_the_end(pair, sent):
    channel, other = pair
    other.sendall(sent)
    other.close()
    with pytest.raises(Closed):
        channel.read()


def test_writing_to_nobody_is_the_end(pair):
    channel, other = pair
    other.close()
    with pytest.raises(Closed):
        channel.write({})


@pytest.mark.parametrize("text", [b"[" * 40_000, b"{", b"\xff\xfe"])
def test_a_text_that_cannot_be_read_leaves_the_next_frame_readable(pair, text):
    channel, other = pair
    other.sendall(struct.pack(">II", len(text), 3) + text + b"abc")
    Channel(other).write({"next": 1})
    with pytest.raises(Unreadable) as caught:
        channel.read()
    assert caught.value.text == text
    assert channel.read() == ({"next": 1}, b"")
