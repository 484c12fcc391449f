"""What celeriac's client sends is what Celery sends for the same call."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.canvas import Signature, chunks, xmap, xstarmap

from harness.rust_client import RustClient, program

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Members that differ by who sends, and when.
OWN = ("origin", "reply_to", "delivery_tag", "argsrepr", "kwargsrepr", "body")
#: How many canvases are made up.
MADE_UP = 400


def task(name: str, *args: Any, immutable: bool = False, **options: Any) -> dict[str, Any]:
    return {
        "task": f"proj.{name}",
        "args": list(args),
        "kwargs": {},
        "options": options,
        "subtask_type": None,
        "immutable": immutable,
    }


def built(canvas: Any) -> Any:
    """The canvas that is described, of Celery's."""
    if len(canvas) != 1:
        signature = Signature.from_dict(json.loads(json.dumps(canvas)))
        signature.args = tuple(signature.args)
        return signature
    [(kind, parts)] = canvas.items()
    if kind == "chain":
        return chain([built(part) for part in parts])
    if kind == "group":
        return group([built(part) for part in parts])
    if kind == "chord":
        return chord([built(part) for part in parts[0]], built(parts[1]))
    if kind == "chunks":
        return chunks(built(parts[0]), parts[1], parts[2])
    return {"map": xmap, "starmap": xstarmap}[kind](built(parts[0]), parts[1])


class Both:
    """Celery's client and celeriac's, and the Redis that they send to."""

    def __init__(self, broker: str, backend: str) -> None:
        self.redis = redis.Redis.from_url(broker)
        self.results = redis.Redis.from_url(backend) if backend.startswith("redis") else None
        self.celery = Celery("proj", broker=broker, backend=backend, set_as_current=True)
        self.celery.conf.task_routes = {"proj.routed": {"queue": "other", "priority": 4}}
        self.rust = RustClient(
            program(),
            broker_url=broker,
            result_backend=backend,
            task_routes={"proj.routed": {"queue": "other", "priority": 4}},
        )

    def by_celery(self, canvas: Any, args: list[Any], options: dict[str, Any]) -> Any:
        self.clear()
        try:
            result = built(canvas).apply_async(tuple(args), **options)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return self.sent(json.loads(json.dumps(result.as_tuple())))

    def by_celeriac(self, canvas: Any, args: list[Any], options: dict[str, Any]) -> Any:
        self.clear()
        answer = self.rust.call(canvas, args, wait=None, **options)
        return self.sent(answer["result"]) if "result" in answer else str(answer["error"])

    def clear(self) -> None:
        self.redis.flushdb()
        if self.results:
            self.results.flushdb()

    def sent(self, result: Any) -> Any:
        queues = {}
        for key in sorted(self.redis.keys("*")):
            if self.redis.type(key) == b"list":
                messages = reversed(self.redis.lrange(key, 0, -1))
                queues[key.decode()] = [opened(json.loads(message)) for message in messages]
        sizes = []
        if self.results:
            sizes = sorted(self.results.get(key) for key in self.results.keys("*.s"))
        text = json.dumps([queues, tree(result)], sort_keys=True)
        numbers: dict[str, str] = {}
        text = UUID.sub(lambda id: numbers.setdefault(id[0], f"id {len(numbers)}"), text)
        return json.loads(text), sizes


