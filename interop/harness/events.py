"""Listening to what workers tell of themselves and of their tasks."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from celery import Celery
from celery.events.receiver import EventReceiver

from harness.wait import wait_until

Event = dict[str, Any]

#: An event that a recorder sends to itself.
_PROBE = "recorder-probe"


@dataclass(frozen=True)
class Message:
    """One message, as it was sent."""

    body: Any
    headers: dict[str, Any]
    routing_key: str
    properties: dict[str, Any]

    def events(self) -> list[Event]:
        """A message has one event, or a list of them."""
        return self.body if isinstance(self.body, list) else [self.body]


class _Raw(EventReceiver):
    """Hands on messages as they are."""

    def __init__(self, keep: Callable[[Any, Any], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._keep = keep

    def _receive(self, body: Any, message: Any) -> None:
        self._keep(body, message)


class Recorder:
    """Keeps all events of a broker while it is open. A context."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._listens = threading.Event()
        self._receiver: Any = None
        self.messages: list[Message] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        # On Redis nothing tells when a subscription counts, but that something comes.
        with self._app.connection_for_write() as connection:
            dispatcher = self._app.events.Dispatcher(connection)

            def hears_itself() -> bool:
                dispatcher.send(_PROBE)
                return self._listens.wait(0.1)

            wait_until(hears_itself, "events are heard")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # It looks at that once a second.
        self._receiver.should_stop = True
        self._thread.join(30)

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            self._receiver = _Raw(self._keep, connection, app=self._app)
            self._receiver.capture(wakeup=False)

    def _keep(self, body: Any, message: Any) -> None:
        if isinstance(body, dict) and body["type"] == _PROBE:
            self._listens.set()
            return
        self.messages.append(
            Message(
                copy.deepcopy(body),
                dict(message.headers),
                message.delivery_info["routing_key"],
                dict(message.properties),
            )
        )

    @property
    def events(self) -> list[Event]:
        return [event for message in list(self.messages) for event in message.events()]

    def of(self, task_id: str) -> list[Event]:
        """The events of one task."""
        return [event for event in self.events if event.get("uuid") == task_id]

    def wait_for(self, kind: str, count: int = 1, timeout: float = 30, **fields: Any) -> Event:
        """Waits for the so-manieth event of a type whose fields are as given."""

        def find() -> list[Event]:
            found = [
                event
                for event in self.events
                if event["type"] == kind
                and all(event.get(name) == value for name, value in fields.items())
            ]
            return found[count - 1 :]

        return wait_until(
            find,
            f"{kind} {fields or ''} comes",
            timeout,
            lambda: "\n".join(map(str, self.events[-20:])),
        )[0]
