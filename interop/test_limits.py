"""Limits that all workers keep together, and unique tasks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from celery.exceptions import TaskRevokedError
from conftest import Place

from harness import workers
from harness.wait import wait_until

#: What the issue asks for: so many at once, and so many in a second.
SLOTS, RATE = 10, 20
TASKS = 300


@dataclass
class Note:
    moment: float
    child: int
    what: str
    text: str


def notes(place: Place) -> list[Note]:
    found = []
    for line in place.lines():
        moment, _, child, what, text = line.split()
        found.append(Note(float(moment), int(child), what, text))
    return sorted(found, key=lambda note: note.moment)


def of(place: Place, what: str) -> list[Note]:
    return [note for note in notes(place) if note.what == what]


def most_at_once(place: Place, gone: dict[int, float]) -> int:
    """How many ran at the same time; ``gone`` says when processes were killed."""
    ends = {(note.child, note.text): note.moment for note in of(place, "end")}
    changes = []
    for note in of(place, "start"):
        end = ends.get((note.child, note.text), gone.get(note.child))
        assert end is not None, f"nobody knows how {note} ended"
        changes += [(note.moment, 1), (end, -1)]
    running = most = 0
    # One that ends in the moment in which another begins makes room for it.
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


@pytest.fixture(params=["redis", "rabbit", "sqlite"])
def place(request: pytest.FixtureRequest) -> Place:
    """RabbitMQ can't keep limits: there they are in the result backend."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def test_limits_hold_over_three_workers_of_which_one_is_killed(place, start, client):
    limit = {"rate": f"{RATE}/s", "concurrency": SLOTS}
    place.settings = {"celeriac_limits": {"limited.work": limit}}
    app = client(place, "limited")
    for number in range(TASKS):
        app.work.delay(place.file(), str(number), 0.3)
    crew = [start(place, "-c", "6", app="limited", ready=False) for _ in range(3)]
    for worker in crew:
        worker.wait_ready(60)

    def holder() -> workers.Worker | None:
        """A worker that holds slots."""
        begun = of(place, "start")
        if len(begun) < TASKS // 4:
            return None
        ended = {(note.child, note.text) for note in of(place, "end")}
        running = {note.child for note in begun if (note.child, note.text) not in ended}
        return next((worker for worker in crew if running & set(worker.children())), None)

    dying = wait_until(holder, "a worker holds slots", 60)
    children = dying.children()
    dying.kill()
    wait_until(lambda: not dying.leftovers(), "its children are gone")
    last = max(note.moment for note in notes(place) if note.child in children)
    gone = dict.fromkeys(children, last + 0.001)

    def all_done() -> bool:
        return len({note.text for note in of(place, "end")}) == TASKS

    wait_until(all_done, "all have run", 150, lambda: f"{len(of(place, 'end'))} ended")
    assert most_at_once(place, gone) <= SLOTS
    starts = [note.moment for note in of(place, "start")]
    assert (len(starts) - 1) / (starts[-1] - starts[0]) <= RATE * 1.1
    # What comes late begins late: over some seconds that does not count.
    for seconds in (3, 6):
        for first in starts:
            within = [moment for moment in starts if first <= moment < first + seconds]
            # Starts are written down by tasks, which come to a processor sooner or later.
            assert len(within) <= RATE * seconds * 1.1 + 3, (first, seconds)
    if "redis" in place.broker:
        # Nothing of it is left when nobody is under a limit any more.
        assert all(worker.stop() == 0 for worker in crew if worker is not dying)


def test_a_limit_counts_by_arguments(redis_place, start, client):
    limits = {"limited.work": {"concurrency": 1, "key": "kwargs.user"}}
    redis_place.settings = {"celeriac_limits": limits}
    app = client(redis_place, "limited")
    for number in range(12):
        user = "ab"[number % 2]
        app.work.delay(redis_place.file(), f"{user}-{number}", 0.3, user=user)
    start(redis_place, "-c", "4", app="limited")
    wait_until(lambda: len(of(redis_place, "end")) == 12, "all have run", 60)
    running: set[str] = set()
    together = False
    for note in notes(redis_place):
        user = note.text[0]
        if note.what == "end":
            running.discard(user)
            continue
        assert user not in running, f"two of {user} at once"
        running.add(user)
        together = together or len(running) == 2
    assert together, "users do not wait for one another"


