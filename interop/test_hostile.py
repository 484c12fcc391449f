"""Messages that nobody in their right mind sends: none stops the worker, none stays behind."""

from __future__ import annotations

import base64
import bz2
import json
import os
import pickle
import random
import uuid
import zlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from harness import processes
from harness.queues import Queues, SqliteQueues, envelope, protocol_2, queues_of, to_bytes
from harness.wait import wait_until
from harness.workers import Worker

TIMEOUT = 30
DEPTH = 100_000
HUGE = 100 << 20

#: What no header, property or member should be, or should be of another one's kind.
VALUES = [
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
    {"__type__": "datetime", "__value__": "never"},
    {"__type__": "nonsense", "__value__": 1},
]

HEADERS = (
    "lang task id shadow eta expires group group_index retries timelimit root_id parent_id argsrepr "
    "kwargsrepr origin ignore_result replaced_task_nesting stamped_headers stamps compression "
    "headers meth redelivered celery_beat_task x-death tenant args kwargs hostname delivery_info "
    "properties reply_to correlation_id is_eager called_directly callbacks errbacks chain chord "
    "loglevel logfile utc taskset"
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


@dataclass
class Target:
    """A worker, its broker, and a client that looks whether it still works."""

    worker: Worker
    queues: Queues
    app: ModuleType
    main: int
    children: set[int]

    def put(self, message: Any) -> None:
        self.queues.put(message if isinstance(message, bytes) else to_bytes(message))

    def assert_well(self, what: object) -> None:
        """It still runs a normal task, in the same processes, and has nothing left."""
        self.assert_works(what)
        for pid in self.children:
            assert processes.is_running(pid), f"lost a process by {what!r:.300}"

    def assert_works(self, what: object) -> None:
        def context() -> str:
            return f"after {what!r:.300}\n{self.worker.log[-3000:]}"

        result = self.app.add.delay(20, 22)
        wait_until(result.ready, "a normal task runs", TIMEOUT, context)
        assert result.get() == 42
        wait_until(
            lambda: not (self.queues.waiting() or self.queues.held()),
            "nothing is left in the broker",
            TIMEOUT,
            context,
        )
        assert self.worker.process.poll() is None, context()
        assert processes.is_running(self.main), context()

    def stop(self) -> None:
        assert self.worker.stop() == 0
        assert "panicked" not in self.worker.log


@pytest.fixture
def target(place, start, client):
    def begin(*arguments: str, **settings: Any) -> Target:
        place.settings = {"broker_connection_retry_on_startup": True, **settings}
        app = client(place)
        # The broker's tables are those that kombu makes.
        app.add.delay(1, 1)
        worker = start(place, "-c", "1", *arguments)
        queues = queues_of(place.broker)
        wait_until(lambda: len(worker.children()) == 1, "the child runs")
        begun = Target(worker, queues, app, worker.host("main"), set(worker.children()))
        begun.assert_well("the start")
        return begun

    return begin


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
            begun.put(protocol_2("basic.echo") | envelope("[[], {}, {}]", protocol_2("basic.echo")["headers"], {name: value}))
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


def protocol_1(**members: Any) -> dict[str, Any]:
    own = {
        "task": "basic.echo",
        "id": str(uuid.uuid4()),
        "args": [],
        "kwargs": {},
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "utc": True,
        "callbacks": None,
        "errbacks": None,
        "timelimit": [None, None],
        "taskset": None,
        "chord": None,
    }
    return envelope(json.dumps({**own, **members}))


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


def test_a_hundred_mebibytes(target):
    begun = target()
    noise = os.urandom(1 << 20) * (HUGE >> 20)
    begun.put(protocol_2("basic.nothing", noise))
    begun.assert_well("100 MiB of noise as body")
    begun.put(protocol_2("basic.ignored", json.dumps([["x" * HUGE], {}, {}])))
    begun.assert_well("100 MiB in an argument")
    begun.put(noise)
    begun.assert_well("100 MiB of noise as message")
    begun.put(envelope(noise))
    begun.assert_well("100 MiB of noise as protocol 1")
    begun.stop()


def test_large_headers(target):
    begun = target()
    for name in ("task", "id", "argsrepr", "shadow", "tenant", "eta", "stamps"):
        begun.put(protocol_2("basic.nothing", **{name: "x" * (10 << 20)}))
        begun.assert_well(f"10 MiB of {name}")
    begun.put(protocol_2("basic.nothing", **{f"header-{n}": n for n in range(100_000)}))
    begun.assert_well("100,000 headers")
    begun.stop()


def test_deep_json(target):
    begun = target()
    for opening, inside, closing in ((b"[", b"", b"]"), (b'{"a":', b"1", b"}")):
        deep = nested(opening, inside, closing)
        begun.put(protocol_2("basic.echo", b"[[" + deep + b"], {}, {}]"))
        begun.assert_well("deep arguments")
        begun.put(protocol_2("basic.echo", b'[[], {"a": ' + deep + b"}, {}]"))
        begun.assert_well("deep keyword arguments")
        begun.put(protocol_2("basic.echo", b'[[], {}, {"chain": ' + deep + b"}]"))
        begun.assert_well("a deep chain")
        begun.put(envelope(b'{"task": "basic.echo", "id": "1", "args": ' + deep + b"}"))
        begun.assert_well("deep arguments of protocol 1")
        begun.put(envelope(b'{"task": ' + deep + b"}"))
        begun.assert_well("a deep name of protocol 1")
        for name in ("tenant", "id", "eta", "stamps", "timelimit", "group", "task"):
            mark = "mark-7c1f"
            text = to_bytes(protocol_2("basic.echo", **{name: mark}))
            begun.put(text.replace(b'"' + mark.encode() + b'"', deep))
            begun.assert_well(f"a deep {name}")
        for name in ("headers", "properties", "body", "content-type"):
            text = to_bytes({**protocol_2("basic.echo"), name: "mark-7c1f"})
            begun.put(text.replace(b'"mark-7c1f"', deep))
            begun.assert_well(f"deep {name}")
    begun.stop()


class Command:
    """Unpickling it runs a command."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def test_pickle_that_is_not_accepted_runs_nothing(place, target):
    begun = target()
    file = place.file("pickled")
    poison = pickle.dumps([[Command(file)], {}, {}])
    mapping = pickle.dumps({"task": "basic.add", "id": "1", "args": Command(file), "kwargs": {}})
    PICKLE = "application/x-python-serialize"
    for body in (poison, mapping):
        for content_type in (PICKLE, "pickle", PICKLE.upper(), "application/json", "application/data", "text/plain", None, "", "application/x-yaml"):
            for encoding in ("binary", "utf-8", None):
                kinds = {"content-type": content_type, "content-encoding": encoding}
                begun.put({**protocol_2("basic.echo", body), **kinds})
                begun.put({**envelope(body), **kinds})
        for name, data in (("application/x-gzip", zlib.compress(body)), ("application/x-bz2", bz2.compress(body))):
            kinds = {"content-type": PICKLE, "content-encoding": "binary"}
            begun.put({**protocol_2("basic.echo", data, compression=name), **kinds})
            begun.put({**envelope(data, {"compression": name}), **kinds})
        begun.assert_well("pickles")
    assert not os.path.exists(file), "the command ran"
    assert (
        "Refusing to deserialize untrusted content of type pickle (application/x-python-serialize)"
        in begun.worker.log
    )
    begun.stop()


def test_yaml_that_would_run_a_command_runs_nothing(place, target):
    begun = target(accept_content=["json", "yaml"])
    file = place.file("loaded")
    text = f"- - !!python/object/apply:os.system ['touch {file}']\n- {{}}\n- {{}}\n"
    kinds = {"content-type": "application/x-yaml"}
    begun.put({**protocol_2("basic.echo", text), **kinds})
    begun.put({**envelope(f"task: !!python/object/apply:os.system ['touch {file}']\n"), **kinds})
    begun.assert_well("YAML with a command")
    assert not os.path.exists(file), "the command ran"
    begun.stop()


def test_unknown_tasks(target):
    begun = target()
    names = ["no.such.task", "", ".", "basic", "basic.", "basic.app", "x" * 100_000, "a\nb", "celery"]
    for name in names:
        begun.put(protocol_2(name))
        begun.assert_well(f"task {name:.100}")
        begun.put(protocol_1(task=name))
        begun.assert_well(f"task {name:.100} of protocol 1")
    assert "Received unregistered task of type 'no.such.task'." in begun.worker.log
    begun.stop()


def test_wrong_compression_and_encoding(target):
    begun = target()
    body = b"[[], {}, {}]"
    for compression in ("application/x-gzip", "application/x-bz2", "application/x-lzma", "application/x-brotli", "application/zstd", "nonsense", "gzip", "identity"):
        for data in (body, zlib.compress(body)[:-5], b""):
            begun.put(protocol_2("basic.echo", data, compression=compression))
            begun.put(envelope(data, {"compression": compression}))
            begun.assert_well(f"compression {compression}")
    for encoding in ("utf-16", "ascii", "binary", "nonsense", "us-ascii", "hex", "zip", "rot13", "idna", "unicode_escape", "\0"):
        begun.put(protocol_2("basic.echo", "[[\"zwölf\"], {}, {}]".encode()) | {"content-encoding": encoding})
        begun.put({**protocol_1(args=["zwölf"]), "content-encoding": encoding})
        begun.assert_well(f"encoding {encoding}")
    for content_type in ("text/plain", "application/data", "application/x-msgpack", "nonsense", "json", "application/json; charset=utf-8", "\0", "a" * 100_000):
        begun.put(protocol_2("basic.echo") | {"content-type": content_type})
        begun.put({**protocol_1(), "content-type": content_type})
        begun.assert_well(f"content type {content_type:.100}")
    for encoding in ("nonsense", "hex", "utf-16", "base32"):
        message = protocol_2("basic.echo")
        message["properties"]["body_encoding"] = encoding
        begun.put(message)
        begun.assert_well(f"body encoding {encoding}")
    message = protocol_2("basic.echo")
    begun.put({**message, "body": "*** no base64 ***"})
    begun.put({**message, "body": base64.b64encode(b"[[], {}, {}]").decode()[:-1]})
    begun.assert_well("no base64")
    begun.stop()


def test_a_small_message_that_unpacks_to_a_large_one(target):
    begun = target()
    bomb = zlib.compress(b" " * HUGE, 9)
    begun.put(protocol_2("basic.echo", bomb, compression="application/x-gzip"))
    begun.assert_well("100 MiB unpacked")
    begun.put(envelope(bomb, {"compression": "application/x-gzip"}))
    begun.assert_well("100 MiB unpacked, protocol 1")
    begun.stop()


def test_an_eta_at_the_end_of_time_waits_and_is_given_back(place, target):
    begun = target()
    begun.put(protocol_2("basic.echo", eta="9999-12-31T23:59:59.999999+00:00"))
    wait_until(
        lambda: begun.queues.held() == 1, "it is held", TIMEOUT, lambda: begun.worker.log[-3000:]
    )
    assert begun.app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    begun.put(protocol_2("basic.echo", eta="9999-12-31T23:59:59-23:59"))
    assert begun.app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    assert processes.is_running(begun.main)
    begun.stop()
    assert begun.queues.held() == 0
    assert begun.queues.waiting() >= 1


def test_the_same_tag_and_id_many_times(target):
    begun = target()
    message = protocol_2("basic.echo")
    for _ in range(200):
        begun.put(message)
    begun.assert_well("200 copies of a message")
    assert begun.worker.log.count(f"[{message['headers']['id']}] succeeded") == 200
    begun.stop()


@pytest.mark.parametrize("size", [30_000, 60_000, 125_000, 150_000, 205_000, 300_000, 2_000_000])
def test_a_long_header_reaches_its_task(target, size):
    begun = target()
    sent = begun.app.about.apply_async(headers={"tenant": "x" * size})
    wait_until(sent.ready, "it ran", TIMEOUT, lambda: begun.worker.log[-2000:])
    assert len(sent.get()["headers"]["tenant"]) == size
    begun.assert_well(f"a header of {size}")
    begun.stop()
