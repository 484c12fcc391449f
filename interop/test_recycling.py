"""Processes that are replaced after each task, and a soak: nothing grows, nothing is left over."""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
import uuid
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from harness import processes
from harness.wait import wait_until

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
#: What a process may have more at the end than after the warm-up.
GROWTH_KIB = 2048
# Children that come and go have three each; a leak would be one with each task.
GROWTH_FILES = 10
#: How many messages wait at most: enough that no child is ever without work.
BACKLOG = 2000
CHILDREN = 2


def test_each_task_has_a_new_process(redis_place: Any, start: Any, client: Any) -> None:
    tasks = 300
    app = client(redis_place)
    worker = start(redis_place, "-c", str(CHILDREN), "--max-tasks-per-child", "1")
    first = set(worker.children())
    results = [app.pid.delay() for _ in range(tasks)]
    pids = [result.get(timeout=120) for result in results]
    assert len(set(pids)) == tasks
    wait_until(lambda: is_whole(worker), "there are as many children as at first")
    assert not first & set(worker.children())
    assert worker.stop() == 0
    assert worker.leftovers() == []


def is_whole(worker: Any) -> bool:
    """Whether all children are there, and nothing else."""
    below = processes.descendants(worker.pid)
    children = worker.children()
    others = 2  # main and the zygote
    return (
        len(children) == CHILDREN
        and len(below) == CHILDREN + others
        and all(map(processes.is_running, below))
    )


class Load:
    """Keeps a queue filled. The messages are copies of one that Celery's client sent: the client
    itself would be slower than the worker."""

    def __init__(self, app: ModuleType, redis: Any) -> None:
        self._redis = redis
        result = app.add.delay(1, 2)
        self._message = redis.rpop("celery").decode()
        self._id = result.id
        self._sent = 0
        # What is sent and what is counted belong together.
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                room = BACKLOG - self._redis.llen("celery")
                if room >= BACKLOG / 4:
                    ids = (str(uuid.uuid4()) for _ in range(room))
                    messages = [self._message.replace(self._id, fresh) for fresh in ids]
                    self._redis.lpush("celery", *messages)
                    self._sent += room
            self._stopped.wait(0.02)

    def taken(self) -> int:
        """How many messages the worker has taken."""
        with self._lock:
            return self._sent - int(self._redis.llen("celery"))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


@dataclass(frozen=True)
class Sample:
    taken: int
    memory: dict[str, int]
    files: dict[str, int]
    zombies: frozenset[int]
    below: int


def take_sample(worker: Any, watched: dict[str, int], taken: int) -> Sample:
    below = processes.descendants(worker.pid)
    return Sample(
        taken,
        {name: processes.rss_kib(pid) for name, pid in watched.items()},
        {name: processes.open_files(pid) for name, pid in watched.items()},
        # One that ended after it was listed has gone, and is no zombie.
        frozenset(pid for pid in below if processes.is_zombie(pid)),
        len(below),
    )


@pytest.mark.timeout(120 + 2 * SOAK_SECONDS)
@pytest.mark.parametrize("recycling", [(), ("--max-tasks-per-child", "1")], ids=["", "recycling"])
def test_nothing_grows_under_load(
    redis_place: Any, redis_server: Any, start: Any, client: Any, recycling: tuple[str, ...]
) -> None:
    redis_place.settings = {"result_expires": 30}
    app = client(redis_place)
    queue = redis_server.client(redis_place.redis_database)
    load = Load(app, queue)
    try:
        worker = start(
            redis_place, "-c", str(CHILDREN), *recycling, loglevel="WARNING", ready=False
        )
        wait_until(lambda: len(worker.children()) == CHILDREN, "the children are there")
        watched = {name: worker.host(name) for name in ("main", "zygote")}
        watched["parent"] = worker.pid
        began, samples = time.monotonic(), []
        while time.monotonic() < began + SOAK_SECONDS:
            samples.append(take_sample(worker, watched, load.taken()))
            time.sleep(min(1.0, SOAK_SECONDS / 20))
        seconds = time.monotonic() - began
    finally:
        load.stop()
    done = load.taken()
    queue.delete("celery")
    wait_until(
        lambda: not queue.exists("unacked"),
        "all that was taken is done",
        timeout=60,
        context=lambda: f"{queue.hlen('unacked')} of {done} are not done\n{worker.log}",
    )

    third = len(samples) // 3
    before, after = samples[third : 2 * third], samples[-third:]
    print(f"{done} tasks, {done / seconds:.0f} a second")
    grown = {}
    for name in watched:
        for what, limit in (("memory", GROWTH_KIB), ("files", GROWTH_FILES)):
            was, is_now = (
                statistics.median(getattr(sample, what)[name] for sample in part)
                for part in (before, after)
            )
            print(f"{name}: {what} {was:.0f}, at the end {is_now:.0f}")
            if is_now > was + limit:
                grown[f"{what} of {name}"] = (was, is_now)
    assert not grown
    lasting = [a.zombies & b.zombies for a, b in itertools.pairwise(samples)]
    assert not any(lasting), "zombies that are still there at the next look"
    assert watched["main"] == worker.host("main") and watched["zygote"] == worker.host("zygote")
    wait_until(lambda: is_whole(worker), "there are as many children as at first")
    print(f"processes below it: {min(s.below for s in samples)} to {max(s.below for s in samples)}")
    # One at its last task, its successor at work, and one that is leaving; main and the zygote.
    assert max(sample.below for sample in samples) <= 3 * CHILDREN + 2
    # It worked all the time: a worker that stands still does not grow either.
    assert all(x.taken < y.taken for x, y in zip(samples[::4], samples[4::4])), "it stood still"
    assert worker.stop() == 0
    assert worker.leftovers() == []
