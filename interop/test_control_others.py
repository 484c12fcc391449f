"""Remote control for apps' own commands, for hostile messages, and from the command line."""

from __future__ import annotations

import base64
import json
import re
import signal
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import amqp
import pytest
from conftest import Place, place_on_redis
from kombu import Exchange, Queue

from harness import workers
from harness.control import TIMEOUT, ask, ask_until
from harness.queues import RedisQueues
from harness.wait import wait_until
from harness.workers import KIND, Worker

ONLY_OURS = pytest.mark.skipif(KIND == "celery", reason="Celery's worker does not")


@dataclass
class Asked:
    app: ModuleType
    worker: Worker
    place: Place

    def ask(self, command: str, **arguments: Any) -> Any:
        return ask(self.app.app, self.worker.node, command, **arguments)


@pytest.fixture(scope="module")
def asked(
    shared_place: Place,
    shared_start: Callable[..., Worker],
    shared_client: Callable[..., ModuleType],
) -> Asked:
    worker = shared_start(shared_place, "-c", "1", app="controlled")
    return Asked(shared_client(shared_place, "controlled"), worker, shared_place)


# -- Commands of the app -----------------------------------------------------------------------


def test_commands_of_the_app_run_in_its_process(asked):
    assert asked.ask("where", names=["x"]) == {
        "app": "controlled",
        "hostname": asked.worker.node,
        "names": ["x"],
        "tasks": True,
    }
    assert asked.ask("take_note", text="this", times=2) == {"ok": "this noted 2 times"}
    assert asked.place.lines("taken")[-2:] == ["this", "this"]


def test_a_command_of_the_app_runs_without_an_answer(asked):
    text = uuid.uuid4().hex
    asked.app.app.control.broadcast("take_note", arguments={"text": text})
    wait_until(lambda: text in asked.place.lines("taken"), "it ran")


def test_a_command_of_the_app_that_fails_is_an_answer(asked):
    assert asked.ask("breaks") == {"error": "LookupError('nothing there')"}
    assert asked.ask("ping") == {"ok": "pong"}


def test_a_command_of_the_app_is_told_of_other_workers(fanout_place, start, client):
    app = client(fanout_place, "controlled")
    one, two = (start(fanout_place, "-c", "1", app="controlled", alone=False) for _ in range(2))
    ask_until(app.app, one.node, "knows", lambda known: known == [two.node])
    assert two.stop() == 0
    ask_until(app.app, one.node, "knows", lambda known: known == [])


@ONLY_OURS
def test_a_slow_command_of_the_app_holds_up_nothing_else(asked):
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        slow = pool.submit(asked.ask, "doze", seconds=10)
        while not slow.done():
            assert asked.ask("ping") == {"ok": "pong"}
            assert asked.ask("active") == []
            assert "broker_url" in asked.ask("conf")
            assert asked.app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
            assert time.monotonic() < began + TIMEOUT
        assert slow.result() == {"ok": "awake"}


@ONLY_OURS
def test_a_command_of_the_app_that_goes_on_keeps_no_worker_from_its_end(redis_place, start, client):
    app = client(redis_place, "controlled")
    worker = start(redis_place, "-c", "1", app="controlled")
    ask(app.app, worker.node, "note_at_exit", text="left")
    app.app.control.broadcast("doze", arguments={"seconds": 3600, "text": "asleep"})
    wait_until(lambda: "asleep" in redis_place.lines("taken"), "it goes on", TIMEOUT)
    assert worker.stop() == 0
    assert redis_place.lines("taken") == ["asleep", "left"]
    assert "exit handlers take too long" not in worker.log


