"""From starting the command until the first task runs, which waits on the queue already."""

from __future__ import annotations

from comparison.figure import Better, Figure
from comparison.place import Place


class Start:
    broker = "redis"
    repetitions = (7, 2)

    def __init__(self, app: str) -> None:
        self.name = f"start-{app}"
        self._app = app

    def figures(self) -> list[Figure]:
        what = f"start to first task, {self._app} app"
        return [
            Figure("seconds", what, "s", Better.LESS, 3),
            Figure("cpu", f"{what}: CPU", "s", Better.LESS),
        ]

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        place.backlog.stage("ignored", 1, ignore_result=True)
        place.backlog.release()
        with place.worker(kind, "-c", "2", app=self._app) as worker:
            place.completions.wait_for(1, 60, worker.is_alive)
            used = worker.cpu().total
            return {"seconds": place.completions.last() - worker.started, "cpu": used}
