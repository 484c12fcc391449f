"""What the app's own steps and commands find in ``consumer.gossip``.

The Rust parent knows the other workers for its own ends: elections and log lines. Who asks for
``consumer.gossip`` is given Celery's own, which listens on a connection of its own, in a thread of
main, so that its callbacks run where they can. Where nobody asks there is neither.
"""

from __future__ import annotations

import threading
from typing import Any

from celery.worker.consumer.gossip import Gossip

from celeriac.host.steps import ConsumingSteps


class HostedGossip(Gossip):  # type: ignore[misc]
    """Celery's own, less what the Rust parent does: elections, and lines in the log."""

    name = "celery.worker.consumer.gossip.Gossip"

    def __init__(self, consumer: Any) -> None:
        self._parent = consumer.parent
        # Workers are heard of in one thread, and missed in that of the timer.
        self._lock = threading.Lock()
        options = consumer.controller.options
        super().__init__(consumer, without_gossip=bool(options.get("without_gossip")))
        self.event_handlers = {"worker.elect": _leave, "worker.elect.ack": _leave}
        if self.enabled:
            self.update_state = self._update_state
        #: What has it listen.
        self.consuming = ConsumingSteps(consumer, [self])

    def start(self, c: Any) -> None:
        # Celery's would open a connection for elections.
        super(Gossip, self).start(c)

    def election(self, id: str, topic: str, action: Any = None) -> None:
        self._parent.ask("election", id=id, topic=topic, action=action)

    def on_node_join(self, worker: Any) -> None:
        self._call_handlers(self.on.node_join, worker)

    def on_node_leave(self, worker: Any) -> None:
        self._call_handlers(self.on.node_leave, worker)

    def on_node_lost(self, worker: Any) -> None:
        self._call_handlers(self.on.node_lost, worker)

    def periodic(self) -> None:
        with self._lock:
            super().periodic()

    def _update_state(self, event: dict[str, Any]) -> Any:
        with self._lock:
            return self.state.event(event)


def _leave(event: Any) -> None:
    """Leaves an election to the parent."""
