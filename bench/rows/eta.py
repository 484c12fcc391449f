"""A normal task behind 50,000 on the same queue that are due in an hour (10,000 in a quick run).

The time from the moment at which all are on the queue until the normal one runs, and then the
memory of the main process, which in Celery holds all that are not due. On RabbitMQ, Celery's
worker may have one message more for each that it holds, and asks for them one by one, a dozen a
second: it would come to the normal one after an hour. So one waits for a shorter time there.
"""

from __future__ import annotations

from comparison.figure import Better, Figure
from comparison.place import Place
from harness.wait import TimedOut

_AHEAD = 3600.0


class Eta:
    repetitions = (2, 1)

    def __init__(self, broker: str, at_most: float, limit: float) -> None:
        self.name = "eta" if broker == "redis" else f"{broker}-eta"
        self.broker = broker
        self._at_most = at_most
        #: Seconds after which it is taken for never.
        self._limit = limit

    def figures(self) -> list[Figure]:
        what = "normal task behind the ETA tasks"
        if self.broker != "redis":
            what = f"{self.broker}: {what}"
        return [
            Figure("seconds", what, "s", Better.LESS, at_most=self._at_most),
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
            released = place.backlog.release()
            try:
                place.completions.wait_for(already + 1, self._limit, worker.is_alive)
                seconds = place.completions.last() - released
            except TimedOut:
                if not worker.is_alive():
                    raise
                seconds = float("inf")
            used = worker.cpu() - before
            return {"seconds": seconds, "memory": worker.main_memory_mib(), "cpu": used.main}
