"""Tasks with an argument of 1 MiB."""

from __future__ import annotations

from comparison.drain import drain
from comparison.figure import Better, Figure
from comparison.place import Place

_ARGUMENT = "x" * (1 << 20)


class Large:
    name = "large"
    broker = "redis"
    repetitions = (3, 1)

    def figures(self) -> list[Figure]:
        what = "arguments of 1 MiB, c=2"
        return [
            Figure("rate", what, "tasks/s", Better.MORE),
            Figure("main", f"{what}: CPU a task, main", "µs", Better.LESS),
            Figure("children", f"{what}: CPU a task, children", "µs", Better.LESS),
        ]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        count = place.pick(1000, 400)
        with place.worker(kind, "-c", "2") as worker:
            place.warm_up(worker, 100)
            worker.wait_for_children(2)
            place.backlog.stage("ignored", count, _ARGUMENT, ignore_result=True, argsrepr="(x,)")
            drained = drain(place, worker, count, place.pick(8, 4))
        return {
            "rate": drained.rate,
            "main": drained.micros(drained.used.main),
            "children": drained.micros(drained.used.children),
        }
