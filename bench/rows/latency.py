"""From before a Python client sends a task until it runs, on a worker with nothing else to do.

One task at a time. Between two the worker rests for a while, of a length that differs so that it
keeps no step with anything periodic.
"""

from __future__ import annotations

import itertools
import statistics
import time

from comparison.figure import Better, Figure
from comparison.place import Place

#: Rests in seconds, one after the other.
_RESTS = (0.007, 0.023, 0.011, 0.031, 0.017)


class Latency:
    name = "latency"
    broker = "redis"
    repetitions = (5, 1)

    def figures(self) -> list[Figure]:
        return [
            Figure("p50", "latency of a send, idle, c=2: p50", "ms", Better.LESS),
            Figure("p99", "latency of a send, idle, c=2: p99", "ms", Better.LESS),
        ]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        completions = place.completions
        sent = []
        with place.worker(kind, "-c", "2") as worker:
            place.warm_up(worker, 100)
            worker.wait_for_children(2)
            already = completions.count()
            count = place.pick(500, 200)
            for number, rest in zip(range(count), itertools.cycle(_RESTS)):
                time.sleep(rest)
                sent.append(time.monotonic())
                place.client.send_task("ignored", ignore_result=True)
                completions.wait_for(already + number + 1, 30, worker.is_alive, pause=0.002)
        ran = completions.stamps()[already:]
        latencies = [(end - start) * 1000 for start, end in zip(sent, ran, strict=True)]
        hundredths = statistics.quantiles(latencies, n=100)
        return {"p50": hundredths[49], "p99": hundredths[98]}
