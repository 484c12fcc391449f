"""celeriac's and Celery's workers on one Redis queue."""

from __future__ import annotations

import collections
import signal
import subprocess

import pytest

from harness import workers
from harness.wait import stays, wait_until

TASKS = 5000


@pytest.fixture
def fleet(redis_place, redis_server, start, client):
    """A client, and a function that starts a worker of a kind."""
    app = client(redis_place)
    app.place = redis_place
    app.redis = redis_server.client(redis_place.redis_database)
    app.start = lambda kind, *arguments, **options: start(
        redis_place, *arguments, kind=kind, **options
    )
    return app


def waiting(fleet) -> int:
    return fleet.redis.llen("celery")


def unacked(fleet) -> int:
    return fleet.redis.hlen("unacked")


def send_sleeps(fleet, count: int, seconds: float) -> None:
    task = fleet.sleep_safe
    with fleet.app.producer_or_acquire() as producer:
        for number in range(count):
            task.apply_async((seconds, fleet.place.file(), str(number)), producer=producer)


def ended(fleet) -> collections.Counter[str]:
    lines = fleet.place.lines()
    return collections.Counter(line.split()[1] for line in lines if line.startswith("end"))


def received(worker) -> int:
    return worker.log.count(" received")


def test_both_take_part_and_each_task_runs_once(fleet):
    send_sleeps(fleet, TASKS, 0)
    assert waiting(fleet) == TASKS
    ours, theirs = fleet.start("celeriac", "-c", "2", ready=False), fleet.start("celery", "-c", "2")
    wait_until(lambda: len(ended(fleet)) == TASKS, "all tasks ran", timeout=120)
    wait_until(lambda: unacked(fleet) == 0, "all are acknowledged")
    assert waiting(fleet) == 0
    assert set(ended(fleet).values()) == {1}
    # Ours is much faster: with a queue that is empty by now the other one had little to do.
    if not received(theirs):
        send_sleeps(fleet, 200, 0.05)
        wait_until(lambda: len(ended(fleet)) == 200 and received(theirs), "theirs takes part")
    assert received(ours) > 0 and received(theirs) > 0


