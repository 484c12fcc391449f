"""The body of a message, opened as Celery opens it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2
from kombu.compression import compress
from kombu.message import Message
from kombu.serialization import dumps

from celeriac.host.body import Decoder, Invalid, Undecodable

ARGUMENTS = [[1, "zwölf"], {"key": None}, {"callbacks": None, "chord": None}]


def request(content_type: str, encoding: str, **members: Any) -> dict[str, Any]:
    return {"task": "t", "id": "1", "celeriac": [content_type, encoding], **members}


@pytest.mark.parametrize("serializer", ["json", "yaml", "pickle"])
@pytest.mark.parametrize("compression", [None, "gzip", "bzip2"])
def test_every_serializer_and_compression_is_opened(app, serializer, compression):
    content_type, encoding, text = dumps(ARGUMENTS, serializer=serializer)
    raw = text.encode() if isinstance(text, str) else text
    members = {}
    if compression:
        raw, members["compression"] = compress(raw, compression)
    opened = Decoder(app).decode(raw, request(content_type, encoding, **members))
    assert [dict(part) if isinstance(part, dict) else list(part) for part in opened] == ARGUMENTS


@pytest.mark.parametrize(
    "value", ['"\\u00e4"', '{"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}', "1e400"]
)
def test_json_is_read_as_kombu_reads_it(app, value):
    raw = f"[[{value}], {{}}, {{}}]".encode()
    from kombu.utils.json import loads

    assert Decoder(app).decode(raw, {"task": "t", "celeriac": None}) == loads(raw.decode())


def test_a_serializer_that_the_app_does_not_accept_stays_closed(app):
    app.conf.accept_content = ["json"]
    content_type, encoding, raw = dumps(ARGUMENTS, serializer="pickle")
    with pytest.raises(Undecodable, match="untrusted content"):
        Decoder(app).decode(raw, request(content_type, encoding))


@pytest.mark.parametrize(
    "raw, members",
    [
        (b"{", {}),
        (b"\xff\xfe", {}),
        (b"[" * 100_000, {}),
        (b"[]", {"compression": "application/x-gzip"}),
        (b"[]", {"compression": "no such"}),
    ],
)
def test_what_cannot_be_read_is_undecodable(app, raw, members):
    with pytest.raises(Undecodable):
        Decoder(app).decode(raw, request("application/json", "utf-8", **members))


@pytest.mark.parametrize("raw", [b"[]", b"[1, 2, 3, 4]", b"1", b"null", b'"abc"'])
def test_what_is_no_triple_is_invalid(app, raw):
    with pytest.raises(Invalid):
        Decoder(app).decode(raw, request("application/json", "utf-8"))


@pytest.mark.parametrize("kwargs", [None, [], 1, "text"])
def test_keyword_arguments_are_a_mapping(app, kwargs):
    raw = json.dumps({"args": [], "kwargs": kwargs}).encode()
    with pytest.raises(Invalid, match="must be a mapping"):
        Decoder(app).decode(raw, {"celeriac": None})


PROTOCOL_1 = {
    "task": "t",
    "id": "1",
    "args": [1, 2],
    "kwargs": {"a": 3},
    "retries": 2,
    "eta": None,
    "taskset": "group-id",
    "callbacks": [{"task": "c"}],
    "timelimit": [3, None],
    "utc": True,
}


def test_a_body_of_protocol_1_makes_the_request_that_celery_makes(app):
    made: dict[str, Any] = {"celeriac": None}
    opened = Decoder(app).decode(json.dumps(PROTOCOL_1).encode(), made)
    message = Message(body="", headers={})
    expected, headers, _, _ = proto1_to_proto2(message, dict(PROTOCOL_1))
    assert opened == tuple(expected)
    assert made == headers
    assert made["group"] == "group-id"


def test_headers_of_protocol_2_count_over_a_body_of_protocol_1(app):
    headers = {"task": "t", "id": "2", "retries": 5, "lang": "py"}
    made = {**headers, "celeriac": None}
    opened = Decoder(app).decode(json.dumps(PROTOCOL_1).encode(), made)
    message = Message(body="", headers=headers)
    expected, celerys, _, _ = hybrid_to_proto2(message, dict(PROTOCOL_1))
    assert opened == tuple(expected)
    assert {name: made.get(name) for name in celerys} == celerys
    assert made["retries"] == 5 and made["timelimit"] == [3, None]
