"""How long a ``ping`` takes that Celery's client sends to a worker whose processes all compute.

From before the client sends it until it has the answer, one after the other on one connection.
"""

from __future__ import annotations

import statistics
import time

from comparison.figure import Better, Figure
from comparison.place import Place

#: Longer than the pings take.
_BUSY = 600.0
_TIMEOUT = 60.0


class Ping:
    repetitions = (1, 1)

    def __init__(self, broker: str) -> None:
        self.name = "ping" if broker == "redis" else f"{broker}-ping"
        self.broker = broker

    def figures(self) -> list[Figure]:
        what = f"{self.broker}: ping of a busy worker, c=2"
        return [
            Figure("p50", f"{what}: p50", "ms", Better.LESS),
            Figure("p99", f"{what}: p99", "ms", Better.LESS, at_most=50),
        ]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        with place.worker(kind, "-c", "2") as worker:
            place.warm_up(worker, 100)
            worker.wait_for_children(2)
            already = place.completions.count()
            place.backlog.stage("compute", 2, _BUSY, ignore_result=True)
            place.backlog.release()
            # Each says when it begins.
            place.completions.wait_for(already + 2, _TIMEOUT, worker.is_alive)
            took = []
            with place.client.connection_for_write() as connection:
                for _ in range(place.pick(1000, 300)):
                    began = time.monotonic()
                    answers = place.client.control.broadcast(
                        "ping", reply=True, limit=1, timeout=_TIMEOUT, connection=connection
                    )
                    took.append((time.monotonic() - began) * 1000)
                    assert answers, "no answer"
        hundredths = statistics.quantiles(took, n=100)
        return {"p50": hundredths[49], "p99": hundredths[98]}
