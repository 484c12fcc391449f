"""Dead letters: what nothing can be done with is kept, told of, and can be had back."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from conftest import Place

from harness import workers
from harness.queues import queues_of
from harness.wait import wait_until

LATE = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "celeriac_unknown_task_grace": 2,
}


@pytest.fixture(params=["redis", "rabbit", "sqlite"])
def late_place(request: pytest.FixtureRequest) -> Place:
    place: Place = request.getfixturevalue(f"{request.param}_place")
    place.settings = LATE
    return place


def dlq(place: Place, *words: str, status: int = 0) -> str:
    variables: dict[str, Any] = place.variables()
    ended = workers.run("celeriac", "-A", "basic", "dlq", *words, **variables)
    assert ended.returncode == status, ended.stderr
    return ended.stdout + ended.stderr


def letters(place: Place) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dlq(place, "list", "--json").splitlines()]


def found(place: Place, task_id: str) -> dict[str, Any] | None:
    return next((letter for letter in letters(place) if letter["id"] == task_id), None)


def deaths(place: Place) -> int:
    return place.lines().count("run")


def test_a_task_that_kills_its_process_is_a_dead_letter_after_three_attempts(
    late_place: Place, start: Any, client: Any
) -> None:
    app: ModuleType = client(late_place)
    worker = start(late_place, "-c", "2")
    result = app.die_late.delay(late_place.file())
    with pytest.raises(Exception, match=r"signal 9 \(SIGKILL\)"):
        result.get(timeout=30)
    assert deaths(late_place) == 3
    wait_until(lambda: found(late_place, result.id), "it is kept")
    letter = found(late_place, result.id)
    assert letter is not None
    assert (letter["cause"], letter["attempts"], letter["signal"]) == ("killed", 3, 9)
    assert letter["task"] == "basic.die_late"
    assert letter["peak_memory"] > 1000
    shown = dlq(late_place, "show", result.id)
    assert "9 (SIGKILL)" in shown and late_place.file() in shown
    wait_until(lambda: len(worker.children()) == 2, "the pool is whole")
    assert app.add.delay(1, 2).get(timeout=20) == 3

    # It keeps its id, and has three attempts again.
    assert "1 dead letter back" in dlq(late_place, "replay", result.id)
    wait_until(lambda: deaths(late_place) == 6, "it has its attempts", timeout=30)
    wait_until(lambda: found(late_place, result.id), "it is kept again")
    assert "1 dead letter forgotten" in dlq(late_place, "purge", "--all", "-f")
    assert "no dead letters" in dlq(late_place, "list")
    assert "There is no dead letter" in dlq(late_place, "show", result.id, status=1)


def test_a_task_whose_workers_die_is_a_dead_letter_after_three(
    place: Place, start: Any, client: Any
) -> None:
    place.settings = LATE
    app: ModuleType = client(place)
    result = app.sleep_safe.delay(300, place.file(), "x")
    for death in range(3):
        worker = start(place, "-c", "1")
        wait_until(lambda: len(place.lines()) == death + 1, "it runs", 60)
        worker.kill()
    start(place, "-c", "1")
    wait_until(lambda: found(place, result.id), "it is kept", 60)
    letter = found(place, result.id)
    assert letter is not None
    assert (letter["cause"], letter["attempts"]) == ("worker-lost", 3)
    assert place.lines() == ["start x"] * 3


def test_a_task_that_nobody_knows_waits_for_somebody_who_does(
    late_place: Place, start: Any, client: Any
) -> None:
    late_place.settings = {**LATE, "celeriac_unknown_task_grace": 30}
    app: ModuleType = client(late_place)
    old = start(late_place, "-c", "1", app="basic")
    # What comes with the next deployment, which the client has already.
    result = app.app.send_task("newer.greet", ["you"])
    old.wait_for("another worker may know the task")
    start(late_place, "-c", "1", app="newer")
    assert result.get(timeout=60) == "hello you"
    assert letters(late_place) == []


def test_a_task_that_nobody_knows_is_a_dead_letter_in_the_end(
    late_place: Place, start: Any, client: Any
) -> None:
    app: ModuleType = client(late_place)
    start(late_place, "-c", "1")
    result = app.app.send_task("no.such.task", [1])
    with pytest.raises(Exception, match=r"no\.such\.task"):
        result.get(timeout=30)
    wait_until(lambda: found(late_place, result.id), "it is kept")
    listed = dlq(late_place, "list", "--cause", "unknown-task")
    assert "no.such.task" in listed and result.id in listed


def test_bytes_that_are_no_message_can_be_looked_at(place: Place, start: Any, client: Any) -> None:
    place.settings = LATE
    client(place).add.delay(1, 1)
    start(place, "-c", "1")
    queues_of(place.broker).put(b"\xff\x00 no message")
    wait_until(lambda: letters(place), "it is kept")
    (letter,) = letters(place)
    assert letter["cause"] == "undecodable"
    assert "no message" in dlq(place, "show", letter["id"])


def test_what_is_dead_does_not_hold_up_the_living(
    late_place: Place, start: Any, client: Any
) -> None:
    """Poison among tasks: all others are done, and the pool is whole."""
    app: ModuleType = client(late_place)
    worker = start(late_place, "-c", "2")
    poison = [app.die_late.delay(late_place.file()) for _ in range(5)]
    results = [app.add.delay(number, 1) for number in range(50)]
    assert [result.get(timeout=60) for result in results] == [number + 1 for number in range(50)]
    wait_until(lambda: len(letters(late_place)) == len(poison), "all are kept", timeout=60)
    assert deaths(late_place) == 3 * len(poison)
    wait_until(lambda: len(worker.children()) == 2, "the pool is whole")