@pytest.mark.parametrize("victim", ["celeriac", "celery"])
def test_the_rest_completes_when_one_is_killed(fleet, victim):
    # Celery's worker restores what a killed one had when it has been unacknowledged for long. It
    # looks for that every 100 seconds unless told otherwise.
    fleet.place.transport_options = {
        "visibility_timeout": 5,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    fleet_workers = {
        kind: fleet.start(
            kind,
            "-c",
            "2",
            variables=fleet.place.variables(),
        )
        for kind in ("celeriac", "celery")
    }
    send_sleeps(fleet, 300, 0.02)
    wait_until(lambda: received(fleet_workers[victim]) > 10, "the victim works")
    fleet_workers[victim].kill()
    wait_until(
        lambda: len(ended(fleet)) == 300,
        "all tasks ran",
        timeout=90,
        context=lambda: (
            f"{len(ended(fleet))} ran, {waiting(fleet)} wait, {unacked(fleet)} are taken"
        ),
    )
    wait_until(lambda: unacked(fleet) == 0, "all are acknowledged", timeout=60)
    assert waiting(fleet) == 0


def test_the_numbers_tell_the_truth(fleet):
    worker = fleet.start("celeriac", "-c", "2")
    send_sleeps(fleet, 10, 3)
    wait_until(lambda: unacked(fleet) == 2, "as many as there are processes are taken")
    stays(lambda: (waiting(fleet), unacked(fleet)) == (8, 2), "the others wait", 0.5)
    assert fleet.redis.zcard("unacked_index") == 2
    purged = workers.run("celery", "-A", "basic", "purge", "-f", **fleet.place.variables())
    assert "Purged 8 messages" in purged.stdout
    assert (waiting(fleet), unacked(fleet)) == (0, 2)
    wait_until(lambda: len(ended(fleet)) == 2, "what ran is done")
    wait_until(lambda: unacked(fleet) == 0, "and acknowledged")
    assert worker.stop() == 0


def test_a_warm_shutdown_leaves_what_has_an_eta_in_the_store(fleet):
    worker = fleet.start("celeriac", "-c", "1")
    for number in range(5):
        fleet.sleep.apply_async((0, fleet.place.file(), str(number)), countdown=3600)
    fleet.sleep.delay(1.5, fleet.place.file(), "running")
    wait_until(lambda: unacked(fleet) == 5 and fleet.place.lines(), "all are taken")
    assert worker.stop() == 0
    assert fleet.place.lines() == ["start running", "end running"]
    # What waits for its time is in the delay store, whoever lives.
    assert (waiting(fleet), unacked(fleet)) == (0, 5)
    assert all(b'"redelivered": true' not in item for item in fleet.redis.hvals("unacked"))


def test_a_paused_worker_keeps_its_messages_for_a_while(fleet):
    """SIGSTOP, a suspended machine: shorter than what counts as death, nobody takes anything."""
    ours = fleet.start("celeriac", "-c", "1")
    other = fleet.start("celeriac", "-c", "1")
    fleet.sleep_late.delay(7, fleet.place.file(), "0")
    wait_until(lambda: fleet.place.lines(), "it runs")
    holder = ours if received(ours) else other
    holder.send(signal.SIGSTOP)
    stays(lambda: received(ours) + received(other) == 1, "nobody else takes it", 5)
    holder.send(signal.SIGCONT)
    wait_until(lambda: len(ended(fleet)) == 1, "it is done")
    wait_until(lambda: unacked(fleet) == 0, "and acknowledged")
    assert fleet.place.lines() == ["start 0", "end 0"]


def test_redis_is_restarted_and_consuming_resumes(tmp_path, start, client):
    from conftest import Place

    from harness.servers import RedisServer

    folder = tmp_path / "own-redis"
    folder.mkdir()
    server = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    try:
        url = f"redis://127.0.0.1:{server.port}"
        place = Place(f"{url}/1", f"db+sqlite:///{tmp_path}/results.db", tmp_path)
        app = client(place)
        worker = start(place, "-c", "1")
        for round in range(3):
            result = app.sleep_late.delay(1.5, place.file(), str(round))
            wait_until(lambda: f"start {round}" in place.lines(), "it runs")
            server.stop()
            server.start()
            assert result.get(timeout=30) == str(round)
            assert app.add.delay(round, 1).get(timeout=30) == round + 1
        assert place.lines() == [f"{what} {n}" for n in range(3) for what in ("start", "end")]
        assert "Connection to broker lost" in worker.log
        wait_until(lambda: server.client(1).hlen("unacked") == 0, "all are acknowledged")
    finally:
        server.stop()


def test_a_second_broker_takes_over(tmp_path, start, client):
    from conftest import Place

    from harness.servers import RedisServer

    servers = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        servers.append(RedisServer(folder))
    try:
        urls = [f"redis://127.0.0.1:{server.port}/0" for server in servers]
        place = Place(";".join(urls), f"db+sqlite:///{tmp_path}/results.db", tmp_path)
        worker = start(place, "-c", "1")
        servers[0].stop()
        worker.wait_for(f"Connected to redis://:**@127.0.0.1:{servers[1].port}")
        place.broker = urls[1]
        assert client(place).add.delay(1, 2).get(timeout=20) == 3
    finally:
        for server in servers:
            server.stop()


def test_scripts_of_others_see_the_queue(fleet):
    """LLEN by a program that knows nothing of either worker."""
    send_sleeps(fleet, 3, 0)
    port = fleet.place.broker.split(":")[2].split("/")[0]
    database = str(fleet.place.redis_database)
    answer = subprocess.run(
        ["redis-cli", "-p", port, "-n", database, "llen", "celery"], capture_output=True, text=True
    )
    assert answer.stdout.strip() == "3"
