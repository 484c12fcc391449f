"""2,000 tasks of 0.5 s that only wait, with concurrency 512: how near each pool comes to the ideal.

    python bench/io_pools.py [--pools gevent asyncio] [--workers celeriac celery]

Prints how long a backlog takes from its release to the last task, once the worker has started and
been warmed up, and the worker's CPU time for a task. See README.md."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "interop")]

from comparison.place import RedisPlace  # noqa: E402
from comparison.servers import Servers  # noqa: E402

#: How long a run may take.
PATIENCE = 120.0
POOLS = ("gevent", "asyncio", "threads")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=["gevent", "asyncio"])
    parser.add_argument(
        "--workers", nargs="+", choices=("celeriac", "celery"), default=["celeriac", "celery"]
    )
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--concurrency", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    ideal = -(-given.tasks // given.concurrency) * given.seconds
    print(
        f"{given.tasks:,} tasks of {given.seconds:g} s, concurrency {given.concurrency}: "
        f"{ideal:.2f} s at best"
    )
    with Servers() as servers:
        for pool in given.pools:
            for kind in given.workers:
                if kind == "celery" and pool == "asyncio":
                    continue  # Celery has none
                with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
                    place = RedisPlace(servers, Path(folder), is_quick=False)
                    try:
                        measure(place, kind, pool, given, ideal)
                    finally:
                        place.clean_up()
    return 0


def measure(
    place: RedisPlace, kind: str, pool: str, given: argparse.Namespace, ideal: float
) -> None:
    task = "wait_async" if pool == "asyncio" else "wait"
    options = ("-P", pool, "-c", str(given.concurrency), "-l", "WARNING")
    took, cpu = [], []
    with place.worker(kind, *options, app="waiting") as worker:
        # As many as there are places: threads and connections are there afterwards.
        place.warm_up(worker, given.concurrency, task, 0.1)
        for _ in range(given.runs):
            before, spent = place.completions.count(), worker.cpu()
            place.backlog.stage(task, given.tasks, given.seconds, ignore_result=False)
            begun = place.backlog.release()
            place.completions.wait_for(before + given.tasks, PATIENCE, worker.is_alive)
            took.append(place.completions.last() - begun)
            cpu.append(1e6 * (worker.cpu() - spent).total / given.tasks)
    middle = statistics.median(took)
    print(
        f"{pool:>8} {kind:>9}: {middle:6.2f} s ({', '.join(f'{one:.2f}' for one in took)}), "
        f"{middle / ideal:5.2f} times the best; {statistics.median(cpu):5.0f} µs of CPU for a task"
    )


if __name__ == "__main__":
    sys.exit(main())
