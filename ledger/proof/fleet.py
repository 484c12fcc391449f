"""The workers under attack, each behind a way to the broker of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from harness import processes
from harness.proxy import Proxy
from harness.workers import Worker
from proof.broker import Broker
from proof.clock import Clock
from proof.namespace import Namespace

LEDGER = Path(__file__).resolve().parents[1]
#: What runs tasks in each worker.
CHILDREN = {"celeriac": "3", "celery": "2"}


def app_variables(url: str, broker: Broker) -> dict[str, str]:
    """What the app is told of the broker, which it reaches by ``url``."""
    return {
        "LEDGER_URL": url,
        "LEDGER_TRANSPORT_OPTIONS": repr(broker.options),
        "PYTHONPATH": f"{LEDGER / 'apps'}:{LEDGER}",
    }


class Slot:
    """A place in the fleet that always has a worker: when one is killed, the next one starts."""

    def __init__(
        self, kind: str, number: int, folder: Path, broker: Broker,
        namespace: Namespace | None = None, clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.kind = kind
        self._name = f"{kind}-{number}"
        self.namespace = namespace
        self.clock = clock
        #: Every worker that there was, with the time of its start and the name of its book.
        self.started: list[tuple[float, str, Worker]] = []
        self._folder = folder
        self._loglevel = os.environ.get("LEDGER_LOGLEVEL", "WARNING")
        self._broker = broker
        host = namespace.host if namespace else "127.0.0.1"
        self.proxy = Proxy(broker.port, host) if broker.port else None
        self._url = broker.url(host, self.proxy.port if self.proxy else None)
        self.start()

    def start(self) -> None:
        name = f"{self._name}-{len(self.started)}"
        variables = {
            "LEDGER_BOOK": str(self._folder / "books" / name),
            **app_variables(self._url, self._broker),
            **(self.clock.variables() if self.clock else {}),
        }
        worker = Worker(
            self._folder,
            "entries",
            *("-c", CHILDREN[self.kind], "-n", f"{name}@%h"),
            kind=self.kind,
            loglevel=self._loglevel,
            variables=variables,
            within=self.namespace.within if self.namespace else (),
        )
        self.started.append((time.monotonic(), name, worker))

    @property
    def worker(self) -> Worker:
        return self.started[-1][2]

    @property
    def name(self) -> str:
        """Of the present worker, as the ledger has it."""
        return self.started[-1][1]

    def since(self, moment: float) -> list[str]:
        """The names of those who worked here from ``moment`` on."""
        after = [name for at, name, _ in self.started if at > moment]
        before = [name for at, name, _ in self.started if at <= moment]
        return before[-1:] + after

    def main(self) -> int | None:
        """The process that holds the app, of a celeriac worker."""
        below = processes.descendants(self.worker.pid)
        found = [pid for pid in below if processes.name_of(pid) == "celeriac:main"]
        return found[0] if found else None

    def tree(self) -> list[int]:
        return [self.worker.pid, *processes.descendants(self.worker.pid)]

    def close(self) -> None:
        for _, _, worker in self.started:
            worker.clean_up()
        if self.proxy:
            self.proxy.stop()


def among(slots: list[Slot], lot: float, fits: Callable[[Slot], bool]) -> Slot | None:
    """One that fits. Others are not looked at: to read all of ``/proc`` takes its time."""
    first = int(lot * len(slots))
    return next((slot for slot in slots[first:] + slots[:first] if fits(slot)), None)
