"""Calls that may take long: each kind has a thread of its own, so that nothing else waits."""

from __future__ import annotations

import queue
import threading
from typing import Callable

from celery.utils.log import get_logger

logger = get_logger("celery.worker")

#: Errands that wait. Whoever asks for more is told so at once.
LIMIT = 256


class Errands:
    """Does one errand after the other, in a thread that starts with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.Queue[Callable[[], None]] = queue.Queue(LIMIT)
        self._thread: threading.Thread | None = None

    def take(self, errand: Callable[[], None]) -> bool:
        """Has an errand done; ``False`` when too many wait already."""
        try:
            self._waiting.put_nowait(errand)
        except queue.Full:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return True

    def finish(self, timeout: float) -> None:
        """Waits so many seconds for what was asked for before."""
        done = threading.Event()
        if self._thread is not None and not (self.take(done.set) and done.wait(timeout)):
            name = self._name
            logger.warning("Some calls of %s are not done after %s seconds.", name, timeout)

    def _run(self) -> None:
        while True:
            errand = self._waiting.get()
            try:
                errand()
            except BaseException as exc:
                # The next one needs the thread.
                logger.error("A call of %s failed: %r", self._name, exc, exc_info=True)
