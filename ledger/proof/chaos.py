"""Carries out a plan: does each fault when it is due, undoes it, and writes down what it hit."""

from __future__ import annotations

import heapq
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from harness import processes
from proof.audit import Fault
from proof.broker import Broker
from proof.disk import Disk
from proof.fleet import Slot, among
from proof.plan import Step

#: Seconds after which a step is tried again that found nobody to hit.
AGAIN = 0.3
#: Seconds that a broker has to itself after it was hit: on a busy machine its start takes so long
#: that the next step of the plan waits for it.
REST = 5.0
#: Seconds for a warm shutdown.
DISMISSAL = 10.0
#: Seconds that a clock jumps at most, forwards or backwards: longer than a lease. What retries
#: meanwhile is due by that clock, so that a jump of an hour would make the run last as long.
JUMP = 30.0

#: Undoes a fault; what of it the audit has to know.
Undo = Callable[[], list[Fault]]


class Chaos:
    def __init__(self, slots: list[Slot], broker: Broker, disk: Disk, steps: list[Step]) -> None:
        self._slots = slots
        self._broker = broker
        self._disk = disk
        self._order = itertools.count()
        self._due: list[tuple[float, int, Step | Undo]] = []
        for step in steps:
            self._later(step.at, step)
        #: Faults that are over.
        self.faults: list[Fault] = []
        #: celeriac workers that ended though nobody killed them, with the end of their log.
        self.ended: list[str] = []
        self._broker_is_hit = False
        # A thread that stays: a server dies with the thread that started it.
        self._starter = ThreadPoolExecutor(1)
        self._hit: set[str] = set()

    def _later(self, seconds: float, what: Step | Undo) -> None:
        due = time.monotonic() + seconds
        heapq.heappush(self._due, (due, next(self._order), what))

    def turn(self, *, only_undo: bool = False) -> bool:
        """Does what is due; whether anything is left to be done."""
        self._replace_the_dead()
        # What is put off while this goes on is not for this turn.
        now, due = time.monotonic(), []
        while self._due and self._due[0][0] <= now:
            due.append(heapq.heappop(self._due)[2])
        for what in due:
            if not isinstance(what, Step):
                self.faults += what()
            elif not only_undo and not self._do(what):
                self._later(AGAIN, what)
        return any(not (only_undo and isinstance(what, Step)) for _, _, what in self._due)

    def _replace_the_dead(self) -> None:
        for slot in self._slots:
            status = slot.worker.process.poll()
            if status is None:
                continue
            now = time.monotonic()
            worker = slot.worker
            self.faults.append(Fault(f"{slot.kind} ended by itself", now, now, slot.name))
            if slot.kind == "celeriac":
                self.ended.append(f"{slot.name} with status {status}:\n{worker.log[-2000:]}")
            slot.start()

    def dismiss(self, slots: list[Slot], *, are_replaced: bool) -> None:
        """Ends these workers in order, and what does not end (a stuck pool) with force."""
        for slot in slots:
            slot.worker.send(signal.SIGTERM)
        deadline = time.monotonic() + DISMISSAL
        for slot in slots:
            try:
                slot.worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                for pid in slot.tree():
                    _signal(pid, signal.SIGKILL)
                slot.worker.process.wait()
                kind = f"kill {slot.kind} worker that did not end"
                self.faults.append(Fault(kind, now, now, slot.name))
            if are_replaced:
                slot.start()
        if not are_replaced:
            self._slots = [slot for slot in self._slots if slot not in slots]

    def _do(self, step: Step) -> bool:
        """Whether there was somebody to hit."""
        hit: Callable[[Step], bool] = {
            "kill child": lambda step: self._kill_child(step, theirs=False),
            "kill Celery's child": lambda step: self._kill_child(step, theirs=True),
            "kill worker": lambda step: self._kill_worker(step, theirs=False, tree=False),
            "kill Celery's worker": lambda step: self._kill_worker(step, theirs=True, tree=False),
            "kill worker and all below it": (
                lambda step: self._kill_worker(step, theirs=False, tree=True)
            ),
            "kill main": self._kill_main,
            "kill broker": self._kill_broker,
            "cut": self._cut,
            "stall": self._stall,
            "network namespace down": self._pull,
            "disk full": self._fill_disk,
            "stop": self._stop,
            "clock jump": self._set_clock,
        }[step.kind]
        return hit(step)

    def _of(self, step: Step, theirs: bool) -> Slot | None:
        """A slot of Celery's workers in the fleet, or of those that are examined: the first two."""
        own = self._slots[2:] if theirs else self._slots[:2]
        return among(own, step.lot, lambda slot: bool(slot.worker.children()))

    def _kill_child(self, step: Step, theirs: bool) -> bool:
        slot = self._of(step, theirs)
        found = slot.worker.children() if slot else []
        children = [pid for pid in found if processes.is_running(pid)]
        if not slot or not children:
            return False
        pid = children[int(step.lot * 1000) % len(children)]
        now = time.monotonic()
        if not _signal(pid, signal.SIGKILL):
            return False
        self.faults.append(Fault(step.kind, now, now, slot.name, pid))
        return True

    def _kill_worker(self, step: Step, theirs: bool, tree: bool) -> bool:
        slot = self._of(step, theirs)
        if not slot:
            return False
        worker = slot.worker
        pids = slot.tree() if tree else [worker.pid]
        now = time.monotonic()
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        worker.process.wait()
        self.faults.append(Fault(step.kind, now, now, slot.name))
        slot.start()
        return True

    def _kill_main(self, step: Step) -> bool:
        slot = among(self._slots, step.lot, lambda slot: slot.main() is not None)
        pid = slot.main() if slot else None
        if not slot or pid is None:
            return False
        now = time.monotonic()
        if not _signal(pid, signal.SIGKILL):
            return False
        self.faults.append(Fault(step.kind, now, now, slot.name, pid))
        return True

    def _kill_broker(self, step: Step) -> bool:
        if self._broker_is_hit:
            return False
        self._broker_is_hit = True
        begun = time.monotonic()
        self._broker.kill()
        self._later(step.lasts, lambda: self._start_broker(step.kind, begun))
        return True

    def _start_broker(self, kind: str, begun: float) -> list[Fault]:
        """Lets the broker start, which takes its time, while other things are done."""
        starting = self._starter.submit(self._broker.start)

        def look() -> list[Fault]:
            if not starting.done():
                self._later(AGAIN, look)
                return []
            starting.result()
            self._later(REST, self._let_broker_be_hit)
            return [Fault(kind, begun, time.monotonic())]

        return look()

    def _let_broker_be_hit(self) -> list[Fault]:
        self._broker_is_hit = False
        return []

    def _fill_disk(self, step: Step) -> bool:
        if self._broker_is_hit:
            return False
        self._broker_is_hit = True
        begun = time.monotonic()
        self._disk.fill(self._broker.full)

        def undo() -> list[Fault]:
            self._disk.free()
            if not self._broker.is_up():
                return self._start_broker(step.kind, begun)
            self._later(REST, self._let_broker_be_hit)
            return [Fault(step.kind, begun, time.monotonic())]

        self._later(step.lasts, undo)
        return True

    def _cut(self, step: Step) -> bool:
        slot = among(self._slots, step.lot, lambda slot: slot.proxy is not None)
        if not slot or not slot.proxy:
            return False
        now = time.monotonic()
        if not slot.proxy.cut():
            return False
        self.faults.append(Fault(step.kind, now, now, slot.name))
        return True

    def _stall(self, step: Step) -> bool:
        slot = self._unhit(step, lambda slot: slot.proxy is not None)
        proxy = slot.proxy if slot else None
        if not slot or not proxy:
            return False
        proxy.stall()
        self._over_later(step, slot, proxy.resume)
        return True

    def _pull(self, step: Step) -> bool:
        slot = self._unhit(step, lambda slot: slot.namespace is not None)
        namespace = slot.namespace if slot else None
        if not slot or not namespace:
            return False
        namespace.pull()
        self._over_later(step, slot, namespace.plug)
        return True

    def _stop(self, step: Step) -> bool:
        """The parent alone, or all of it, as a machine that sleeps."""
        examined = self._slots[:2]
        slot = self._unhit(step, lambda slot: slot in examined and bool(slot.worker.children()))
        if not slot:
            return False
        pids = slot.tree() if step.lot * 1000 % 2 < 1 else [slot.worker.pid]
        for pid in pids:
            _signal(pid, signal.SIGSTOP)

        def go_on() -> None:
            for pid in pids:
                _signal(pid, signal.SIGCONT)

        self._over_later(step, slot, go_on, is_of_worker=True)
        return True

    def _set_clock(self, step: Step) -> bool:
        slot = self._unhit(step, lambda slot: slot.clock is not None)
        clock = slot.clock if slot else None
        if not slot or not clock:
            return False
        clock.set((step.lot * 2 - 1) * JUMP)
        self._over_later(step, slot, lambda: clock.set(0))
        return True

    def _unhit(self, step: Step, fits: Callable[[Slot], bool]) -> Slot | None:
        """A slot on which no such fault lasts now."""
        return among(
            self._slots,
            step.lot,
            lambda slot: fits(slot) and f"{step.kind} {id(slot)}" not in self._hit,
        )

    def _over_later(
        self, step: Step, slot: Slot, undo: Callable[[], None], *, is_of_worker: bool = False
    ) -> None:
        """Lets a fault of one slot last. It hits those as well who start there meanwhile, unless
        it is of the present worker alone."""
        present = [slot.name]
        begun, mark = time.monotonic(), f"{step.kind} {id(slot)}"
        self._hit.add(mark)

        def finish() -> list[Fault]:
            undo()
            self._hit.discard(mark)
            now = time.monotonic()
            hit = present if is_of_worker else slot.since(begun)
            return [Fault(step.kind, begun, now, name) for name in hit]

        self._later(step.lasts, finish)


def _signal(pid: int, number: int) -> bool:
    """Whether it ran until then."""
    if not processes.is_running(pid):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
