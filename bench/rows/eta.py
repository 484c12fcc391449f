"""A normal task behind 50,000 on the same queue that are due in an hour (10,000 in a quick run).

The time from the moment at which all are on the queue until the normal one runs, and then the
memory of the main process, which in Celery holds all that are not due.
"""

from __future__ import annotations

import time

from comparison.figure import Better, Figure
from comparison.place import Place
from harness.wait import TimedOut

_AHEAD = 3600.0
_LIMIT = 300.0


class Eta:
    name = "eta"
    repetitions = (2, 1)

    def figures(self) -> list[Figure]:
        what = "normal task behind the ETA tasks"
        return [
            Figure("seconds", what, "s", Better.LESS, at_most=5),
            Figure("memory", f"{what}: memory of main", "MiB", Better.LESS),
            Figure("cpu", f"{what}: CPU of main", "s", Better.LESS),
        ]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        with place.worker(kind, "-c", "2") as worker:
            place.warm_up(worker, 100)
            already = place.completions.count()
            count = place.pick(50_000, 10_000)
            place.backlog.stage("ignored", count, ignore_result=True, countdown=_AHEAD)
            place.backlog.stage("ignored", 1, ignore_result=True)
            before = worker.cpu()
            released = time.monotonic()
            place.backlog.release()
            try:
                place.completions.wait_for(already + 1, _LIMIT, worker.is_alive)
                seconds = place.completions.last() - released
            except TimedOut:
                if not worker.is_alive():
                    raise
                seconds = float("inf")
            used = worker.cpu() - before
            return {"seconds": seconds, "memory": worker.main_memory_mib(), "cpu": used.main}