def test_a_queue_has_a_limit(redis_place, start, client):
    redis_place.settings = {"celeriac_limits": {"queue:scrape": {"concurrency": 1}}}
    app = client(redis_place, "limited")
    for number in range(5):
        app.work.apply_async((redis_place.file(), str(number), 0.2), queue="scrape")
    start(redis_place, "-c", "4", "-Q", "celery,scrape", app="limited")
    wait_until(lambda: len(of(redis_place, "end")) == 5, "all have run", 60)
    assert most_at_once(redis_place, {}) == 1


def test_what_waits_for_a_limit_is_not_in_the_workers_memory(
    redis_place, redis_server, start, client
):
    redis_place.settings = {"celeriac_limits": {"limited.work": {"rate": "1/m"}}}
    app = client(redis_place, "limited")
    for number in range(200):
        app.work.delay(redis_place.file(), str(number))
    worker = start(redis_place, "-c", "2", app="limited")
    app.other.delay(redis_place.file(), "free")
    wait_until(lambda: of(redis_place, "other"), "what is under no limit runs", 60)
    queue = redis_server.client(redis_place.redis_database)
    wait_until(lambda: queue.llen("celery") == 0, "all are in the delay store", 60)
    assert len(of(redis_place, "start")) == 1
    wait_until(
        lambda: (
            not [
                name
                for name in queue.hkeys("unacked")
                if not name.decode().startswith("celeriac-delayed:")
            ]
        ),
        "the worker holds none",
    )
    assert worker.stop() == 0


def test_a_task_is_unique_until_it_is_done(place, start, client):
    place.settings = {"celeriac_unique": {"limited.work": {"until": "done", "key": "args.1"}}}
    app = client(place, "limited")
    worker = start(place, "-c", "3", app="limited")
    first = app.work.delay(place.file(), "same", 2)
    wait_until(lambda: of(place, "start"), "it runs")
    others = [app.work.delay(place.file(), "same", seconds) for seconds in (0, 1)]
    different = app.work.delay(place.file(), "different")
    for result in others:
        with pytest.raises(TaskRevokedError, match="duplicate"):
            result.get(timeout=30)
    different.get(timeout=30)
    first.get(timeout=30)
    assert f"Discarding duplicate task: limited.work[{others[0].id}] is as {first.id}" in worker.log

    def may_again() -> bool:
        # Its claim is given back a little after its result is there.
        try:
            return app.work.delay(place.file(), "same").get(timeout=30) is None
        except TaskRevokedError:
            return False

    wait_until(may_again, "it may again")


def test_a_retry_is_no_duplicate_and_stays_unique(redis_place, start, client):
    redis_place.settings = {"celeriac_unique": {"limited.again": {}}}
    app = client(redis_place, "limited")
    start(redis_place, "-c", "2", app="limited")
    first = app.again.delay(redis_place.file(), "x")
    wait_until(lambda: first.state == "RETRY", "it is to be retried")
    with pytest.raises(TaskRevokedError, match="duplicate"):
        app.again.delay(redis_place.file(), "x").get(timeout=30)
    assert first.get(timeout=30) == "x"
    assert len(of(redis_place, "attempt")) == 2


def test_without_the_store_tasks_under_limits_wait_and_others_run(redis_place, start, client):
    redis_place.settings = {
        "celeriac_limits": {"limited.work": {"concurrency": 1}},
        # Nothing listens there.
        "celeriac_limit_store": "redis://127.0.0.1:1/0",
    }
    app = client(redis_place, "limited")
    worker = start(redis_place, "-c", "2", app="limited")
    app.work.delay(redis_place.file(), "limited")
    app.other.delay(redis_place.file(), "free")
    wait_until(lambda: of(redis_place, "other"), "what is under no limit runs")
    worker.wait_for("tasks under limits wait")
    assert of(redis_place, "start") == []
    assert worker.log.count("tasks under limits wait") == 1
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"celeriac_limits": {"limited.work": {"rates": "5/s"}}}, ['"rates"', 'write "rate"']),
        ({"celeriac_unique": {"limited.work": {"until": "end"}}}, ['"end"', '"done"']),
        (
            {
                "celeriac_limits": {"limited.work": {"rate": 1}},
                "celeriac_limit_store": "amqp://localhost",
            },
            ["celeriac_limit_store", "can't keep limits", "redis://"],
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_start(redis_place, settings, words):
    redis_place.settings = settings
    ended = workers.run("celeriac", "-A", "limited", "worker", **redis_place.variables())
    assert ended.returncode != 0
    for word in words:
        assert word in ended.stderr, ended.stderr
