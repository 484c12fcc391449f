"""One broker, one fleet, one plan: from the first message to the audit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import processes, workers
from harness.wait import wait_until
from proof import audit, plan
from proof.audit import Fault, Findings, Fleet
from proof.broker import BROKERS, Broker, left_in
from proof.chaos import Chaos
from proof.clock import Clock
from proof.disk import Disk
from proof.fleet import Slot, app_variables
from proof.line import read_marks, read_published
from proof.namespace import Namespace, namespace

PRODUCERS = 3
#: Of the time, what is for the chaos: the rest is for the start and for what is left then.
CHAOS = 0.75
#: Seconds in which everything has to be done once the chaos is over.
DEADLINE = 150.0
#: How long nothing may be left before that is believed: longer than any countdown, as nothing shows
#: what Celery's workers have fetched from SQLite and hold.
QUIET = 5.0
STOP = 30.0

Say = Callable[[str], None]


@dataclass
class Trial:
    broker: str
    #: Which worker is examined: celeriac or celery.
    worker: str
    seed: int
    seconds: float
    #: What else the machine had to do: its load average when the trial began.
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    faults: list[Fault] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    #: Lost tasks that a Celery worker was the last to have, by the broker's own records.
    lost_by_celery: set[str] = field(default_factory=set)
    #: What was there to be done, but this machine or user can't.
    impossible: list[str] = field(default_factory=list)
    #: What must not be, in words.
    troubles: list[str] = field(default_factory=list)

    @property
    def lost(self) -> list[str]:
        """What no Celery worker of the fleet lost."""
        if self.worker == "celery":
            return self.findings.lost
        return [task for task in self.findings.lost if task not in self.lost_by_celery]

    @property
    def kills(self) -> int:
        return sum(fault.is_kill for fault in self.faults)

    def repeats(self, *reasons: str) -> int:
        return sum(self.findings.reasons()[reason] for reason in reasons)

    @property
    def has_failed(self) -> bool:
        bad = self.repeats(audit.FINISHED, audit.UNEXPLAINED)
        return bool(self.lost or bad or self.troubles or not self.findings.confirmed)


def trial(
    broker_name: str,
    worker: str,
    seed: int,
    seconds: float,
    folder: Path,
    say: Say,
    grace: float = audit.GRACE,
) -> Trial:
    result = Trial(broker_name, worker, seed, seconds)
    with contextlib.ExitStack() as stack:
        disk = Disk(folder / "disk")
        stack.callback(disk.close)
        broker = BROKERS[broker_name](disk)
        stack.callback(broker.close)
        wire = namespace() if broker.port else None
        if wire:
            stack.callback(wire.close)
        kinds = _kinds(result, broker, disk, wire, say)
        (folder / "books").mkdir()
        producers = _Producers(folder, broker, seed)
        stack.callback(producers.kill)
        slots: list[Slot] = []
        clock = Clock(folder)
        stack.callback(clock.close)
        stack.callback(_close, slots)
        for number, kind in enumerate([worker, worker, "celery", "celery"]):
            place = wire if number == 0 else None
            slots.append(Slot(kind, number, folder, broker, place, clock if number == 1 else None))
        for slot in slots:
            wait_until(slot.worker.children, f"{slot.name} has children", 60)
        steps = plan.plan(seed, seconds * CHAOS, kinds)
        chaos = Chaos(slots, broker, disk, steps)
        _attack(chaos, slots, result, seconds * CHAOS, folder, say)
        producers.stop()
        _finish(chaos, slots, broker, result, say)
        for slot in slots[:2]:
            status = slot.worker.stop(timeout=STOP) if worker == "celeriac" else 0
            if status:
                result.troubles.append(f"{slot.name} ended with status {status}")
        result.faults = chaos.faults
        (folder / "faults").write_text("".join(f"{fault}\n" for fault in result.faults))
        result.troubles += [f"ended by itself: {text}" for text in chaos.ended]
        _judge(result, slots, broker, folder, grace)
        _check(result, slots)
    return result


def _close(slots: list[Slot]) -> None:
    for slot in slots:
        slot.close()


def _kinds(result: Trial, broker: Broker, disk: Disk, wire: Namespace | None, say: Say) -> set[str]:
    """The faults that can be done here."""
    kinds = set(plan.RATES) - broker.without
    if result.worker == "celery":
        # It has no such process.
        kinds.discard("kill main")
    elif broker.is_lost_with_celery:
        # What is examined is not what Celery's workers lose.
        kinds -= {"kill Celery's child", "kill Celery's worker"}
    if broker.port and not wire:
        result.impossible.append("network namespace down")
    if not disk.can_be_full:
        result.impossible.append("disk full")
    for kind in result.impossible:
        say(f"NOT POSSIBLE HERE: {kind} (only root can, on Linux)")
    return kinds - set(result.impossible)


def _attack(
    chaos: Chaos, slots: list[Slot], result: Trial, seconds: float, folder: Path, say: Say
) -> None:
    begun = told = time.monotonic()
    while time.monotonic() - begun < seconds:
        chaos.turn()
        if time.monotonic() - told > 10:
            told = time.monotonic()
            kills = sum(fault.is_kill for fault in chaos.faults)
            say(f"  {told - begun:.0f} s: {_ends(folder)} ended, {kills} kills")
        time.sleep(0.02)


def _ends(folder: Path) -> int:
    return sum(file.read_bytes().count(b"end ") for file in (folder / "books").iterdir())


def _finish(chaos: Chaos, slots: list[Slot], broker: Broker, result: Trial, say: Say) -> None:
    """Undoes what lasts, and waits until nothing is left in the broker."""
    while chaos.turn(only_undo=True):
        time.sleep(0.05)
    # Celery's pool is stuck when a child was killed that held the lock of the pool's queue: such a
    # worker fetches for ever and runs nothing.
    stuck = [slot for slot in slots if slot.kind == "celery"]
    chaos.dismiss(stuck, are_replaced=result.worker == "celery")
    deadline = time.monotonic() + DEADLINE
    quiet: float | None = None
    while True:
        chaos.turn(only_undo=True)
        now = time.monotonic()
        left = left_in(broker)
        quiet = (quiet or now) if left == 0 else None
        if quiet and now - quiet > QUIET:
            return
        if now > deadline:
            result.troubles.append(f"messages are left after {DEADLINE:.0f} s: {left}")
            return
        time.sleep(0.25)


def _judge(result: Trial, slots: list[Slot], broker: Broker, folder: Path, grace: float) -> None:
    published = [line for file in folder.glob("published-*") for line in read_published(file)]
    books = sorted((folder / "books").iterdir())
    names = [name for slot in slots if slot.kind == "celery" for _, name, _ in slot.started]
    result.findings = audit.audit(
        published,
        (mark for book in books for mark in read_marks(book)),
        result.faults,
        buried=_dead_letters(broker) if result.worker == "celeriac" else frozenset(),
        fleet=Fleet(frozenset(names), broker.visibility_timeout),
        grace=grace,
    )
    result.lost_by_celery = broker.lost_by_celery(result.findings.lost)


def _dead_letters(broker: Broker) -> Set[str]:
    """The ids of the tasks that an operator finds with ``celeriac dlq``."""
    variables: dict[str, Any] = app_variables(broker.url("127.0.0.1", broker.port), broker)
    listed = workers.run("celeriac", "-A", "entries", "dlq", "list", "--json", **variables)
    if listed.returncode:
        raise RuntimeError(f"celeriac dlq list: {listed.stderr}")
    return {json.loads(line)["id"] for line in listed.stdout.splitlines()}


def _check(result: Trial, slots: list[Slot]) -> None:
    for slot in slots:
        if slot.kind == "celeriac":
            for _, name, worker in slot.started:
                if "panicked" in worker.log:
                    result.troubles.append(f"{name} panicked: {worker.log_file}")


class _Producers:
    """Celery clients in processes of their own."""

    def __init__(self, folder: Path, broker: Broker, seed: int) -> None:
        variables = app_variables(broker.url("127.0.0.1", broker.port), broker)
        self._programs = []
        for number in range(PRODUCERS):
            words = [sys.executable, "-m", "proof.producer", str(folder / f"published-{number}")]
            with open(folder / f"producer-{number}.log", "wb") as log:
                self._programs.append(
                    subprocess.Popen(
                        [*words, str(seed * PRODUCERS + number)],
                        env=workers.environment(**variables),
                        stdout=log,
                        stderr=log,
                        preexec_fn=processes.die_with_parent,
                    )
                )

    def stop(self) -> None:
        """They end what they are about and write it down."""
        for program in self._programs:
            program.terminate()
        for program in self._programs:
            assert program.wait(60) == 0, "a producer failed: see its log"

    def kill(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait()
