"""A million tasks with a countdown of an hour, on Redis: what they cost a worker.

    python bench/countdowns.py [--worker celery] [--tasks 1000000]

Prints the resident memory of the worker's parent, and how long a fresh task takes to begin once
they are there. See README.md."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "interop")]

from comparison.place import Place, RedisPlace  # noqa: E402
from comparison.servers import Servers  # noqa: E402
from comparison.worker import Worker  # noqa: E402
from harness import processes  # noqa: E402

#: How long a fresh task may take, and all countdowns to be taken from the queue.
PATIENCE = 600.0
FRESH = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("celeriac", "celery"), default="celeriac")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    given = parser.parse_args()
    with Servers() as servers:
        folder = servers.redis.folder / "countdowns"
        folder.mkdir()
        place = RedisPlace(servers, folder, is_quick=False)
        try:
            measure(place, given.worker, given.tasks)
        finally:
            place.clean_up()
    return 0


def measure(place: Place, kind: str, tasks: int) -> None:
    with place.worker(kind, "-c", "2") as worker:
        place.warm_up(worker, 100)
        place.backlog.stage("ignored", tasks, ignore_result=True, countdown=3600.0)
        begun = place.backlog.release()
        memory = []
        # A fresh task would stand behind them.
        while place.backlog.waiting():
            assert time.monotonic() - begun < PATIENCE, "they are still on the queue"
            memory.append(processes.rss_kib(worker.tree()[0]))
            time.sleep(0.1)
        took = time.monotonic() - begun
        waits = [1000 * fresh(place, worker) for _ in range(FRESH)]
        memory.append(processes.rss_kib(worker.tree()[0]))
    print(f"{kind}: {tasks:,} countdowns of an hour, taken from the queue in {took:.0f} s")
    print(f"  parent's memory, most: {max(memory) / 1024:.1f} MiB")
    print(
        f"  {FRESH} fresh tasks then begin after {statistics.median(waits):.1f} ms (median), "
        f"{max(waits):.1f} ms (most)"
    )


def fresh(place: Place, worker: Worker) -> float:
    """Seconds from sending a task to its run."""
    before = place.completions.count()
    begun = time.monotonic()
    place.client.send_task("ignored", ignore_result=True)
    place.completions.wait_for(before + 1, PATIENCE, worker.is_alive)
    return place.completions.last() - begun


if __name__ == "__main__":
    sys.exit(main())
