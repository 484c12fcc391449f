"""The morning after an outage: 98,800 tasks of 5 a second on RabbitMQ, for a worker that may fetch
as much as it likes.

    python bench/avalanche.py [--worker celery] [--seconds 60] [--tasks 98800]

Prints the resident memory of the worker's parent, the rate, how long it takes to answer, and what
became of the rest at SIGTERM. See README.md."""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "interop")]

from celery import Celery  # noqa: E402

from comparison.servers import Servers  # noqa: E402
from harness import processes, workers  # noqa: E402
from harness.wait import wait_until  # noqa: E402

#: As the deployment has it that this is taken from.
OPTIONS = ("--prefetch-multiplier=0", "--autoscale=100,3")
RATE = 5
#: How long a worker may take to fetch what it wants to, to answer, and to end.
PATIENCE = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("celeriac", "celery"), default="celeriac")
    parser.add_argument("--seconds", type=float, default=60, help="how long it is watched")
    parser.add_argument("--tasks", type=int, default=98_800)
    given = parser.parse_args()
    with Servers() as servers, tempfile.TemporaryDirectory(prefix="celeriac-bench-") as name:
        measure(servers, Path(name), given.worker, given.seconds, given.tasks)
    return 0


def measure(servers: Servers, folder: Path, kind: str, seconds: float, tasks: int) -> None:
    vhost = servers.rabbitmq.vhost()
    broker = servers.rabbitmq.url(vhost)
    completions = folder / "completions"
    completions.touch()
    app = Celery("avalanche", broker=broker, set_as_current=False)

    def done() -> int:
        return completions.stat().st_size // 8

    with app.producer_or_acquire() as producer:
        for _ in range(tasks):
            app.send_task("event", producer=producer, ignore_result=True)
    worker = workers.Worker(
        folder,
        "small",
        *OPTIONS,
        kind=kind,
        variables={
            "BENCH_BROKER": broker,
            "BENCH_BACKEND": servers.redis.url(servers.redis.database()),
            "BENCH_COMPLETIONS": str(completions),
            "PYTHONPATH": str(_HERE / "apps"),
        },
    )
    try:
        worker.wait_ready(PATIENCE)
        wait_until(lambda: done() > RATE, "it works", PATIENCE)
        begun, before = time.monotonic(), done()
        memory, pings = [], []
        while (now := time.monotonic()) - begun < seconds:
            memory.append(processes.rss_kib(worker.pid))
            if app.control.ping([worker.node], timeout=10):
                pings.append(time.monotonic() - now)
            time.sleep(0.5)
        ran, took = done() - before, time.monotonic() - begun
        children = len(worker.children())
        begun = time.monotonic()
        worker.send(signal.SIGTERM)
        status = worker.wait(PATIENCE)
        ended = time.monotonic() - begun
        queue = servers.rabbitmq.queues(vhost, "messages")["celery"][0]
    finally:
        worker.clean_up()
        app.close()
    print(f"{kind}: {tasks:,} tasks, {' '.join(OPTIONS)}, {seconds:.0f} s")
    print(
        f"  parent's memory, most: {max(memory) / 1024:.1f} MiB; processes at the end: {children}"
    )
    print(f"  rate: {ran / took:.2f} a second of {RATE}")
    answer = statistics.median(pings) * 1000 if pings else float("nan")
    print(f"  pings answered: {len(pings)} of {len(memory)}, median {answer:.1f} ms")
    print(f"  SIGTERM: status {status} after {ended:.1f} s")
    print(f"  in the queue then: {int(queue):,}; run: {done():,}; together {int(queue) + done():,}")


if __name__ == "__main__":
    sys.exit(main())
