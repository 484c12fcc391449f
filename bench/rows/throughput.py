"""No-op tasks a second, and the CPU time that each costs.

A backlog of one kind of task is drained (see :mod:`comparison.drain`). The task writes eight bytes
to a file and returns. With results ignored nothing is stored; with results stored, each result
goes to Redis, whatever the broker is. With events the worker sends one for each step of a task.
"""

from __future__ import annotations

from comparison.drain import drain
from comparison.figure import Better, Figure
from comparison.place import Place

#: More than any worker gets through in the measured time.
_TASKS_A_SECOND = {"redis": 12_000, "rabbitmq": 10_000}


class Throughput:
    repetitions = (5, 1)

    def __init__(
        self,
        results: str,
        concurrency: int,
        factor: float,
        *,
        broker: str = "redis",
        main_factor: float = 20,
        events: bool = False,
    ) -> None:
        """``factor`` is asked for of the rate, ``main_factor`` of the CPU time of main."""
        prefix = "" if broker == "redis" else f"{broker}-"
        self.name = f"{prefix}{'events' if events else results}-{concurrency}"
        self.broker = broker
        self._task = results
        self._concurrency = concurrency
        self._factor = factor
        self._main_factor = main_factor
        self._options = ["-c", str(concurrency), *(["-E"] if events else [])]

    def figures(self) -> list[Figure]:
        what = f"no-op, results {self._task}, c={self._concurrency}"
        if self.broker != "redis":
            what = f"{self.broker}: {what}"
        if "-E" in self._options:
            what += ", events"
        micros = f"{what}: CPU a task"
        return [
            Figure("rate", what, "tasks/s", Better.MORE, self._factor),
            Figure("main", f"{micros}, main", "µs", Better.LESS, self._main_factor),
            Figure("children", f"{micros}, children", "µs", Better.LESS),
            Figure("broker", f"{micros}, broker", "µs", Better.LESS),
        ]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        seconds = place.pick(6, 3)
        count = int(seconds * _TASKS_A_SECOND[self.broker])
        with place.worker(kind, *self._options) as worker:
            place.warm_up(worker, 50 * self._concurrency, self._task)
            worker.wait_for_children(self._concurrency)
            place.backlog.stage(self._task, count, ignore_result=self._task == "ignored")
            drained = drain(place, worker, count, seconds)
        return {
            "rate": drained.rate,
            "main": drained.micros(drained.used.main),
            "children": drained.micros(drained.used.children),
            "broker": drained.micros(drained.used.broker),
        }
