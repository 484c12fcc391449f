"""Limits of memory that hold while tasks run, and what is done when there is too little."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import WorkerLostError

from harness import processes, workers
from harness.wait import wait_until

MIB = 1024
#: Version 1 and version 2 of the kernel's control groups, where root may make one.
MEMORY_GROUPS = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")


@pytest.fixture
def hungry(redis_place: Any, client: Any) -> Any:
    return client(redis_place, "hungry")


def noted(place: Any, word: str) -> int | None:
    """The process that a task has noted."""
    lines = [line.split() for line in place.lines()]
    return next((int(line[1]) for line in lines if line[0] == word and len(line) > 1), None)


def test_a_task_without_measure_dies_alone(redis_place: Any, start: Any, hungry: Any) -> None:
    limit = 200 * MIB
    worker = start(redis_place, "-c", "8", "--max-memory-per-child", str(limit), app="hungry")
    normal = [hungry.work.delay(6) for _ in range(7)]
    wait_until(lambda: len(hungry.app.control.inspect().active() or {}), "they run")
    before = set(worker.children())
    greedy = hungry.take_without_end.delay(limit)
    pid = wait_until(lambda: noted(redis_place, "crossed"), "it is over the limit")
    assert pid is not None
    wait_until(lambda: not processes.is_running(pid), "it is dead")
    with pytest.raises(WorkerLostError, match=r"killed for holding \d+ KiB of memory"):
        greedy.get(timeout=20)
    pids = {result.get(timeout=60) for result in normal}
    assert len(pids) == 7 and pids <= before - {pid}, "the others ran to their end"
    assert "it was let" not in redis_place.lines()
    killed = r"child process (\d+) killed after exceeding memory limit \((\d+)KiB"
    ((who, held),) = re.findall(killed, worker.log)
    assert int(who) == pid
    print(f"killed at {held} KiB")
    variables: dict[str, Any] = redis_place.variables()
    listed = workers.run("celeriac", "-A", "hungry", "dlq", "list", "--json", **variables)
    (letter,) = map(json.loads, listed.stdout.splitlines())
    assert (letter["id"], letter["cause"]) == (greedy.id, "out-of-memory")
    assert letter["peak_memory"] >= limit
    wait_until(lambda: len(worker.children()) == 8, "it is replaced")
    assert worker.stop() == 0


def test_programs_of_a_task_count_and_end_with_it(
    redis_place: Any, start: Any, hungry: Any
) -> None:
    worker = start(redis_place, "-c", "1", "--hard-memory-per-child", str(400 * MIB), app="hungry")
    result = hungry.have_it_taken.delay()
    program = wait_until(lambda: noted(redis_place, "program"), "it runs")
    assert program is not None
    with pytest.raises(WorkerLostError, match=r"more than 409600 KiB"):
        result.get(timeout=20)
    wait_until(lambda: not processes.is_running(program), "the program is gone as well")
    assert "it was let" not in redis_place.lines()
    assert hungry.work.delay(0).get(timeout=20)
    assert worker.stop() == 0


def test_a_soft_limit_raises_in_the_task(redis_place: Any, start: Any, hungry: Any) -> None:
    limits = ("--soft-memory-per-child", str(200 * MIB))
    worker = start(redis_place, "-c", "1", *limits, app="hungry")
    module, name, held = hungry.let_go.delay().get(timeout=20)
    assert (module, name) == ("celeriac.exceptions", "SoftMemoryLimitExceeded")
    assert 100 < held < 400, "MiB"
    failed = hungry.do_not_let_go.delay()
    assert type(failed.get(timeout=20, propagate=False)).__name__ == "SoftMemoryLimitExceeded"
    assert failed.failed()
    assert len(re.findall(r"Soft memory limit \(204800KiB\) exceeded for", worker.log)) == 2
    assert hungry.work.delay(0).get(timeout=20) in worker.children(), "the child lives"
    assert worker.stop() == 0


def test_the_whole_worker_has_a_limit(redis_place: Any, start: Any, hungry: Any) -> None:
    worker = start(redis_place, "-c", "2", "--max-memory", str(800 * MIB), app="hungry")
    normal = hungry.work.delay(4)
    greedy = hungry.take_slowly_without_end.delay()
    with pytest.raises(WorkerLostError, match=r"more than any other, while the worker has"):
        greedy.get(timeout=60)
    assert normal.get(timeout=30)
    worker.wait_for("Too little memory, no tasks are fetched while one runs: the worker has")
    worker.wait_for("There is enough memory again: tasks are fetched")
    assert hungry.work.delay(0).get(timeout=20)
    assert worker.stop() == 0


def test_limits_that_make_no_sense_are_refused(redis_place: Any, start: Any) -> None:
    worker = start(
        redis_place,
        *("--soft-memory-per-child", "500", "--max-memory-per-child", "200"),
        app="hungry",
        ready=False,
    )
    assert worker.wait() != 0
    assert "soft memory limit of 500 KiB is not below the hard one of 400 KiB" in worker.log


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with a limit of 600 MiB."""
    for root in map(Path, MEMORY_GROUPS):
        found = root / f"celeriac-{os.getpid()}"
        try:
            found.mkdir()
        except OSError:
            continue
        for name in ("memory.limit_in_bytes", "memory.max"):
            if (found / name).exists():
                (found / name).write_text(str(600 << 20))
                yield found
                wait_until(lambda: not (found / "cgroup.procs").read_text(), "it is empty")
                found.rmdir()
                return
        found.rmdir()
    pytest.skip("no control group for memory can be made here")


@contextmanager
def inside(group: Path) -> Iterator[None]:
    """What is started is in the group, as this process is for so long."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    paths = {controllers: path for _, controllers, path in lines}
    own = group.parent / paths.get("memory", paths.get("", "/")).lstrip("/")
    pid = str(os.getpid())
    (group / "cgroup.procs").write_text(pid)
    try:
        yield
    finally:
        (own / "cgroup.procs").write_text(pid)


@pytest.mark.parametrize("heeds", [True, False], ids=["heeded", "ignored"])
def test_a_full_control_group(
    group: Path, redis_place: Any, start: Any, hungry: Any, heeds: bool
) -> None:
    """Before it is full, the worker ends the child that holds the most; left alone, the kernel
    does, and the worker knows."""
    redis_place.settings = {"celeriac_memory_pressure": heeds}
    with inside(group):
        worker = start(redis_place, "-c", "2", app="hungry")
    normal = hungry.work.delay(4)
    greedy = hungry.take_slowly_without_end.delay()
    why = "more than any other, while the cgroup has" if heeds else r"signal 9 \(SIGKILL\)"
    with pytest.raises(WorkerLostError, match=why):
        greedy.get(timeout=60)
    assert normal.get(timeout=30)
    is_kernels = "The kernel ended process" in worker.log
    assert is_kernels != heeds
    assert ("Too little memory, no tasks are fetched" in worker.log) == heeds
    assert hungry.work.delay(0).get(timeout=20)
    assert worker.stop() == 0