def opened(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs by who sends it."""
    body = json.loads(base64.b64decode(message["body"]))
    found: dict[str, Any] = comparable({**message, "opened": body})
    if found["headers"]["task"] == "celery.chord_unlock":
        # It begins a second later, and what all began with is told to it here.
        found["headers"]["eta"] = found["headers"]["root_id"] = None
        kwargs = found["opened"][1]
        kwargs["result"] = [tree(one) for one in kwargs["result"]]
    if found["headers"]["task"].startswith("celery."):
        # Celery knows these tasks as its own: false is as good as nothing there.
        found["headers"]["ignore_result"] = found["headers"]["ignore_result"] or None
    else:
        found["argsrepr"] = message["headers"]["argsrepr"]
    return found


def tree(result: Any) -> Any:
    """A result as a tuple, without the ids of groups: Celery freezes the header of a chord within a
    group twice, and the tree names a group that is never sent then."""
    (id, parent), members = result
    if parent is not None:
        parent = tree(parent)
    if members is None:
        return [[id, parent], None]
    return [["group", parent], [tree(member) for member in members]]


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        members = {name: comparable(one) for name, one in value.items() if name not in OWN}
        if isinstance(members.get("options"), dict):
            # An option that is null is none.
            options = members["options"].items()
            members["options"] = {name: one for name, one in options if one is not None}
        return members
    if isinstance(value, list):
        return [comparable(one) for one in value]
    return value


@pytest.fixture(scope="module", params=["counted", "unlocked"])
def both(
    request: pytest.FixtureRequest,
    redis_server: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Both]:
    """With a result backend that counts the parts of chords, and with one that does not."""
    backend = redis_server.url(redis_server.database())
    if request.param == "unlocked":
        backend = f"db+sqlite:///{tmp_path_factory.mktemp('results')}/results.db"
    both = Both(redis_server.url(redis_server.database()), backend)
    with both.rust:
        yield both


A, B, C = task("a", 1), task("b", 2), task("c")

CANVASES = [
    task("add", 2, 3),
    {**task("add", 2), "kwargs": {"y": "é", "x": [1.5, None, True]}},
    task("routed", 1),
    task("add", 1, queue="q", priority=7, shadow="sh", headers={"my": "hdr"}, time_limit=9),
    task("add", 1, link=[A, B], link_error=C),
    {"chain": [A, B, C]},
    {"chain": [{"chain": [A, B]}, {"chain": [B, C]}]},
    {"group": [A, B, C]},
    {"group": [A]},
    {"group": []},
    {"group": [{"group": [A, B]}, C]},
    {"chord": [[A, B], C]},
    {"chord": [[A, B], {"chain": [B, C]}]},
    {"chord": [[], C]},
    {"chain": [A, {"group": [B, B]}, C]},
    {"chain": [{"group": [A, B]}, C, {"group": [A, B]}]},
    {"chain": [{"group": [A, B]}, {"group": [A, B]}, C]},
    {"chain": [{"chord": [[A, B], C]}, {"chord": [[B, B], C]}, A]},
    {"group": [{"chain": [A, B]}, {"chord": [[A, B], C]}]},
    {"chord": [[{"chain": [A, B]}, {"group": [A, B, C]}, {"chord": [[A, B], C]}], C]},
    {"chain": [A, {"group": [B]}, C]},
    {"map": [A, [1, 2]]},
    {"starmap": [task("add"), [[1, 2], [3, 4]]]},
    {"chunks": [task("add"), [[1, 2], [3, 4], [5, 6]], 2]},
    {"chain": [A, {"map": [B, [1, 2]]}]},
]


@pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: json.dumps(canvas)[:60])
def test_a_canvas_is_sent_as_celery_sends_it(both: Both, canvas: Any) -> None:
    assert_same(both, canvas, [], {})


@pytest.mark.parametrize(
    "options",
    [
        {"queue": "q", "priority": 3},
        {"link": [task("linked")], "link_error": [task("failed")]},
        {"task_id": "0e0a6b1c-5c51-4b8c-9d3b-16a40a2d8d67"},
        {"root_id": "0e0a6b1c-5c51-4b8c-9d3b-16a40a2d8d67", "retries": 2},
        {"eta": "2030-01-02T03:04:05+00:00"},
        {"stamped_headers": ["s"], "s": "stamp"},
        {"ignore_result": True, "soft_time_limit": 3, "time_limit": 4},
    ],
    ids=lambda options: ",".join(options),
)
@pytest.mark.parametrize(
    "canvas", [A, {"chain": [A, B]}, {"chord": [[A, B], C]}, {"chain": [{"group": [A, B]}, C]}]
)
def test_options_go_where_celery_puts_them(
    both: Both, canvas: Any, options: dict[str, Any]
) -> None:
    assert_same(both, canvas, [7], options)


def made_up(random: random.Random, depth: int = 3) -> Any:
    """Any canvas."""
    kinds = ["task"] * 3 + (["chain", "group", "chord"] if depth else [])
    kind = random.choice(kinds)
    if kind == "task":
        name = random.choice("abcdef")
        made = task(name, random.randrange(9), immutable=random.random() < 0.2)
        if random.random() < 0.2:
            made["options"]["link"] = [task("linked")]
        if random.random() < 0.2:
            made["options"]["link_error"] = [task("failed", immutable=True)]
        if random.random() < 0.1:
            made["options"]["priority"] = 3
        return made
    parts = [made_up(random, depth - 1) for _ in range(random.randint(1, 3))]
    if kind == "chord":
        return {"chord": [parts, made_up(random, depth - 1)]}
    return {kind: parts}


def test_any_canvas_is_sent_as_celery_sends_it(both: Both) -> None:
    for seed in range(MADE_UP):
        source = random.Random(seed)
        canvas = made_up(source)
        args = source.choice([[], [], [11]])
        assert_same(both, canvas, args, {})


def assert_same(both: Both, canvas: Any, args: list[Any], options: dict[str, Any]) -> None:
    theirs = both.by_celery(canvas, args, options)
    ours = both.by_celeriac(canvas, args, options)
    if isinstance(theirs, str):
        # What Celery fails at is an error here too.
        assert isinstance(ours, str), (canvas, theirs)
        return
    assert ours == theirs, f"{json.dumps(canvas)}\n" + "\n".join(differences(ours, theirs))


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two structures are not the same."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [
            line
            for name in names
            for line in differences(
                ours.get(name, "nothing"), theirs.get(name, "nothing"), f"{path}.{name}"
            )
        ]
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) == len(theirs):
            pairs = enumerate(zip(ours, theirs))
            return [
                line
                for index, (our, their) in pairs
                for line in differences(our, their, f"{path}[{index}]")
            ]
    return [] if ours == theirs else [f"{path}: {ours!r:.300} is not {theirs!r:.300}"]
