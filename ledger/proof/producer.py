"""A program that publishes tasks until it is told to end, and writes down what was confirmed.

A line is written after the broker's confirmation, and so protects nothing that is not there:
lines of several messages share one fsync.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import time
import uuid
from pathlib import Path
from typing import Any

from kombu.exceptions import OperationalError

from entries import app, entry
from proof.line import Book, published

#: Messages whose lines are written together.
GROUP = 16
#: Messages that may wait in the queue: a run must come to its end.
BACKLOG = 300
#: What a client may meet when the broker is not there or has no room.
ERRORS: tuple[type[Exception], ...] = (
    OperationalError,
    *app.connection_for_write().connection_errors,
    *app.connection_for_write().channel_errors,
    *app.connection_for_write().recoverable_connection_errors,
    OSError,
)


class Producer:
    def __init__(self, book: Book, seed: int) -> None:
        self._book = book
        self._choose = random.Random(seed)
        self._producer: Any = None
        self._is_over = False
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: object) -> None:
        self._is_over = True

    def run(self) -> None:
        while not self._is_over:
            lines: list[str] = []
            try:
                if self._backlog() > BACKLOG:
                    time.sleep(0.1)
                    continue
                for _ in range(GROUP):
                    self._publish(lines)
            except ERRORS as exc:
                print(f"{time.monotonic():.3f} {exc!r}", flush=True)
                self._forget_connection()
                time.sleep(0.2)
            finally:
                if lines:
                    self._book.add(*lines)

    def _connected(self) -> Any:
        if self._producer is None:
            connection = app.connection_for_write()
            connection.ensure_connection(max_retries=1, timeout=5)
            self._producer = app.amqp.Producer(connection, auto_declare=False)
        return self._producer

    def _forget_connection(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(*ERRORS):
                producer.connection.release()

    def _backlog(self) -> int:
        channel = self._connected().channel
        return int(channel.queue_declare("celery", durable=True, auto_delete=False).message_count)

    def _publish(self, lines: list[str]) -> None:
        """One task. What is not confirmed is written down as that: it may be there or not."""
        task = str(uuid.uuid4())
        lot = self._choose.random()
        seconds = self._choose.uniform(0.001, 0.02)
        attempts = 1
        options: dict[str, Any] = {}
        if lot < 0.005:
            seconds = 1.0
        elif lot < 0.03:
            options["countdown"] = self._choose.uniform(1, 4)
        elif lot < 0.05:
            attempts = 3
        is_confirmed = False
        try:
            entry.apply_async(
                (seconds, attempts, 0.5),
                task_id=task,
                producer=self._connected(),
                # It would publish twice what was kept without a confirmation.
                retry=False,
                **options,
            )
            is_confirmed = True
        finally:
            lines.append(published(task, attempts, is_confirmed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("book", type=Path)
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    Producer(Book(options.book), options.seed).run()


if __name__ == "__main__":
    main()
