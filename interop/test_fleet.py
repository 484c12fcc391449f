"""Workers and clients of both kinds on one broker, on Redis and on RabbitMQ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
from celery import chord
from conftest import Place

from harness import workers
from harness.control import TIMEOUT, ask, ask_until
from harness.wait import wait_until
from harness.workers import KIND, Worker


@dataclass
class Fleet:
    """A worker of Celery and one of the kind under test, who know of each other."""

    app: ModuleType
    place: Place
    theirs: Worker
    ours: Worker

    def both(self) -> tuple[Worker, Worker]:
        return self.theirs, self.ours


@pytest.fixture
def fleet(
    fanout_place: Place, start: Callable[..., Worker], client: Callable[..., ModuleType]
) -> Fleet:
    theirs, ours = (
        start(
            fanout_place, "-c", "2", "-Q", f"celery,only-{side}", app="controlled", kind=kind,
            alone=False, loglevel="DEBUG",
        )
        for side, kind in (("theirs", "celery"), ("ours", KIND))
    )  # fmt: skip
    return Fleet(client(fanout_place, "controlled"), fanout_place, theirs, ours)


def done_by(worker: Worker) -> int:
    return worker.log.count("] succeeded in ")


def test_clients_of_both_kinds_send_and_both_workers_run(fleet):
    """Each task once, whoever sent it."""
    file = fleet.place.file()
    for number in range(60):
        fleet.app.sleep.delay(0.05, file, f"python-{number}")
    for number in range(3):
        sent = workers.run(
            KIND, "-A", "controlled", "call", "controlled.sleep",
            "-a", f'[0.05, "{file}", "command-{number}"]', **fleet.place.variables(),
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr

    def ended() -> Counter[str]:
        return Counter(line for line in fleet.place.lines() if line.startswith("end"))

    wait_until(lambda: len(ended()) == 63, "all ran", 60)
    assert set(ended().values()) == {1}
    wait_until(lambda: sum(map(done_by, fleet.both())) == 63, "all are done")
    assert all(done_by(worker) > 0 for worker in fleet.both())


def test_they_greet_each_other(fleet):
    """Gossip, in both directions, and when one goes."""
    fleet.theirs.wait_for(f"{fleet.ours.node} joined the party")
    fleet.ours.wait_for("mingle: sync complete")
    fleet.ours.wait_for(f"{fleet.theirs.node} joined the party")
    assert fleet.ours.stop() == 0
    fleet.theirs.wait_for(f"{fleet.ours.node} left")


def test_one_hears_when_the_other_one_leaves_or_dies(fleet):
    fleet.ours.wait_for(f"{fleet.theirs.node} joined the party")
    assert fleet.theirs.stop() == 0
    fleet.ours.wait_for(f"{fleet.theirs.node} left")


def test_a_silent_death_is_noticed(fleet):
    fleet.ours.wait_for(f"{fleet.theirs.node} joined the party")
    fleet.theirs.kill()
    fleet.ours.wait_for(f"missed heartbeat from {fleet.theirs.node}")


def test_one_command_reaches_both(fleet):
    control = fleet.app.app.control
    names = {worker.node for worker in fleet.both()}
    replies = control.rate_limit("controlled.limited", "9/s", reply=True, timeout=3)
    assert {node for reply in replies for node in reply} == names
    control.revoke("revoked-everywhere")
    for worker in fleet.both():
        ask_until(fleet.app.app, worker.node, "revoked", lambda ids: "revoked-everywhere" in ids)
    for side in ("theirs", "ours"):
        result = fleet.app.add.apply_async(
            (1, 1), task_id="revoked-everywhere", queue=f"only-{side}"
        )
        wait_until(lambda: result.state == "REVOKED", "it is refused")


def test_what_one_runs_the_other_one_leaves_alone(fleet):
    """A revoke reaches both; only one has the task."""
    running = fleet.app.sleep.apply_async((600,), queue="only-ours")
    ask_until(fleet.app.app, fleet.ours.node, "active", lambda tasks: tasks)
    assert ask(fleet.app.app, fleet.theirs.node, "active") == []
    fleet.app.app.control.revoke(running.id, terminate=True, signal="KILL")
    ask_until(fleet.app.app, fleet.ours.node, "active", lambda tasks: not tasks)
    assert running.state == "REVOKED"


@pytest.mark.parametrize("body", ["only-theirs", "only-ours"])
def test_a_chord_runs_half_here_and_half_there(fleet, body):
    header = [
        fleet.app.add.si(number, 1).set(queue="only-ours" if number % 2 else "only-theirs")
        for number in range(10)
    ]
    result = chord(header, fleet.app.total.s().set(queue=body)).apply_async()
    assert result.get(timeout=TIMEOUT) == sum(range(1, 11))
    assert all(done_by(worker) >= 5 for worker in fleet.both())


@pytest.mark.parametrize("fails_at", ["only-theirs", "only-ours"])
def test_a_chord_fails_wherever_a_part_of_it_fails(fleet, fails_at):
    header = [
        fleet.app.add.si(1, 1).set(queue="only-theirs"),
        fleet.app.add.si(1, 1).set(queue="only-ours"),
        fleet.app.fail.si("in the header").set(queue=fails_at),
    ]
    result = chord(header, fleet.app.total.s()).apply_async()
    with pytest.raises(Exception, match="in the header"):
        result.get(timeout=TIMEOUT)


def test_a_chain_goes_from_one_to_the_other(fleet):
    steps = [
        fleet.app.add.s(1).set(queue="only-ours" if number % 2 else "only-theirs")
        for number in range(6)
    ]
    chain = fleet.app.add.si(0, 0)
    for step in steps:
        chain |= step
    assert chain.apply_async().get(timeout=TIMEOUT) == 6
