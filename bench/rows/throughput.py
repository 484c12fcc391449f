"""No-op tasks a second, and the CPU time that each costs.

A backlog of one kind of task is drained (see :mod:`comparison.drain`). The task writes eight bytes
to a file and returns. With results ignored nothing is stored; with results stored, each result
goes to the same Redis server.
"""

from __future__ import annotations

from comparison.drain import drain
from comparison.figure import Better, Figure
from comparison.place import Place

#: More than any worker gets through in the measured time.
_TASKS_A_SECOND = 12_000
#: What the issue of the worker asks for of the main process, results ignored.
_MAIN_FACTOR = 20


class Throughput:
    repetitions = (5, 1)

    def __init__(self, results: str, concurrency: int, factor: float) -> None:
        self.name = f"{results}-{concurrency}"
        self._task = results
        self._concurrency = concurrency
        self._factor = factor

    def figures(self) -> list[Figure]:
        what = f"no-op, results {self._task}, c={self._concurrency}"
        micros = f"{what}: CPU a task"
        return [
            Figure("rate", what, "tasks/s", Better.MORE, self._factor),
            Figure("main", f"{micros}, main", "µs", Better.LESS, _MAIN_FACTOR),
            Figure("children", f"{micros}, children", "µs", Better.LESS),
            Figure("broker", f"{micros}, Redis", "µs", Better.LESS),
        ]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        seconds = place.pick(6, 3)
        count = int(seconds * _TASKS_A_SECOND)
        with place.worker(kind, "-c", str(self._concurrency)) as worker:
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
