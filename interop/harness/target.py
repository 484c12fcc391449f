"""A worker that gets messages nobody should send, and is asked how it is."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from harness import processes
from harness.queues import Queues, to_bytes
from harness.wait import wait_until
from harness.workers import Worker

#: How long a normal task may take behind the other kind.
TIMEOUT = 30


@dataclass
class Target:
    """A worker, its broker, and a client that looks whether it still works."""

    worker: Worker
    queues: Queues
    app: ModuleType
    main: int
    children: set[int]

    def put(self, message: Any) -> None:
        self.queues.put(message if isinstance(message, bytes) else to_bytes(message))

    def assert_well(self, what: object) -> None:
        """It still runs a normal task, in the same processes, and has nothing left."""
        self.assert_works(what)
        for pid in self.children:
            assert processes.is_running(pid), f"lost a process by {what!r:.300}"

    def assert_works(self, what: object) -> None:
        def context() -> str:
            return f"after {what!r:.300}\n{self.worker.log[-3000:]}"

        result = self.app.add.delay(20, 22)
        wait_until(result.ready, "a normal task runs", TIMEOUT, context)
        assert result.get() == 42
        wait_until(
            lambda: not (self.queues.waiting() or self.queues.held()),
            "nothing is left in the broker",
            TIMEOUT,
            context,
        )
        assert self.worker.process.poll() is None, context()
        assert processes.is_running(self.main), context()

    def stop(self) -> None:
        assert processes.is_running(self.main)
        assert self.worker.stop() == 0
        log = self.worker.log
        assert "panicked" not in log
        # It may have been replaced in the moment after it was last looked at.
        assert "the main process is gone" not in log, log[-3000:]
