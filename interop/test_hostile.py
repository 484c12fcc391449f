"""Messages that nobody in their right mind sends: none stops the worker, none stays behind."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from harness.queues import SqliteQueues, envelope, protocol_1, protocol_2, queues_of, to_bytes
from harness.target import Target

TIMEOUT = 30
DEPTH = 100_000
HUGE = 100 << 20

#: What no header, property or member should be, or should be of another one's kind.
VALUES = [
    {"__type__": "datetime", "__value__": "never"},
    {"__type__": "nonsense", "__value__": 1},
    None,
    True,
    False,
    0,
    -1,
    7,
    1 << 70,
    -(1 << 70),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "text",
    "\0",
    "\ud800",
    "%s %(id)s {0} \x1b[31m\n\r",
    "x" * 100_000,
    [],
    [None, None],
    ["a", "b"],
    [[], {}],
    [float("nan"), -1],
    {},
    {"a": {"b": [1]}},
]

HEADERS = (
    "lang task id shadow eta expires group group_index retries timelimit root_id parent_id "
    "argsrepr kwargsrepr origin ignore_result replaced_task_nesting stamped_headers stamps "
    "compression headers meth redelivered celery_beat_task x-death tenant args kwargs hostname "
    "delivery_info properties reply_to correlation_id is_eager called_directly callbacks errbacks "
    "chain chord loglevel logfile utc taskset"
).split()

PROPERTIES = (
    "correlation_id reply_to delivery_mode delivery_info priority body_encoding delivery_tag "
    "expiration content_type content_encoding headers message_id timestamp type user_id app_id"
).split()

DELIVERY_INFO = "exchange routing_key priority redelivered other".split()

MEMBERS = "body content-type content-encoding headers properties redelivered other".split()

PROTOCOL_1 = (
    "task id args kwargs group group_index retries eta expires utc callbacks errbacks timelimit "
    "taskset chord headers shadow root_id other"
).split()


def nested(opening: bytes, inside: bytes, closing: bytes) -> bytes:
    return opening * DEPTH + inside + closing * DEPTH


def raw_messages() -> dict[str, bytes]:
    choose = random.Random(7)
    whole = to_bytes(protocol_2("basic.nothing"))
    return {
        "empty": b"",
        "a NUL": b"\0",
        "NULs": b"\0" * 1000,
        "no UTF-8": b"\xff\xfe\xfd",
        "a cut character": whole[:-1] + b"\xc3",
        **{f"random {length}": choose.randbytes(length) for length in (1, 10, 1000, 100_000)},
        **{f"scalar {text}": text.encode() for text in ("null", "5", "NaN", "[]", "{}", '"text"')},
        "spaces": b" " * 1000,
        "a cut envelope": whole[: len(whole) // 2],
        "an envelope and more": whole + b" more",
        "two envelopes": whole + whole,
        "UTF-16": whole.decode().encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + whole,
        "a NUL behind": whole + b"\0",
        "deep lists": nested(b"[", b"", b"]"),
        "deep lists without an end": b"[" * DEPTH,
        "deep objects": nested(b'{"a":', b"1", b"}"),
        "a long number": b"9" * 100_000,
        "an envelope twice wrapped": json.dumps(whole.decode()).encode(),
        "every member twice": whole[:-1] + b", " + whole[1:],
    }


def test_bytes_that_are_no_message(target):
    begun = target()
    for what, payload in raw_messages().items():
        begun.put(payload)
        begun.assert_well(what)
    for seed in range(100):
        choose = random.Random(seed)
        damaged = bytearray(to_bytes(protocol_2("basic.nothing")))
        for _ in range(choose.choice([1, 1, 3, 20])):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        begun.put(bytes(damaged))
    begun.assert_works("damaged envelopes")
    begun.stop()


def test_rows_that_are_no_text(sqlite_place, start, client):
    app = client(sqlite_place)
    app.add.delay(1, 1)
    queues = queues_of(sqlite_place.broker)
    assert isinstance(queues, SqliteQueues)
    worker = start(sqlite_place, "-c", "1")
    begun = Target(worker, queues, app, worker.host("main"), set())
    begun.assert_works("the start")
    for payload in (b"", b"\xff\xfe", to_bytes(protocol_2("basic.nothing"))):
        queues.put_blob(payload)
        begun.assert_works(payload)
    begun.stop()


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_any_type(target, name):
    begun = target()
    for value in VALUES:
        begun.put(protocol_2("basic.echo", **{name: value}))
        begun.assert_well({name: value})
    begun.stop()


def test_headers_that_are_missing(target):
    begun = target()
    for name in protocol_2("basic.nothing")["headers"]:
        message = protocol_2("basic.nothing")
        del message["headers"][name]
        begun.put(message)
        begun.assert_well(f"no {name}")
    begun.put(envelope("[[], {}, {}]", {"task": "basic.nothing"}))
    begun.assert_well("nothing but the task")
    begun.stop()


def test_a_message_without_an_id_is_told_and_gone(target):
    begun = target()
    message = protocol_2("basic.nothing")
    del message["headers"]["id"]
    begun.put(message)
    begun.assert_well("no id")
    assert begun.worker.log.count("Received invalid task message: the message has no task id") == 1
    begun.stop()


def test_properties_and_members_of_any_type(target):
    begun = target()
    for name in PROPERTIES:
        for value in VALUES:
            begun.put(
                protocol_2("basic.echo")
                | envelope("[[], {}, {}]", protocol_2("basic.echo")["headers"], {name: value})
            )
            begun.assert_well({"property": name, "value": value})
    for name in DELIVERY_INFO:
        for value in VALUES:
            message = protocol_2("basic.echo")
            message["properties"]["delivery_info"][name] = value
            begun.put(message)
            begun.assert_well({"delivery_info": name, "value": value})
    for name in MEMBERS:
        for value in VALUES:
            begun.put({**protocol_2("basic.echo"), name: value})
            begun.assert_well({"member": name, "value": value})
    for name in ("body_encoding", "delivery_tag", "delivery_info"):
        message = protocol_2("basic.echo")
        del message["properties"][name]
        begun.put(message)
        begun.assert_well(f"no {name}")
    for name in MEMBERS[:5]:
        message = protocol_2("basic.echo")
        del message[name]
        begun.put(message)
        begun.assert_well(f"no {name}")
    begun.stop()


def test_members_of_protocol_1_of_any_type(target):
    begun = target()
    for name in PROTOCOL_1:
        for value in VALUES:
            begun.put(protocol_1(**{name: value}))
            begun.assert_well({"protocol 1": name, "value": value})
    begun.stop()


def test_bodies_of_any_shape(target):
    begun = target()
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    # Celery takes a text for a list of the names of callbacks, and sends a message for each.
    embedded = [value for value in VALUES if not isinstance(value, str) or len(value) < 100]
    bodies: list[Any] = [
        *VALUES,
        *([value, {}, embed] for value in VALUES),
        *([[], value, embed] for value in VALUES),
        *([[], {}, value] for value in VALUES),
        *([[], {}, {**embed, name: value}] for name in embed for value in embedded),
        *([[], {}, {**embed, name: [value]}] for name in embed for value in embedded),
        [[], {}],
        [[], {}, {}, {}],
        {"args": [], "kwargs": {}},
        {"args": 5, "kwargs": "text", "retries": "many", "eta": {}},
    ]
    for body in bodies:
        begun.put(protocol_2("basic.echo", json.dumps(body)))
        begun.put(protocol_2("basic.fail", json.dumps(body)))
        begun.assert_well(body)
    for text in ("", "{", "[[], {}", "no json", "\0", "\xff", "[[],{},{}] more"):
        begun.put(protocol_2("basic.echo", text.encode("latin-1")))
        begun.assert_well(text)
        begun.put(envelope(text.encode("latin-1")))
        begun.assert_well(f"protocol 1: {text}")
    begun.stop()
