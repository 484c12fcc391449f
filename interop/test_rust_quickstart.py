"""Programs with tasks in Rust, which are workers and clients, and Celery on the other side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest
from celery import Celery, chain
from celery.exceptions import (
    NotRegistered,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
)
from celery.result import AsyncResult
from conftest import Place

from harness import programs
from harness.control import ask, ask_until
from harness.events import Recorder
from harness.programs import RustWorker
from harness.wait import wait_until
from harness.workers import ROOT

TIMEOUT = 30
SOURCE = ROOT / "examples" / "rust-quickstart" / "src" / "main.rs"


def python_client(place: Place) -> Celery:
    """Real Celery, which knows the tasks by their names alone."""
    app = Celery("client", broker=place.broker, backend=place.backend, set_as_current=False)
    app.conf.task_default_queue = "rust"
    return app


@dataclass
class Rust:
    """A worker with tasks in Rust, and a client of it that is Celery's."""

    place: Place
    worker: RustWorker
    app: Celery

    def call(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        return self.app.send_task(f"outcomes.{task}", args, **options)


@pytest.fixture(params=["sqlite", "redis", "rabbit"])
def any_place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def start_outcomes(place: Place) -> RustWorker:
    return RustWorker(
        place.folder, "outcomes", "-c", "4", broker=place.broker, backend=place.backend
    )


@pytest.fixture
def rust(any_place: Place) -> Iterator[Rust]:
    with start_outcomes(any_place) as worker:
        worker.wait_for(" ready.")
        yield Rust(any_place, worker, python_client(any_place))


@pytest.fixture
def controlled(fanout_place: Place) -> Iterator[Rust]:
    """On brokers that remote control goes through."""
    with start_outcomes(fanout_place) as worker:
        worker.wait_for(" ready.")
        yield Rust(fanout_place, worker, python_client(fanout_place))


def test_the_quickstart_is_short():
    assert len(SOURCE.read_text().splitlines()) < 40


def test_one_program_is_worker_and_client(
    any_place: Place, start: Callable[..., Any], tmp_path: Path
) -> None:
    broker, backend = any_place.broker, any_place.backend
    with RustWorker(tmp_path, "rust-quickstart", broker=broker, backend=backend) as worker:
        worker.wait_for(" ready.")
        # Tasks in Python, on Celery's own worker.
        start(any_place, "-c", "1", kind="celery")
        asked = programs.run("rust-quickstart", "ask", broker=broker, backend=backend)
        assert asked.stdout == "2 + 3 = 5, and in Python 40 + 5 = 45\n", asked.stderr

        client = python_client(any_place)
        assert client.send_task("quickstart.add", [2, 3]).get(timeout=TIMEOUT) == 5
        assert client.send_task("quickstart.add", [2], {"y": 4}).get(timeout=TIMEOUT) == 6
        both = chain(
            client.signature("quickstart.add", [1, 2]),
            client.signature("basic.add", [10], queue="celery"),
            # It is sent by Celery's worker, whose own default queue is another one.
            client.signature("quickstart.add", [100], queue="rust"),
        )
        assert both.apply_async().get(timeout=TIMEOUT) == 113
        assert worker.stop() == 0


def test_arguments_have_types_and_defaults(rust):
    order = {"item": "pears", "price": 0.5, "count": 6}
    assert rust.call("total", order).get(timeout=TIMEOUT) == "pears 3"
    assert rust.call("total", order, 1).get(timeout=TIMEOUT) == "pears 2"
    named = rust.app.send_task("outcomes.total", kwargs={"order": order, "note": "!"})
    assert named.get(timeout=TIMEOUT) == "pears 3!"


#: Calls that fail: the exception's class and what it says.
FAILURES: list[tuple[str, list[Any], dict[str, Any], str, str]] = [
    ("total", [{"item": "pears", "price": 1.0}], {}, "TypeError", "missing field `count`"),
    (
        "total",
        [{"item": "pears", "price": 1.0, "count": "six"}],
        {},
        "TypeError",
        "argument 'order': invalid type: string \"six\", expected u32",
    ),
    (
        "divide",
        ["two", 1],
        {},
        "TypeError",
        "divide() argument 'x': invalid type: string \"two\", expected i64",
    ),
    ("divide", [1], {}, "TypeError", "missing 1 required positional argument: 'y'"),
    ("divide", [1, 2, 3], {}, "TypeError", "takes 2 positional arguments but 3 were given"),
    ("divide", [1], {"z": 1}, "TypeError", "got an unexpected keyword argument 'z'"),
    ("divide", [1, 0], {}, "Panic", "attempt to divide by zero"),
    ("panics", ["oh no"], {}, "Panic", "oh no (at "),
    ("parse", ["two"], {}, "ParseIntError", "invalid digit found in string"),
    ("refuse", ["colour"], {}, "KeyError", "colour"),
]


def test_failures_have_clear_messages_on_both_sides(rust):
    for task, args, kwargs, exception, text in FAILURES:
        result = rust.app.send_task(f"outcomes.{task}", args, kwargs)
        with pytest.raises(Exception) as caught:
            result.get(timeout=TIMEOUT)
        assert type(caught.value).__name__ == exception, repr(caught.value)
        assert text in str(caught.value)
        assert result.state == "FAILURE"
        rust.worker.wait_for(f"Task outcomes.{task}[{result.id}] raised unexpected: {exception}(")
        log = rust.worker.output
        line = log[log.index(f"{result.id}] raised unexpected") :].splitlines()[0]
        assert text.replace("'", "") in line.replace("\\'", "").replace("'", ""), line
    # And it goes on.
    assert rust.call("divide", 9, 3).get(timeout=TIMEOUT) == 3


def test_a_panic_has_a_backtrace(rust):
    result = rust.call("panics", "oh no")
    with pytest.raises(Exception, match="oh no"):
        result.get(timeout=TIMEOUT)
    assert "outcomes.rs" in result.traceback
    assert rust.worker.process.poll() is None


def test_retries(rust):
    assert rust.call("stumble", 2).get(timeout=TIMEOUT) == 2
    hopeless = rust.call("stumble", 9)
    with pytest.raises(OSError, match="stumbled 3"):
        hopeless.get(timeout=TIMEOUT)
    assert rust.worker.output.count(f"outcomes.stumble[{hopeless.id}] retry: Retry in ") == 3


def test_time_limits(rust):
    hard = rust.call("sleep", 600, time_limit=1)
    soft = rust.call("sleep", 600, soft_time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        hard.get(timeout=TIMEOUT)
    with pytest.raises(SoftTimeLimitExceeded):
        soft.get(timeout=TIMEOUT)
    rust.worker.wait_for(f"Hard time limit (1s) exceeded for outcomes.sleep[{hard.id}]")
    assert f"Soft time limit (1s) exceeded for outcomes.sleep[{soft.id}]" in rust.worker.output
    # What looks at its cancellation ends in its own way.
    assert rust.call("tidy").get(timeout=TIMEOUT) == "tidied"


def test_a_task_knows_its_call(rust):
    result = rust.call("about", headers={"tenant": "acme"})
    about = result.get(timeout=TIMEOUT)
    assert (about["id"], about["root_id"], about["task"]) == (
        result.id,
        result.id,
        "outcomes.about",
    )
    assert about["hostname"] == rust.worker.node
    assert about["headers"]["tenant"] == "acme"


def test_what_is_ignored_has_no_result(rust):
    ignored = rust.call("ignored")
    rust.worker.wait_for(f"outcomes.ignored[{ignored.id}] ignored")
    assert ignored.state == "PENDING"


def test_an_unknown_task_is_not_registered(any_place):
    options = {"broker": any_place.broker, "backend": any_place.backend}
    unknown = python_client(any_place).send_task("outcomes.nowhere", [])
    (any_place.folder / "celeriac.toml").write_text("[celery]\nceleriac_unknown_task_grace = 0\n")
    folder = any_place.folder
    with RustWorker(folder, "outcomes", "--workdir", str(folder), **options) as worker:
        worker.wait_for("Received unregistered task of type 'outcomes.nowhere'")
        with pytest.raises(NotRegistered):
            unknown.get(timeout=TIMEOUT)


def test_celery_inspects_it(controlled):
    app, node = controlled.app, controlled.worker.node
    assert ask(app, node, "ping") == {"ok": "pong"}
    registered = ask(app, node, "registered")
    assert {"outcomes.total", "outcomes.sleep"} <= {name.split()[0] for name in registered}
    sleeper = controlled.call("sleep", 600)
    active = ask_until(app, node, "active", lambda tasks: tasks)
    assert [(task["id"], task["name"]) for task in active] == [(sleeper.id, "outcomes.sleep")]
    assert sleeper.state == "STARTED"
    stats = ask(app, node, "stats")
    assert stats["pid"] == controlled.worker.process.pid
    assert stats["total"]["outcomes.sleep"] == 1
    assert [queue["name"] for queue in ask(app, node, "active_queues")] == ["rust"]
    assert ask(app, node, "rate_limit", task_name="outcomes.total", rate_limit="10/m") == {
        "ok": "new rate limit set successfully"
    }


def test_celery_revokes_its_tasks(controlled):
    app, node = controlled.app, controlled.worker.node
    sleeper = controlled.call("sleep", 600)
    ask_until(app, node, "active", lambda tasks: tasks)
    ask(app, node, "revoke", task_id=sleeper.id, terminate=True, signal="SIGTERM")
    with pytest.raises(TaskRevokedError):
        sleeper.get(timeout=TIMEOUT)
    later = controlled.call("total", countdown=3600)
    ask_until(app, node, "scheduled", lambda tasks: tasks)
    ask(app, node, "revoke", task_id=later.id)
    wait_until(lambda: later.id in ask(app, node, "revoked"), "it is revoked")
    assert controlled.call("divide", 9, 3).get(timeout=TIMEOUT) == 3


def test_its_events_are_celerys(controlled):
    with Recorder(controlled.app) as recorder:
        ask(controlled.app, controlled.worker.node, "enable_events")
        result = controlled.call("divide", 9, 3)
        assert result.get(timeout=TIMEOUT) == 3

        def told() -> list[str]:
            events = (event for message in recorder.messages for event in message.events())
            return [event["type"] for event in events if event.get("uuid") == result.id]

        wait_until(lambda: "task-succeeded" in told(), "it is told of", context=lambda: str(told()))
    assert told() == ["task-received", "task-started", "task-succeeded"]


def test_commands_need_no_python(rust):
    options = {"broker": rust.place.broker, "backend": rust.place.backend}

    def run(*words: str) -> Any:
        return programs.run("outcomes", *words, **options)

    called = run("call", "outcomes.divide", "--args", "[9, 3]")
    assert called.returncode == 0, called.stderr
    task_id = called.stdout.strip()
    assert rust.app.AsyncResult(task_id).get(timeout=TIMEOUT) == 3
    assert run("result", task_id).stdout == "3\n"
    failed = run("call", "outcomes.divide", "--args", "[9, 0]").stdout.strip()
    with pytest.raises(Exception, match="zero"):
        rust.app.AsyncResult(failed).get(timeout=TIMEOUT)
    asked = run("result", failed)
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "attempt to divide by zero" in asked.stderr
    assert "outcomes.rs" in run("result", "--traceback", failed).stdout

    assert rust.worker.stop() == 0
    for _ in range(3):
        rust.call("divide", 1, 1)
    purged = run("purge", "-f")
    assert purged.stdout == "Purged 3 messages from 1 known task queue.\n", purged.stderr
    assert run("purge", "-f").stdout == "No messages purged from 1 queue.\n"


def test_commands_that_need_python_say_so(tmp_path):
    urls = {"broker": f"sqla+sqlite:///{tmp_path}/b.db", "backend": f"db+sqlite:///{tmp_path}/r.db"}
    for words in (["inspect", "ping"], ["status"], ["list", "bindings"]):
        asked = programs.run("outcomes", *words, **urls)
        assert asked.returncode == 1
        assert f"celeriac -b BROKER_URL {words[0]}" in asked.stderr, asked.stderr
        assert "Python" in asked.stderr
