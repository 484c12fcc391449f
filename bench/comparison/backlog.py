"""A backlog: many messages put on a queue at once.

A Python client sends some 700 messages a second, slower than what is to be measured. So one
message of a real client is the template of all, and no worker sees any of them before all are
there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import amqp
import redis
from celery import Celery

from harness.amqp import QueueState, connect, queue_state
from harness.wait import wait_until

#: Celery's default queue.
QUEUE = "celery"
_STAGE = "bench-stage"
#: Pushed with one command: by number, and by size for large messages.
_CHUNK = 1000
_CHUNK_BYTES = 8 << 20
#: What may be published to a worker that consumes already.
_FEW = 1000
_TIMEOUT = 60.0


class Backlog(Protocol):
    """Messages that are staged, and then released to the workers."""

    def stage(self, task: str, count: int, *args: Any, **options: Any) -> None:
        """Adds messages behind those that are staged already."""

    def release(self) -> float:
        """Gives all that is staged to the workers, whose queue must be empty. Returns when: a
        moment of the monotonic clock."""

    def waiting(self) -> int:
        """How many messages wait on the queue."""


class RedisBacklog:
    """They are pushed to a list of another name, which becomes the queue in one step."""

    def __init__(self, client: Celery, connection: redis.Redis) -> None:
        self._client = client
        self._connection = connection

    def stage(self, task: str, count: int, *args: Any, **options: Any) -> None:
        chunk: list[str] = []
        size = 0
        for message in self._messages(task, count, args, options):
            chunk.append(message)
            size += len(message)
            if len(chunk) == _CHUNK or size > _CHUNK_BYTES:
                self._connection.lpush(_STAGE, *chunk)
                chunk, size = [], 0
        if chunk:
            self._connection.lpush(_STAGE, *chunk)

    def release(self) -> float:
        began = time.monotonic()
        assert self._connection.renamenx(_STAGE, QUEUE), "the queue is not empty"
        return began

    def waiting(self) -> int:
        waiting: Any = self._connection.llen(QUEUE)
        return int(waiting)

    def _messages(
        self, task: str, count: int, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Iterator[str]:
        template, task_id, tag = self._template(task, args, options)
        for _ in range(count):
            yield template.replace(task_id, str(uuid.uuid4())).replace(tag, str(uuid.uuid4()))

    def _template(
        self, task: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[str, str, str]:
        """A message of a real client, with the ids that must differ in each copy."""
        queue = f"bench-template-{uuid.uuid4()}"
        sent = self._client.send_task(task, args, queue=queue, **options)
        raw: Any = self._connection.lpop(queue)
        text = raw.decode().replace(queue, QUEUE)
        return text, sent.id, json.loads(text)["properties"]["delivery_tag"]


class RabbitBacklog:
    """They are published while the worker is told, by remote control, to leave the queue alone.

    A few are given to it as they come.
    """

    def __init__(self, client: Celery, url: str) -> None:
        self._client = client
        self._url = url
        self._staged: list[tuple[amqp.Message, int]] = []
        with client.connection_for_write() as connection:
            # What is published before the worker has declared it would be dropped.
            client.amqp.queues[QUEUE](connection.default_channel).declare()

    def stage(self, task: str, count: int, *args: Any, **options: Any) -> None:
        self._staged.append((self._template(task, args, options), count))

    def release(self) -> float:
        count = sum(count for _, count in self._staged)
        if count <= _FEW:
            began = time.monotonic()
            self._publish()
            return began
        self._client.control.cancel_consumer(QUEUE, reply=True, timeout=_TIMEOUT, limit=1)
        wait_until(lambda: self._state().consumers == 0, "the worker leaves the queue", _TIMEOUT)
        self._publish()
        wait_until(lambda: self.waiting() == count, f"{count} are on the queue", _TIMEOUT)
        began = time.monotonic()
        self._client.control.add_consumer(QUEUE)
        return began

    def waiting(self) -> int:
        return self._state().ready

    def _state(self) -> QueueState:
        state = queue_state(self._url, QUEUE)
        assert state is not None, "there is no queue"
        return state

    def _publish(self) -> None:
        """Publishes copies of what is staged, with ids of their own."""
        staged, self._staged = self._staged, []
        with connect(self._url) as connection, connection.channel() as channel:
            for template, count in staged:
                headers = template.properties["application_headers"]
                for _ in range(count):
                    task_id = str(uuid.uuid4())
                    properties = {
                        **template.properties,
                        "correlation_id": task_id,
                        "application_headers": {**headers, "id": task_id, "root_id": task_id},
                    }
                    channel.basic_publish(amqp.Message(template.body, **properties), "", QUEUE)

    def _template(self, task: str, args: tuple[Any, ...], options: dict[str, Any]) -> amqp.Message:
        """A message of a real client."""
        queue = f"bench-template-{uuid.uuid4()}"
        self._client.send_task(task, args, queue=queue, **options)
        with connect(self._url) as connection, connection.channel() as channel:
            message = channel.basic_get(queue, no_ack=True)
            channel.queue_delete(queue)
        return message
