"""Bodies and headers that are too large, too deep, dangerous, or not what they say they are."""

from __future__ import annotations

import base64
import bz2
import json
import os
import pickle
import zlib
from typing import Any

import pytest

from harness import processes
from harness.queues import envelope, protocol_1, protocol_2, to_bytes
from harness.target import TIMEOUT
from harness.wait import wait_until

DEPTH = 100_000
HUGE = 100 << 20


def nested(opening: bytes, inside: bytes, closing: bytes) -> bytes:
    return opening * DEPTH + inside + closing * DEPTH


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
        for content_type in (
            PICKLE,
            "pickle",
            PICKLE.upper(),
            "application/json",
            "application/data",
            "text/plain",
            None,
            "",
            "application/x-yaml",
        ):
            for encoding in ("binary", "utf-8", None):
                kinds = {"content-type": content_type, "content-encoding": encoding}
                begun.put({**protocol_2("basic.echo", body), **kinds})
                begun.put({**envelope(body), **kinds})
        for name, data in (
            ("application/x-gzip", zlib.compress(body)),
            ("application/x-bz2", bz2.compress(body)),
        ):
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
    names = [
        "no.such.task",
        "",
        ".",
        "basic",
        "basic.",
        "basic.app",
        "x" * 100_000,
        "a\nb",
        "celery",
    ]
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
    for compression in (
        "application/x-gzip",
        "application/x-bz2",
        "application/x-lzma",
        "application/x-brotli",
        "application/zstd",
        "nonsense",
        "gzip",
        "identity",
    ):
        for data in (body, zlib.compress(body)[:-5], b""):
            begun.put(protocol_2("basic.echo", data, compression=compression))
            begun.put(envelope(data, {"compression": compression}))
            begun.assert_well(f"compression {compression}")
    for encoding in (
        "utf-16",
        "ascii",
        "binary",
        "nonsense",
        "us-ascii",
        "hex",
        "zip",
        "rot13",
        "idna",
        "unicode_escape",
        "\0",
    ):
        begun.put(
            protocol_2("basic.echo", '[["zwölf"], {}, {}]'.encode())
            | {"content-encoding": encoding}
        )
        begun.put({**protocol_1(args=["zwölf"]), "content-encoding": encoding})
        begun.assert_well(f"encoding {encoding}")
    for content_type in (
        "text/plain",
        "application/data",
        "application/x-msgpack",
        "nonsense",
        "json",
        "application/json; charset=utf-8",
        "\0",
        "a" * 100_000,
    ):
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


def test_an_eta_at_the_end_of_time_waits_in_the_store(place, target):
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
    # They are in the delay store.
    assert (begun.queues.held(), begun.queues.waiting()) == (2, 0)


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