@ONLY_OURS
def test_a_queue_that_can_not_be_had_is_not_told_of(rabbit_place, start, client):
    app = client(rabbit_place, "controlled")
    with app.app.connection_for_write() as connection:
        taken = Queue("taken", Exchange("taken"), "taken", queue_arguments={"x-max-length": 5})
        taken(connection.default_channel).declare()
    worker = start(rabbit_place, "-c", "1", app="controlled")
    ask(app.app, worker.node, "add_consumer", queue="taken")
    worker.wait_for("Can't consume from taken")
    names = ["celery"]
    ask_until(
        app.app,
        worker.node,
        "active_queues",
        lambda told: [queue["name"] for queue in told] == names,
    )
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3


# -- What nobody should send -------------------------------------------------------------------


def envelope(body: Any, /, **members: Any) -> dict[str, Any]:
    """What kombu puts on a channel of Redis."""
    text = body if isinstance(body, str) else json.dumps(body)
    return {
        "body": base64.b64encode(text.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": 0},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
        **members,
    }


REPLY_TO = {"exchange": "reply.celery.pidbox", "routing_key": "nobody"}
#: Bodies of messages to the mailbox, as JSON or as they are.
BODIES: dict[str, Any] = {
    "no JSON": "{",
    "nothing": "",
    "null": "null",
    "a number": "17",
    "a list": [],
    "a text": '"ping"',
    "an empty object": {},
    "no method": {"arguments": {}},
    "a number as method": {"method": 17, "arguments": {}},
    "a list as method": {"method": ["ping"], "arguments": {}},
    "null as method": {"method": None, "arguments": None},
    "a list as arguments": {"method": "ping", "arguments": [1, 2]},
    "a text as arguments": {"method": "ping", "arguments": "what"},
    "a text as destination": {"method": "ping", "arguments": {}, "destination": "someone"},
    "a number as destination": {"method": "ping", "arguments": {}, "destination": 5},
    "a broken pattern": {"method": "ping", "arguments": {}, "pattern": "(", "matcher": "pcre"},
    "an unknown matcher": {"method": "ping", "arguments": {}, "pattern": "*", "matcher": "magic"},
    "numbers as pattern": {"method": "ping", "arguments": {}, "pattern": 1, "matcher": 2},
    "a text as reply_to": {"method": "ping", "arguments": {}, "reply_to": "me", "ticket": "x"},
    "an empty reply_to": {"method": "ping", "arguments": {}, "reply_to": {}, "ticket": "x"},
    "numbers in reply_to": {
        "method": "ping", "arguments": {}, "reply_to": {"exchange": 1, "routing_key": 2},
    },
    "no ticket": {"method": "ping", "arguments": {}, "reply_to": REPLY_TO},
    "a number as ticket": {"method": "ping", "arguments": {}, "reply_to": REPLY_TO, "ticket": 5},
    "ids that are none": {"method": "revoke", "arguments": {"task_id": [1, None, {}, ["x"]]}},
    "an object as id": {"method": "revoke", "arguments": {"task_id": {"a": 1}}},
    "a rate limit of lists": {
        "method": "rate_limit", "arguments": {"task_name": "controlled.add", "rate_limit": [1]},
    },
    "an endless pool": {"method": "pool_grow", "arguments": {"n": "1000000"}},
    "a negative pool": {"method": "pool_shrink", "arguments": {"n": "x"}},
    "a queue without a name": {"method": "add_consumer", "arguments": {"queue": {"x": 1}}},
    "a deep body": '{"method": "ping", "arguments": {"x": ' + "[" * 5000 + "]" * 5000 + "}}",
    "a large body": {"method": "no such method", "arguments": {"x": "y" * 5_000_000}},
}  # fmt: skip
#: Whole messages on a channel of Redis.
ENVELOPES: dict[str, Any] = {
    "no JSON": b"\x80\x02}q\x00.",
    "no text": b"\xff\xfe\xfd",
    "nothing": b"",
    "a list": b"[]",
    "a number": b"1",
    "no members": b"{}",
    "no properties": envelope({"method": "ping"}, properties=None),
    "no body": envelope({}, body=None),
    "no base64": envelope({}, body="%%%"),
    "an unknown content type": envelope({}, **{"content-type": "application/x-magic"}),
    "pickle": envelope({}, **{"content-type": "application/x-python-serialize"}),
    "no headers": envelope({"method": "ping", "arguments": {}}, headers=None),
    "a list as headers": envelope({"method": "ping", "arguments": {}}, headers=[]),
    "a text as clock": envelope({"method": "ping", "arguments": {}}, headers={"clock": "late"}),
    "a huge clock": envelope({"method": "ping", "arguments": {}}, headers={"clock": 10**30}),
}


def shout(place: Place, body: bytes, content_type: str = "application/json") -> None:
    """Puts a message into all mailboxes at a place."""
    if place.redis_database is not None:
        made = envelope({}, body=base64.b64encode(body).decode(), **{"content-type": content_type})
        publish(place, json.dumps(made).encode())
        return
    address, _, vhost = place.broker.rpartition("/")
    with amqp.Connection(address.rpartition("@")[2], virtual_host=vhost) as connection:
        message = amqp.Message(body, content_type=content_type, content_encoding="utf-8")
        connection.channel().basic_publish(message, exchange="celery.pidbox")


def publish(place: Place, message: bytes) -> None:
    RedisQueues(place.broker).client.publish(f"/{place.redis_database}.celery.pidbox", message)


def assert_well(asked: Asked) -> None:
    assert asked.ask("ping") == {"ok": "pong"}
    assert asked.app.add.delay(20, 22).get(timeout=TIMEOUT) == 42
    assert asked.worker.process.poll() is None


@pytest.fixture(scope="module")
def target(
    shared_place: Place,
    shared_start: Callable[..., Worker],
    shared_client: Callable[..., ModuleType],
) -> Asked:
    """A worker of its own."""
    place = Place(
        shared_place.broker,
        shared_place.backend,
        shared_place.folder,
        shared_place.redis_database,
        settings={"task_default_queue": "hostile"},
    )
    worker = shared_start(place, "-c", "1", app="controlled")
    return Asked(shared_client(place, "controlled"), worker, place)


def test_what_is_put_into_mailboxes_arrives(target):
    text = uuid.uuid4().hex
    shout(target.place, json.dumps({"method": "take_note", "arguments": {"text": text}}).encode())
    wait_until(lambda: text in target.place.lines("taken"), "it ran")


@ONLY_OURS
@pytest.mark.parametrize("what", BODIES)
def test_a_hostile_command_harms_nobody(target, what):
    body = BODIES[what]
    shout(target.place, (body if isinstance(body, str) else json.dumps(body)).encode())
    assert_well(target)


@ONLY_OURS
@pytest.mark.parametrize("what", ENVELOPES)
def test_a_hostile_message_on_a_channel_harms_nobody(target, what):
    if target.place.redis_database is None:
        for content_type in ("", "application/x-magic", "application/x-python-serialize"):
            shout(target.place, b"\xff{", content_type)
    else:
        message = ENVELOPES[what]
        publish(
            target.place, message if isinstance(message, bytes) else json.dumps(message).encode()
        )
    assert_well(target)


@ONLY_OURS
def test_answers_that_nobody_fetches_do_not_pile_up_in_redis(redis_place, start, client):
    """A client that is gone before the answer comes."""
    worker = start(redis_place, "-c", "1", app="controlled")
    asked = Asked(client(redis_place, "controlled"), worker, redis_place)
    redis = RedisQueues(redis_place.broker).client
    for number in range(20):
        key = f"gone-{number}"
        reply_to = {"exchange": "reply.celery.pidbox", "routing_key": key}
        # What a client declares before it asks.
        redis.sadd(
            "_kombu.binding.reply.celery.pidbox", f"{key}\x06\x16\x06\x16{key}.reply.celery.pidbox"
        )
        command = {"method": "ping", "arguments": {}, "ticket": "x", "reply_to": reply_to}
        shout(redis_place, json.dumps(command).encode())
    assert asked.ask("ping") == {"ok": "pong"}
    kept = [key for key in redis.scan_iter("*reply.celery.pidbox") if b"binding" not in key]
    assert len(kept) == 20
    lives = [redis.ttl(key) for key in kept]
    assert all(0 < life <= 3600 for life in lives), lives


def test_clients_leave_nothing_in_redis(redis_place, start, client):
    worker = start(redis_place, "-c", "1", app="controlled")
    asked = Asked(client(redis_place, "controlled"), worker, redis_place)
    redis = RedisQueues(redis_place.broker).client
    for _ in range(10):
        asked.ask("ping")
    left = [key for key in redis.scan_iter("*reply.celery.pidbox*") if redis.type(key) != b"set"]
    assert left == []


def test_an_app_with_pickle_controls_its_workers(fanout_place, start, client):
    """Its clients send commands as it sends its tasks."""
    fanout_place.settings = {"task_serializer": "pickle", "accept_content": ["pickle", "json"]}
    worker = start(fanout_place, "-c", "1", app="controlled", variables={"C_FORCE_ROOT": "true"})
    asked = Asked(client(fanout_place, "controlled"), worker, fanout_place)
    assert asked.ask("ping") == {"ok": "pong"}
    assert asked.ask("revoke", task_id=["one"]) == {"ok": "tasks {'one'} flagged as revoked"}
    assert asked.ask("where", names=("a", "b"))["names"] in (["a", "b"], ("a", "b"))
    assert asked.ask("revoked") == ["one"]
    assert asked.ask("no_such") == {"error": "KeyError('no_such')"}
    result = asked.app.sleep.delay(600)
    (told,) = ask_until(asked.app.app, worker.node, "active", lambda tasks: tasks)
    assert told["id"] == result.id
    # celeriac opens no pickle but where the task runs, and tells what the sender says it is.
    assert told["args"] in ((600,), [600]) if KIND == "celery" else told["args"] == "(600,)"
    asked.ask("revoke", task_id=result.id, terminate=True)


# -- Lasting revokes ---------------------------------------------------------------------------


def test_what_is_revoked_stays_so_over_a_restart(fanout_place, start, client, tmp_path):
    arguments = ("-c", "1", "--statedb", str(tmp_path / "state"), "-n", "keeper@host")
    worker = start(fanout_place, *arguments, app="controlled")
    app = client(fanout_place, "controlled")
    assert ask(app.app, "keeper@host", "revoke", task_id=["gone", "later"])
    assert worker.stop() == 0
    kept = start(fanout_place, *arguments, app="controlled")
    assert set(ask(app.app, "keeper@host", "revoked")) == {"gone", "later"}
    result = app.add.apply_async((1, 1), task_id="later")
    kept.wait_for("Discarding revoked task: controlled.add[later]")
    wait_until(lambda: result.state == "REVOKED", "its state says so", TIMEOUT)
    assert kept.stop() == 0


@ONLY_OURS
def test_what_is_revoked_while_all_workers_are_down_does_not_run(place, start, client):
    app = client(place, "controlled")
    result = app.add.apply_async((1, 1), task_id="gone")
    workers.run(KIND, "-A", "controlled", "control", "revoke", "gone", **place.variables())
    worker = start(place, "-c", "1", app="controlled")
    worker.wait_for("Discarding revoked task: controlled.add[gone]")
    wait_until(lambda: result.state == "REVOKED", "its state says so", TIMEOUT)
    assert app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
    assert worker.stop() == 0


@pytest.mark.parametrize(
    "kinds", [(KIND, KIND), (KIND, "celery"), ("celery", KIND)], ids=lambda kinds: "+".join(kinds)
)
def test_a_worker_that_comes_later_learns_what_is_revoked(fanout_place, start, client, kinds):
    options = {"app": "controlled", "alone": False, "loglevel": "DEBUG"}
    first = start(fanout_place, "-c", "1", kind=kinds[0], **options)
    app = client(fanout_place, "controlled")
    ask(app.app, first.node, "revoke", task_id=["one", "two"])
    second = start(fanout_place, "-c", "1", kind=kinds[1], **options)
    for line in ("mingle: searching for neighbors", "mingle: sync complete"):
        assert line in second.log
    assert set(ask(app.app, second.node, "revoked")) == {"one", "two"}
    assert f"sync with {second.node}" in first.log
    first.wait_for(f"{second.node} joined the party")


# -- The command line --------------------------------------------------------------------------


#: A command line and a worker that it is used on; Celery's own pair shows that the tests are right.
PAIRS = (
    [("celery", "celery")]
    if KIND == "celery"
    else [("celery", KIND), (KIND, "celery"), (KIND, KIND)]
)


@dataclass
class Line:
    """A command line for a worker."""

    kind: str
    asked: Asked

    def run(self, *words: str, status: int = 0, timeout: float = 60) -> str:
        variables: Any = self.asked.place.variables()
        done = workers.run(self.kind, "-A", "controlled", *words, timeout=timeout, **variables)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + (done.stderr if status else "")

    def json(self, *words: str) -> Any:
        """What a node answers, told as JSON."""
        node = self.asked.worker.node
        told = json.loads(self.run(*words, "--json", "-d", node, "--timeout", str(TIMEOUT)))
        if words[0] == "control":
            (told,) = told
        assert list(told) == [node]
        return told[node]


@pytest.fixture(scope="module")
def by_kind(
    shared_place: Place,
    shared_start: Callable[..., Worker],
    shared_client: Callable[..., ModuleType],
) -> Callable[[str], Asked]:
    app = shared_client(shared_place, "controlled")
    started: dict[str, Asked] = {}

    def give(kind: str) -> Asked:
        if kind not in started:
            worker = shared_start(shared_place, "-c", "1", app="controlled", kind=kind)
            started[kind] = Asked(app, worker, shared_place)
        return started[kind]

    return give


@pytest.mark.parametrize(("command", "kind"), PAIRS)
def test_the_command_line_asks_and_tells(by_kind, command, kind):
    line = Line(command, by_kind(kind))
    asked = line.asked
    assert line.json("inspect", "ping") == {"ok": "pong"}
    assert line.json("inspect", "active") == []
    assert line.json("inspect", "stats")["pid"] == asked.worker.pid
    assert [queue["name"] for queue in line.json("inspect", "active_queues")] == ["celery"]
    assert line.json("inspect", "registered", "max_retries")[0] == "controlled.add [max_retries=3]"
    assert line.json("inspect", "query_task", "one", "two") == {}
    assert "broker_url" in line.json("inspect", "conf")
    assert line.json("inspect", "where", "a", "b")["names"] == ["a", "b"]

    assert line.json("control", "rate_limit", "controlled.add", "10/s") == {
        "ok": "new rate limit set successfully"
    }
    assert line.json("control", "time_limit", "controlled.add", "1.5", "20") == {
        "ok": "time limits set successfully"
    }
    assert line.json("control", "revoke", "a-1") == {"ok": "tasks {'a-1'} flagged as revoked"}
    assert line.json("control", "terminate", "KILL", "a-2") == {"ok": "terminate: tasks unknown"}
    assert "a-1" in line.json("inspect", "revoked")
    assert line.json("control", "add_consumer", "cli") == {"ok": "add consumer cli"}
    assert line.json("control", "cancel_consumer", "cli") == {"ok": "no longer consuming from cli"}
    assert line.json("control", "enable_events")["ok"].startswith("task events")
    assert line.json("control", "take_note", "cli", "3") == {"ok": "cli noted 3 times"}


@pytest.mark.parametrize(("command", "kind"), PAIRS)
def test_the_command_line_tells_people(by_kind, command, kind):
    line = Line(command, by_kind(kind))
    node = line.asked.worker.node
    told = line.run("inspect", "ping", "-d", node, "-t", str(TIMEOUT))
    assert f"->  {node}: OK" in told and "pong" in told
    assert "1 node online." in told
    told = line.run("status", "-d", node, "-t", str(TIMEOUT))
    assert f"{node}: OK" in told
    told = line.run("inspect", "report", "-d", node, "-t", str(TIMEOUT))
    assert "software -> celery:" in told
    for listing, names in (
        (["inspect", "--list"], ("active_queues", "where", "query_task")),
        (["control", "--list"], ("rate_limit", "take_note", "pool_grow")),
    ):
        told = line.run(*listing)
        assert all(name in told for name in names), told


@pytest.mark.parametrize(("command", "kind"), PAIRS)
def test_the_command_line_says_that_nobody_answers(by_kind, command, kind):
    line = Line(command, by_kind(kind))
    for words in (["inspect", "ping"], ["status"], ["control", "pool_grow", "1"]):
        told = line.run(*words, "-d", "nobody@nowhere", "-t", "0.5", status=69)
        assert "No nodes replied within time constraint" in told
    assert "no_such" in line.run("inspect", "no_such", status=2)


@pytest.mark.parametrize(("command", "kind"), PAIRS)
def test_the_command_line_ends_a_worker(fanout_place, start, client, command, kind):
    worker = start(fanout_place, "-c", "1", app="controlled", kind=kind)
    line = Line(command, Asked(client(fanout_place, "controlled"), worker, fanout_place))
    line.run("control", "shutdown", "-d", worker.node, "-t", "0.5", status=69)
    assert worker.wait() == 0


@pytest.mark.skipif(KIND == "celery", reason="Celery's own command is no subject of these tests")
def test_messages_are_moved_to_another_broker(redis_server, redis_place, client, tmp_path):
    other = place_on_redis(redis_server, tmp_path)
    app = client(redis_place, "controlled")
    sent = [app.add.delay(number, 1).id for number in range(5)]
    # Without this Celery leaves them where they were as well.
    words = ("-A", "controlled", "migrate", "--ack-messages", redis_place.broker, other.broker)
    variables: Any = redis_place.variables()
    done = workers.run(KIND, *words, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert RedisQueues(redis_place.broker).waiting() == 0
    moved = [json.loads(item) for item in RedisQueues(other.broker).client.lrange("celery", 0, -1)]
    assert {message["headers"]["id"] for message in moved} == set(sent)


@pytest.mark.parametrize(("command", "kind"), PAIRS)
def test_events_are_dumped(fanout_place, start, client, tmp_path, command, kind):
    worker = start(fanout_place, "-c", "1", "-E", app="controlled", kind=kind)
    app = client(fanout_place, "controlled")
    words = [*workers.command(command), "-A", "controlled", "events", "--dump"]
    with workers.Program(tmp_path / "dump", words, fanout_place.variables()) as dump:
        dump.wait_for("heartbeat")
        result = app.add.delay(1, 1)
        assert result.get(timeout=TIMEOUT) == 2
        dump.wait_for("task succeeded")
        lines = [line for line in dump.output.splitlines() if line.startswith(worker.node)]
        time_of_day = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00:00\]"
        told = [re.sub(time_of_day, "[]", line.removeprefix(worker.node)) for line in lines]
        task = rf"controlled.add\({result.id}\) args=\(1, 1\) kwargs={{}}"
        for pattern in (
            r" \[\] heartbeat: .*\bfreq=\d.*, sw_ident=py-celery, .*, utcoffset=0.0",
            rf" \[\] task received: {task} clock=\d+, eta=None, expires=None, .*, utcoffset=0.0",
            rf" \[\] task started: {task} clock=\d+, local_received=[\d.]+, pid=\d+, .*",
            rf" \[\] task succeeded: {task} clock=\d+, .*, result=2, runtime=[\d.e-]+, .*",
        ):
            assert any(re.fullmatch(pattern, line) for line in told), (pattern, told)
        assert dump.stop(signal.SIGINT) == 0
