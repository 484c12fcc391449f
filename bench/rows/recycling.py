"""``--max-tasks-per-child=1``: each task in a child of its own."""

from __future__ import annotations

from comparison.drain import drain
from comparison.figure import Better, Figure
from comparison.place import Place

_TASKS_A_SECOND = 1000


class Recycling:
    name = "recycling"
    broker = "redis"
    repetitions = (3, 1)

    def figures(self) -> list[Figure]:
        what = "one task per child, c=2"
        return [
            Figure("rate", what, "tasks/s", Better.MORE, 20),
            Figure("main", f"{what}: CPU a task, main", "µs", Better.LESS),
            Figure("children", f"{what}: CPU a task, children", "µs", Better.LESS),
        ]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        seconds = place.pick(15, 6)
        count = int(seconds * _TASKS_A_SECOND)
        with place.worker(kind, "-c", "2", "--max-tasks-per-child=1") as worker:
            place.warm_up(worker, 4)
            place.backlog.stage("ignored", count, ignore_result=True)
            drained = drain(place, worker, count, seconds)
        return {
            "rate": drained.rate,
            "main": drained.micros(drained.used.main),
            "children": drained.micros(drained.used.children),
        }
