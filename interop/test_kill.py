"""kill -9 of anything at any time: nothing is lost, nothing is left behind."""

from __future__ import annotations

import os
import random
import signal

import pytest

from harness.wait import TimedOut, wait_until

TASKS = 2000


@pytest.mark.timeout(480)
def test_random_kills_while_safe_tasks_run(place, start, client):
    app = client(place)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it when the test fails
    choose = random.Random(seed)
    with app.app.producer_or_acquire() as producer:
        for number in range(TASKS):
            app.sleep_safe.apply_async((0.005, place.file(), str(number)), producer=producer)
    started = [start(place, "-c", "4", loglevel="WARNING", ready=False)]

    def ended() -> set[str]:
        return {line.split()[1] for line in place.lines() if line.startswith("end")}

    kills = 0
    while True:
        try:
            wait_until(lambda: len(ended()) == TASKS, "done", timeout=choose.uniform(0.05, 0.6))
            break
        except TimedOut:
            pass
        worker = started[-1]
        assert kills < 300, f"{len(ended())} of {TASKS} after {kills} kills\n{worker.log}"
        what = choose.choice(["child", "child", "child", "zygote", "main", "parent"])
        if what == "parent" or worker.process.poll() is not None:
            worker.kill()
            started.append(start(place, "-c", "4", loglevel="WARNING", ready=False))
        elif what == "child":
            children = worker.children()
            if children:
                kill(choose.choice(children))
        else:
            kill(worker.host(what))
        kills += 1
    print(f"{kills} kills, {len(started)} workers")
    assert started[-1].stop(timeout=60) == 0
    for worker in started:
        wait_until(lambda: not worker.leftovers(), f"nothing is left of {worker.name}")


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def test_nothing_is_left_of_a_killed_worker(place, start, client):
    app = client(place)
    worker = start(place, "-c", "3")
    for number in range(2):
        app.sleep.delay(60, place.file(), str(number))
    app.with_grandchild.delay(place.file())
    wait_until(lambda: len(place.lines()) == 3, "all run")
    assert len(worker.leftovers()) >= 6
    worker.kill()
    wait_until(lambda: not worker.leftovers(), "nothing is left", timeout=10)


def test_a_killed_zygote_is_replaced(place, start, client):
    app = client(place)
    worker = start(place, "-c", "2")
    before = worker.host("zygote")
    result = app.sleep_safe.delay(1, place.file(), "x")
    wait_until(lambda: place.lines(), "it runs")
    kill(before)
    assert result.get(timeout=30) == "x"
    assert worker.host("zygote") != before
    assert app.add.delay(1, 2).get(timeout=20) == 3
    assert worker.stop() == 0


def test_a_killed_main_is_replaced(place, start, client):
    app = client(place)
    worker = start(place, "-c", "1")
    before = worker.host("main")
    kill(before)
    # What needs main: a failure that no child could store.
    result = app.die.delay()
    wait_until(lambda: result.state == "FAILURE", "main stored it")
    assert worker.host("main") != before
    assert worker.stop() == 0
