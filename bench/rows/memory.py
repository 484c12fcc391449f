"""Memory of an idle worker: the PSS of all its processes.

Each child has run a few tasks before, as the first tasks cost memory that stays.
"""

from __future__ import annotations

import time

from comparison.figure import Better, Figure
from comparison.place import Place

#: For the last of the tasks to be acknowledged, and whatever follows.
_REST = 1.0


class Memory:
    broker = "redis"
    repetitions = (3, 1)

    def __init__(self, app: str, concurrency: int, factor: float) -> None:
        self.name = f"memory-{app}-{concurrency}"
        self._app = app
        self._concurrency = concurrency
        self._factor = factor

    def figures(self) -> list[Figure]:
        title = f"idle memory, {self._app} app, c={self._concurrency}"
        return [Figure("pss", title, "MiB", Better.LESS, self._factor)]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        with place.worker(kind, "-c", str(self._concurrency), app=self._app) as worker:
            # Long enough that no child gets two while another has none.
            place.warm_up(worker, 4 * self._concurrency, "pause", 0.1)
            worker.wait_for_children(self._concurrency)
            time.sleep(_REST)
            return {"pss": worker.memory_mib()}
