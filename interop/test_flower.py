"""Flower shows our workers and their tasks, and its buttons work: the real one, by HTTP."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from conftest import Place

from harness.control import TIMEOUT, ask_until
from harness.servers import free_port
from harness.wait import wait_until
from harness.workers import Crew, Program, Worker


@dataclass
class Flower:
    """Flower, a worker that it watches, and a client."""

    address: str
    program: Program
    app: ModuleType
    worker: Worker
    place: Place

    def _open(self, path: str, data: bytes | None, **query: Any) -> str:
        given = f"?{urllib.parse.urlencode(query)}" if query else ""
        request = urllib.request.Request(f"{self.address}{path}{given}", data=data)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return str(answer.read().decode())

    def page(self, path: str) -> str:
        return self._open(path, None)

    def get(self, path: str, **query: Any) -> Any:
        return json.loads(self._open(f"/api/{path}", None, **query))

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        data = json.dumps(body).encode() if body is not None else b""
        return json.loads(self._open(f"/api/{path}", data, **query))

    def message(self, path: str, **query: Any) -> str:
        """What Flower says of a command that it gave."""
        return str(self.post(path, **query)["message"])

    def inspected(self) -> Any:
        """What the worker answered when Flower asked it just now."""
        node = self.worker.node
        return self.get("workers", refresh=1, workername=node)[node]

    def task(self, task_id: str, *known: str, **fields: Any) -> Any:
        """What it shows of a task as soon as that is as given, and it knows these fields."""
        last: Any = None

        def find() -> Any:
            nonlocal last
            try:
                last = self.get(f"task/info/{task_id}")
            except urllib.error.HTTPError:
                return None
            is_as_given = all(last[name] == value for name, value in fields.items())
            return last if is_as_given and all(last[name] for name in known) else None

        return wait_until(find, f"Flower shows {known} {fields}", TIMEOUT, lambda: repr(last))


@pytest.fixture(scope="module")
def flower(
    shared_place: Place,
    shared_start: Callable[..., Worker],
    shared_client: Callable[..., ModuleType],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Flower]:
    # It sends no task events by itself: Flower tells it to.
    worker = shared_start(shared_place, "-c", "2", app="controlled")
    app = shared_client(shared_place, "controlled")
    port = free_port()
    words = [
        *(sys.executable, "-m", "celery", "-A", "controlled", "flower"),
        *(f"--port={port}", "--address=127.0.0.1", f"--inspect_timeout={TIMEOUT * 1000}"),
    ]
    variables = {**shared_place.variables(), "FLOWER_UNAUTHENTICATED_API": "true"}
    file = tmp_path_factory.mktemp("flower") / "log"
    with Program(file, words, variables) as program:
        shown = Flower(f"http://127.0.0.1:{port}", program, app, worker, shared_place)

        def sees_it() -> bool:
            try:
                return bool(shown.get("workers", status=1).get(worker.node))
            except (urllib.error.URLError, ConnectionError):
                return False

        wait_until(sees_it, "Flower sees the worker", 60, lambda: program.output)
        ask_until(
            app.app, worker.node, "enable_events",
            lambda reply: reply == {"ok": "task events already enabled"},
        )  # fmt: skip
        yield shown


def test_the_worker_is_online_with_its_statistics(flower):
    told = flower.inspected()
    assert told["stats"]["pid"] == flower.worker.pid
    assert sorted(told["stats"]["pool"]["processes"]) == sorted(flower.worker.children())
    assert [queue["name"] for queue in told["active_queues"]] == ["celery"]
    assert any(name.startswith("controlled.add") for name in told["registered"])
    assert told["conf"]["broker_url"].startswith(("redis", "amqp"))
    for tasks in ("active", "reserved", "scheduled", "revoked"):
        assert isinstance(told[tasks], list), tasks


def test_pages_show_the_worker_and_its_tasks(flower):
    result = flower.app.add.delay(30, 12)
    assert result.get(timeout=TIMEOUT) == 42
    flower.task(result.id, state="SUCCESS")
    assert flower.worker.node in flower.page("/workers")
    assert "controlled.add" in flower.page("/tasks") or "tasks-table" in flower.page("/tasks")
    assert result.id in flower.page(f"/task/{result.id}")
    page = flower.page(f"/worker/{flower.worker.node}")
    assert str(flower.worker.pid) in page

    def row() -> Any:
        (shown,) = json.loads(flower.page("/workers?json=1"))["data"]
        return shown

    assert row()["hostname"] == flower.worker.node
    assert row()["status"] is True
    # From the first heartbeat that the worker sends by itself.
    assert len(wait_until(lambda: row()["loadavg"], "it has a load")) == 3


def test_a_task_is_shown_with_arguments_state_and_run_time(flower):
    result = flower.app.add.apply_async((1,), {"y": 2})
    told = flower.task(result.id, state="SUCCESS")
    assert (told["name"], told["args"], told["kwargs"]) == ("controlled.add", "(1,)", "{'y': 2}")
    assert told["result"] == "3"
    assert 0 <= told["runtime"] < TIMEOUT
    assert told["received"] <= told["started"] <= told["succeeded"]
    assert told["worker"] == flower.worker.node
    assert (told["retries"], told["root_id"]) == (0, result.id)
    found = flower.get("tasks", state="SUCCESS", taskname="controlled.add")
    assert result.id in found
    assert "controlled.add" in flower.get("task/types")["task-types"]
    assert flower.get(f"task/result/{result.id}")["result"] == 3


def test_a_failure_is_shown_with_its_traceback(flower):
    result = flower.app.fail.delay("because")
    told = flower.task(result.id, state="FAILURE")
    assert told["exception"] == "ValueError('because')"
    assert told["traceback"].startswith("Traceback (most recent call last)")
    assert told["failed"] >= told["started"]


def test_a_retry_and_a_lost_process_are_shown(flower):
    retried, lost = flower.app.retry.delay(), flower.app.die.delay()
    # Which of the two comes last is open: the second attempt may have succeeded before the process
    # of the first one tells of its end.
    told = flower.task(retried.id, "retried", "succeeded")
    assert "again" in told["exception"]
    assert flower.task(lost.id, state="FAILURE")["failed"]


def test_a_running_task_is_shown_and_terminated(flower):
    result = flower.app.sleep.delay(600)
    flower.task(result.id, state="STARTED")
    assert result.id in [task["id"] for task in flower.inspected()["active"]]
    said = flower.message(f"task/revoke/{result.id}", terminate="true", signal="SIGKILL")
    assert said == f"Revoked '{result.id}'"
    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    assert flower.task(result.id, state="REVOKED")["revoked"]


def test_a_waiting_task_is_revoked(flower):
    busy = [flower.app.sleep.delay(600) for _ in range(2)]
    for running in busy:
        flower.task(running.id, state="STARTED")
    result = flower.app.add.delay(1, 1)
    flower.message(f"task/revoke/{result.id}")
    for running in busy:
        flower.message(f"task/revoke/{running.id}", terminate="true")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    flower.task(result.id, state="REVOKED")
    assert result.id in flower.inspected()["revoked"]


def test_a_task_is_sent_from_it(flower):
    sent = flower.post("task/async-apply/controlled.add", {"args": [20], "kwargs": {"y": 22}})
    assert flower.task(sent["task-id"], state="SUCCESS")["result"] == "42"


def test_limits_are_set(flower):
    node = flower.worker.node
    assert (
        flower.message("task/rate-limit/controlled.limited", workername=node, ratelimit="7/s")
        == "new rate limit set successfully"
    )
    assert "controlled.limited [rate_limit=7/s]" in flower.inspected()["registered"]
    assert (
        flower.message("task/timeout/controlled.has_limits", workername=node, hard=3.5, soft=2)
        == "time limits set successfully"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        flower.message("task/rate-limit/controlled.limited", workername=node, ratelimit="x")
    assert refused.value.code == 403


def test_the_pool_grows_and_shrinks(flower):
    node = flower.worker.node
    before = len(flower.worker.children())
    assert flower.message(f"worker/pool/grow/{node}", n=2) == (
        f"Growing '{node}' worker's pool by 2"
    )
    wait_until(lambda: len(flower.worker.children()) == before + 2, "there are more")
    assert flower.message(f"worker/pool/shrink/{node}", n=2) == (
        f"Shrinking '{node}' worker's pool by 2"
    )
    wait_until(lambda: len(flower.worker.children()) == before, "there are fewer")


def test_queues_are_taken_up_and_left(flower):
    node = flower.worker.node
    said = flower.message(f"worker/queue/add-consumer/{node}", queue="flowers")
    assert said == "add consumer flowers"
    assert flower.app.add.apply_async((1, 2), queue="flowers").get(timeout=TIMEOUT) == 3
    assert "flowers" in [queue["name"] for queue in flower.inspected()["active_queues"]]
    said = flower.message(f"worker/queue/cancel-consumer/{node}", queue="flowers")
    assert said == "no longer consuming from flowers"
    wait_until(lambda: len(flower.inspected()["active_queues"]) == 1, "it is left")


def test_metrics_count(flower):
    node = flower.worker.node
    assert flower.app.add.delay(1, 1).get(timeout=TIMEOUT) == 2

    def counted() -> bool:
        lines = flower.page("/metrics").splitlines()
        return f'flower_worker_online{{worker="{node}"}} 1.0' in lines and any(
            line.startswith("flower_events_total{")
            and all(part in line for part in (node, "task-succeeded", "controlled.add"))
            for line in lines
        )

    wait_until(counted, "Prometheus would see it", TIMEOUT, lambda: flower.page("/metrics"))


@pytest.fixture
def crew(flower: Flower, tmp_path: Any) -> Iterator[Crew]:
    with Crew(tmp_path) as crew:
        yield crew


def test_another_worker_is_scaled_and_shut_down(flower, crew):
    worker = crew.start(flower.place, "--autoscale=3,1", "-Q", "other", app="controlled")
    node = worker.node
    wait_until(lambda: flower.get("workers", status=1).get(node), "it is seen", TIMEOUT)
    # Flower gives commands only to workers that have answered it.
    flower.get("workers", refresh=1, workername=node)
    said = flower.message(f"worker/pool/autoscale/{node}", min=2, max=4)
    assert "2" in said and "4" in said
    wait_until(lambda: len(worker.children()) == 2, "it is scaled")
    with pytest.raises(urllib.error.HTTPError) as refused:
        flower.message(f"worker/pool/grow/{node}", n=1)
    assert refused.value.code == 403
    assert flower.message(f"worker/shutdown/{node}") == "Shutting down!"
    assert worker.wait() == 0
    wait_until(lambda: not flower.get("workers", status=1).get(node), "it is gone", TIMEOUT)
