"""Visibility timeouts: a long task of ours runs once, a killed worker's tasks come back soon.

Celery's worker restores what is unacknowledged for longer than the timeout, whether or not its
task still runs. As it is configured it looks for that every 100 seconds; here it looks every
second, so that a task of ten seconds is in danger all the time.
"""

from __future__ import annotations

import collections
from types import ModuleType
from typing import Any

import pytest

from harness.wait import wait_until

OPTIONS = {
    "visibility_timeout": 3,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
SECONDS = 10
TASKS = 3


@pytest.fixture
def fleet(redis_place: Any, redis_server: Any, start: Any, client: Any) -> ModuleType:
    redis_place.transport_options = OPTIONS
    app = client(redis_place)
    app.place = redis_place
    app.redis = redis_server.client(redis_place.redis_database)

    def start_kind(kind: str, *arguments: str) -> Any:
        return start(redis_place, *arguments, kind=kind)

    app.start = start_kind
    return app


def begun(fleet: ModuleType) -> collections.Counter[str]:
    return collections.Counter(line for line in fleet.place.lines() if line.startswith("start"))


def ended(fleet: ModuleType) -> collections.Counter[str]:
    return collections.Counter(line for line in fleet.place.lines() if line.startswith("end"))


def run_long_tasks(fleet: ModuleType, kind: str) -> Any:
    """Gives tasks to a worker, and then a stock Celery worker with nothing to do beside it."""
    fleet.start(kind, "-c", str(TASKS))
    for number in range(TASKS):
        fleet.sleep_late.delay(SECONDS, fleet.place.file(), str(number))
    wait_until(lambda: len(begun(fleet)) == TASKS, "all run")
    return fleet.start("celery", "-c", str(TASKS))


def is_settled(fleet: ModuleType) -> bool:
    return not any(map(fleet.redis.exists, ("unacked", "unacked_index", "celery")))


def test_a_task_of_ours_that_takes_longer_than_the_timeout_runs_once(fleet: ModuleType) -> None:
    beside = run_long_tasks(fleet, "celeriac")
    wait_until(lambda: len(ended(fleet)) == TASKS, "all are done", timeout=60)
    wait_until(lambda: is_settled(fleet), "all are acknowledged")
    assert set(begun(fleet).values()) == set(ended(fleet).values()) == {1}
    # It was there all the time, and it would have taken what was restored.
    assert " received" not in beside.log
    assert fleet.sleep_late.delay(0, fleet.place.file(), "last")
    wait_until(lambda: ended(fleet)["end last"], "both still work")


def test_the_same_task_of_celerys_worker_runs_again(fleet: ModuleType) -> None:
    """That the test before this one can fail: nothing but the worker is different."""
    run_long_tasks(fleet, "celery")
    wait_until(lambda: sum(begun(fleet).values()) > TASKS, "one began again", timeout=60)


@pytest.mark.parametrize(
    "survivor, options",
    [
        # By the missing sign of life, long before the timeout of an hour.
        ("celeriac", {}),
        ("celeriac", OPTIONS),
        # By leases that are no longer renewed.
        ("celery", OPTIONS),
    ],
)
def test_the_tasks_of_a_killed_worker_are_back_within_15_seconds(
    fleet: ModuleType, survivor: str, options: dict[str, int]
) -> None:
    fleet.place.transport_options = options
    worker = fleet.start("celeriac", "-c", str(TASKS))
    for number in range(TASKS):
        fleet.sleep_late.delay(600, fleet.place.file(), str(number))
    wait_until(lambda: len(begun(fleet)) == TASKS, "all run")
    other = fleet.start(survivor, "-c", str(TASKS))
    worker.kill()
    wait_until(
        lambda: set(begun(fleet).values()) == {2},
        "all began again",
        timeout=15,
        context=lambda: str(other.log),
    )
    assert worker.leftovers() == []
