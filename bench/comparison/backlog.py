"""A backlog: many messages put on a queue at once.

A Python client sends some 700 messages a second, slower than what is to be measured. So one
message of a real client is the template of all. They are pushed to a list of another name, which
becomes the queue in one step: no worker sees any of them before all are there.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery

#: The list that Celery's default queue is in.
QUEUE = "celery"
_STAGE = "bench-stage"
#: Pushed with one command: by number, and by size for large messages.
_CHUNK = 1000
_CHUNK_BYTES = 8 << 20


class Backlog:
    """Messages that are staged, and then released to the workers."""

    def __init__(self, client: Celery, connection: redis.Redis) -> None:
        self._client = client
        self._connection = connection

    def stage(self, task: str, count: int, *args: Any, **options: Any) -> None:
        """Adds messages behind those that are staged already."""
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

    def release(self) -> None:
        """Gives all that is staged to the workers, whose queue must be empty."""
        assert self._connection.renamenx(_STAGE, QUEUE), "the queue is not empty"

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
