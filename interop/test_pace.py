"""Tasks are given to a process ahead of time: none of them may be stuck there, or lost."""

from __future__ import annotations

import os
import signal

from harness.wait import wait_until

#: In seconds, long enough that a process which is nearly done is given its next task, and the
#: parent wants it back when the first one takes a little longer.
LENGTHS = (0.03, 0.1)
TASKS = 1200


def test_tasks_of_any_length_all_run(redis_place, start, client):
    app = client(redis_place)
    send(app, redis_place, range(TASKS), LENGTHS)
    worker = start(redis_place, "-c", "24", loglevel="WARNING", ready=False)
    wait_for_all(redis_place, worker, TASKS)


def test_a_process_that_is_starved_before_it_reads_its_tasks_loses_none(
    redis_place, redis_server, start, client
):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1")
    # That they are short must be known before some are given ahead.
    send(app, redis_place, range(50))
    wait_until(lambda: len(ended(redis_place)) == 50, "all have run")
    # All at once, so that there are several to give.
    send(app, redis_place, range(50, 60), queue="staged")
    (child,) = worker.children()
    os.kill(child, signal.SIGSTOP)
    redis_server.client(redis_place.redis_database).rename("staged", "celery")
    # It has a task in its channel, and the parent believes that it runs: it takes back what is
    # behind, and what nobody can run goes back to the queue.
    queue = redis_server.client(redis_place.redis_database)
    wait_until(lambda: queue.llen("celery") == 9, "what is behind is taken back")
    os.kill(child, signal.SIGCONT)
    wait_for_all(redis_place, worker, 60)


def send(app, place, numbers, lengths=(0.0,), **options) -> None:
    with app.app.producer_or_acquire() as producer:
        for number in numbers:
            arguments = (lengths[number % len(lengths)], place.file(), str(number))
            app.sleep.apply_async(arguments, producer=producer, **options)


def ended(place) -> list[str]:
    return [line.split()[1] for line in place.lines() if line.startswith("end")]


def wait_for_all(place, worker, count) -> None:
    wait_until(
        lambda: len(ended(place)) >= count,
        "all have run",
        timeout=60,
        context=lambda: f"{len(ended(place))} of {count}\n{worker.log[-3000:]}",
    )
    assert sorted(ended(place), key=int) == [str(number) for number in range(count)]
    assert worker.stop() == 0
