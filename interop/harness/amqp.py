"""What a RabbitMQ node tells those who ask in its own protocol: quick, and without its tools."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

import amqp


@dataclass(frozen=True)
class QueueState:
    #: Messages that nobody has.
    ready: int
    consumers: int


def connect(url: str) -> amqp.Connection:
    parts = urlsplit(url)
    return amqp.Connection(
        f"{parts.hostname}:{parts.port}", virtual_host=parts.path[1:], connect_timeout=5
    )


def queue_state(url: str, queue: str = "celery") -> QueueState | None:
    """What a queue is like now; nothing where there is none, or no answer."""
    try:
        with connect(url) as connection, connection.channel() as channel:
            found = channel.queue_declare(queue, passive=True)
            return QueueState(found.message_count, found.consumer_count)
    except (OSError, amqp.AMQPError):
        return None


def is_settled(url: str, queue: str = "celery") -> bool:
    """Whether a queue without consumers is empty: what they had is back on it."""
    state = queue_state(url, queue)
    return state is not None and (state.ready, state.consumers) == (0, 0)
