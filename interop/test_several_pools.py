"""Several pools in one worker: each with its queues, told apart, and none in another's way."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any, Callable

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import group
from conftest import Place

from harness import workers
from harness.wait import wait_until

pytestmark = pytest.mark.skipif(
    workers.KIND != "celeriac", reason="Celery's own worker has one pool"
)

DEADLINE = 60
IO, CPU = "io_bound", "celery"


class Several:
    """A worker with the pools ``cpu`` and ``io``, and a client."""

    def __init__(self, place: Place, app: ModuleType, worker: workers.Worker) -> None:
        self.place, self.app, self.worker = place, app, worker

    def stats(self) -> dict[str, Any]:
        asked = self.app.app.control.inspect([self.worker.node], timeout=DEADLINE, limit=1)
        found: dict[str, Any] = asked.stats()[self.worker.node]
        return found

    def process_of(self, queue: str, times: int = 1) -> set[int]:
        """The processes that ran a task of a queue."""
        results = [self.app.pid.apply_async(queue=queue) for _ in range(times)]
        return {result.get(timeout=DEADLINE) for result in results}


@pytest.fixture
def several(
    fanout_place: Place, start: Callable[..., workers.Worker], client: Callable[..., ModuleType]
) -> Callable[..., Several]:
    def begin(*options: str, configuration: str | None = None) -> Several:
        folder = fanout_place.folder
        if configuration is not None:
            (folder / "celeriac.toml").write_text(configuration)
        app = client(fanout_place, "pooled")
        worker = start(fanout_place, *options, app="pooled", cwd=folder)
        return Several(fanout_place, app, worker)

    return begin


@pytest.mark.parametrize("kind", ["gevent", "asyncio", "threads"])
def test_each_pool_has_its_queues(several: Callable[..., Several], kind: str) -> None:
    it = several("--pool", f"cpu=prefork:2@{CPU}", "--pool", f"io={kind}:16@{IO}")
    cpu, io = it.process_of(CPU, 4), it.process_of(IO, 4)
    assert not cpu & io
    pools = it.stats()["pools"]
    assert list(pools) == ["cpu", "io"]
    assert (pools["cpu"]["queues"], pools["io"]["queues"]) == ([CPU], [IO])
    assert (pools["cpu"]["max-concurrency"], pools["io"]["max-concurrency"]) == (2, 16)
    assert "prefork" in pools["cpu"]["implementation"]
    assert kind.removesuffix("s") in pools["io"]["implementation"].lower()
    assert cpu <= set(pools["cpu"]["processes"]) and io <= set(pools["io"]["processes"])
    shown = it.worker.log
    assert f"cpu=2 (prefork), io=16 ({kind})" in shown
    assert it.worker.stop() == 0
    assert not it.worker.leftovers()


def test_a_full_pool_holds_up_no_other(several: Callable[..., Several]) -> None:
    it = several(configuration=FILE)
    # Twice as many as cpu can run: the rest waits in the queue.
    long = [it.app.nap.apply_async((600,), queue=CPU) for _ in range(4)]
    wait_until(lambda: it.stats()["pools"]["cpu"]["running"] == 2, "cpu is full", DEADLINE)
    sums = group(it.app.add.s(n, n).set(queue=IO) for n in range(50))()
    assert sums.get(timeout=DEADLINE) == [2 * n for n in range(50)]
    # The limits of a file are the pool's own.
    with pytest.raises(SoftTimeLimitExceeded):
        it.app.nap.apply_async((600,), queue=IO).get(timeout=DEADLINE)
    assert [result.state for result in long].count("SUCCESS") == 0
    it.app.app.control.revoke([result.id for result in long], terminate=True)
    wait_until(lambda: it.stats()["pools"]["cpu"]["running"] == 0, "cpu is empty", DEADLINE)
    assert it.worker.stop() == 0


FILE = f"""
[pools.cpu]
pool = "prefork"
concurrency = 2
queues = ["{CPU}"]

[pools.io]
pool = "threads"
concurrency = 8
queues = ["{IO}"]
soft_time_limit = 1
"""


def test_commands_name_a_pool(several: Callable[..., Several]) -> None:
    it = several("--pool", f"cpu=prefork:1@{CPU}", "--pool", f"more=prefork:1@{IO}")
    control = it.app.app.control
    where = {"destination": [it.worker.node], "reply": True, "timeout": DEADLINE, "limit": 1}
    grown = control.broadcast("pool_grow", arguments={"n": 2, "pool": "more"}, **where)
    assert grown == [{it.worker.node: {"ok": "pool will grow"}}]
    sizes = {name: pool["max-concurrency"] for name, pool in it.stats()["pools"].items()}
    assert sizes == {"cpu": 1, "more": 3}
    wait_until(lambda: len(it.stats()["pools"]["more"]["processes"]) == 3, "it grew", DEADLINE)


def test_a_lost_process_is_its_pools(several: Callable[..., Several]) -> None:
    it = several("--pool", f"cpu=prefork:1@{CPU}", "--pool", f"io=asyncio:4@{IO}")
    [cpu], [io] = it.process_of(CPU), it.process_of(IO)
    os.kill(io, 9)
    wait_until(lambda: it.process_of(IO) != {io}, "another takes its place", DEADLINE)
    assert it.process_of(CPU) == {cpu}
