"""Tasks that do what no task should: each ends as on Celery's own worker, the pool is at full
strength behind it, and nothing of it is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from conftest import Place, place_on_redis

from harness import control, processes
from harness.wait import wait_until
from harness.workers import KIND, Worker

TIMEOUT = 30
CHILDREN = 2
#: Celery's parent ends by what a task does to it, or by a `MemoryError`, and leaves alone what a
#: lost child has started.
only_ours = pytest.mark.skipif(KIND == "celery", reason="Celery's own worker does not stand it")


@dataclass
class Arena:
    """A worker that goes through all of it."""

    place: Place
    app: ModuleType
    worker: Worker

    def run(self, name: str, *arguments: Any) -> str:
        """Sends a task, and says what became of it."""
        result = getattr(self.app, name).delay(*arguments)
        wait_until(result.ready, f"{name}{arguments} ends", TIMEOUT, self.context)
        value = result.result
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}"
        return f"{result.state}: {value}"

    def assert_well(self) -> None:
        """All children run tasks, and there is no process but them."""
        wait_until(self._has_all_children, "the pool is at full strength", TIMEOUT, self.context)
        sent = [self.app.add.delay(number, 1) for number in range(20)]
        for number, result in enumerate(sent):
            wait_until(result.ready, "a normal task runs", TIMEOUT, self.context)
            assert result.get() == number + 1
        assert self.worker.process.poll() is None, self.context()

    def _has_all_children(self) -> bool:
        stats = control.ask(self.app.app, self.worker.node, "stats")
        told = sorted(stats["pool"]["processes"])
        left = self.of_the_worker() - set(told)
        return (
            len(told) == CHILDREN
            and all(processes.is_running(pid) for pid in told)
            and len(left) == (3 if KIND == "celeriac" else 1)
        )

    def of_the_worker(self) -> set[int]:
        """Its processes, and whatever tasks have left behind."""
        return set(processes.with_marker(self.worker.marker))

    def context(self) -> str:
        left = [f"{pid} {processes.name_of(pid)}" for pid in self.of_the_worker()]
        return f"{left}\n{self.worker.log[-5000:]}"


@pytest.fixture(scope="module")
def arena(
    redis_server: Any, shared_start: Any, shared_client: Any, tmp_path_factory: Any
) -> Iterator[Arena]:
    place = place_on_redis(redis_server, tmp_path_factory.mktemp("hostile"))
    app = shared_client(place, "hostile")
    worker = shared_start(place, "-c", str(CHILDREN), app="hostile")
    yield Arena(place, app, worker)
    # Whatever they have done to it, it ends as it should.
    assert worker.stop() == 0
    wait_until(lambda: not worker.leftovers(), "nothing is left", TIMEOUT)
    assert "panicked" not in worker.log


def lost(how: str) -> str:
    return f"WorkerLostError: Worker exited prematurely: {how}"


@pytest.mark.parametrize(
    ("name", "arguments", "outcome"),
    [
        ("segfault", (), lost("signal 11 (SIGSEGV)")),
        ("abort", (), lost("signal 6 (SIGABRT)")),
        ("leave", (0,), lost("exitcode 0")),
        ("leave", (3,), lost("exitcode 3")),
        ("leave", (155,), lost("exitcode 155")),
        ("kill_itself", (9,), lost("signal 9 (SIGKILL)")),
        ("overflow_the_stack", (), lost("signal 11 (SIGSEGV)")),
        ("stop_itself", (), "TimeLimitExceeded"),
        ("spin_in_c", (), "TimeLimitExceeded"),
        ("match_for_ever", (), "TimeLimitExceeded"),
        ("ignore_signals_for_ever", (), "TimeLimitExceeded"),
        ("hold_the_interpreter", (), "TimeLimitExceeded"),
        ("swallow_the_soft_limit", (), "TimeLimitExceeded"),
        ("recurse", (), "RecursionError"),
        pytest.param("raise_memory_error", (), "MemoryError: no more", marks=only_ours),
        pytest.param("run_out_of_memory", (), "MemoryError", marks=only_ours),
        ("say", (100,), "SUCCESS"),
        ("lose_standard_streams", (), "SUCCESS"),
        ("return_a_lambda", (), "EncodeError"),
        ("fail_unpicklably", (), "UnpickleableExceptionWrapper: Unpicklable(1)"),
        ("fail_unprintably", (), "Unprintable"),
        ("raise_base", ("GeneratorExit",), "GeneratorExit"),
        ("raise_base", ("KeyboardInterrupt",), lost("")),
        ("leave_threads", (), "SUCCESS"),
        ("leave_signals_ignored", (), "SUCCESS"),
        ("leave_signals_blocked", (), "SUCCESS"),
        ("leave_a_timer", (), "SUCCESS"),
        ("leave_another_place", (), "SUCCESS"),
        ("exhaust_descriptors", (), "OSError"),
        ("close_descriptors", (0, 3), "SUCCESS"),
        ("close_descriptors", (3, 1000), "SUCCESS"),
        ("close_descriptors", (0, 1000), "SUCCESS"),
        ("replace_descriptors", (), "SUCCESS"),
    ],
)
def test_it_ends_as_on_celery(arena: Arena, name: str, arguments: Any, outcome: str) -> None:
    assert arena.run(name, *arguments).startswith(outcome)
    arena.assert_well()


@only_ours
@pytest.mark.parametrize("name", ["kill_its_group", "kill_its_parent"])
def test_a_task_that_kills_more_than_itself(arena: Arena, name: str) -> None:
    assert arena.run(name).startswith(lost("signal 9 (SIGKILL)"))
    arena.assert_well()


@only_ours
@pytest.mark.parametrize(
    "what", ["noise", "up", "other jobs", "no detail", "a pickle", "large", "cut"]
)
def test_nonsense_to_the_parent(arena: Arena, what: str) -> None:
    outcome = arena.run("talk", what)
    assert outcome.startswith(("SUCCESS", lost("signal 9 (SIGKILL)"))), outcome
    arena.assert_well()


@only_ours
@pytest.mark.parametrize("name", ["talk_with_descriptors", "listen"])
def test_a_channel_that_is_misused(arena: Arena, name: str) -> None:
    before = processes.open_files(arena.worker.pid)
    outcome = arena.run(name)
    assert outcome.startswith(("SUCCESS", "WorkerLostError")), outcome
    arena.assert_well()
    wait_until(
        lambda: processes.open_files(arena.worker.pid) <= before + 2,
        "no descriptor stays",
        TIMEOUT,
    )


@only_ours
@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        ("kill", lost("signal 9 (SIGKILL)")),
        ("exit", lost("exitcode 1")),
        ("limit", "TimeLimitExceeded"),
    ],
)
def test_nothing_of_a_group_is_left(arena: Arena, end: str, outcome: str) -> None:
    file = arena.place.file(f"bred-{end}")
    sent = arena.app.bomb.apply_async((200, file, False, end), time_limit=10)
    wait_until(sent.ready, "it ends", TIMEOUT, arena.context)
    assert f"{type(sent.result).__name__}: {sent.result}".startswith(outcome)
    assert len(arena.place.lines(f"bred-{end}")) == 200
    arena.assert_well()


def test_what_left_the_group_lives_on(arena: Arena) -> None:
    """Who takes a session of his own wants to outlive the task; no worker hunts for him."""
    outcome = arena.run("bomb", 20, arena.place.file("left"), True, "kill")
    assert outcome.startswith(lost("signal 9 (SIGKILL)"))
    left = [int(line) for line in arena.place.lines("left")]
    wait_until(lambda: arena.app.add.delay(1, 2).get(timeout=TIMEOUT) == 3, "the worker works")
    assert all(processes.is_running(pid) for pid in left)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    arena.assert_well()


@only_ours
def test_a_copy_of_the_child_takes_no_job_twice(arena: Arena) -> None:
    file = arena.place.file("copy")
    assert arena.run("fork_and_return", file).startswith("SUCCESS")
    sent = [arena.app.count.delay(arena.place.file("counted")) for _ in range(100)]
    for result in sent:
        wait_until(result.ready, "a normal task runs", TIMEOUT, arena.context)
    assert sorted(arena.place.lines("counted")) == sorted(result.id for result in sent)
    wait_until(lambda: arena.place.lines("copy"), "the copy is known")
    (copy,) = arena.place.lines("copy")
    os.kill(os.getpgid(int(copy)), signal.SIGKILL)
    arena.assert_well()
