"""Tasks are given to a process ahead of time; none of them may be stuck there."""

from __future__ import annotations

from harness.wait import wait_until

#: In seconds, long enough that a process which is nearly done is given its next task, and the
#: parent wants it back when the first one takes a little longer.
LENGTHS = (0.03, 0.1)
TASKS = 1200


def test_tasks_of_any_length_all_run(redis_place, start, client):
    app = client(redis_place)
    with app.app.producer_or_acquire() as producer:
        for number in range(TASKS):
            seconds = LENGTHS[number % len(LENGTHS)]
            arguments = (seconds, redis_place.file(), str(number))
            app.sleep.apply_async(arguments, producer=producer)
    worker = start(redis_place, "-c", "24", loglevel="WARNING", ready=False)

    def ended() -> list[str]:
        return [line.split()[1] for line in redis_place.lines() if line.startswith("end")]

    wait_until(
        lambda: len(ended()) >= TASKS,
        "all have run",
        timeout=60,
        context=lambda: f"{len(ended())} of {TASKS}\n{worker.log}",
    )
    assert sorted(ended(), key=int) == [str(number) for number in range(TASKS)]
    assert worker.stop() == 0
