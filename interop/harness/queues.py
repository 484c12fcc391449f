"""What a broker holds, seen from outside of any worker, and raw messages put into it."""

from __future__ import annotations

import base64
import json
import sqlite3
import uuid
from pathlib import Path
from typing import Any, Protocol

import redis

#: What kombu's SQLAlchemy transport creates, for messages that no kombu has sent.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kombu_queue (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, name VARCHAR(200) UNIQUE);
CREATE TABLE IF NOT EXISTS kombu_message (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, visible BOOLEAN, timestamp DATETIME,
    payload TEXT NOT NULL, version SMALLINT NOT NULL, queue_id INTEGER REFERENCES kombu_queue (id));
"""


class Queues(Protocol):
    """The queues of one broker."""

    def put(self, payload: bytes, queue: str = "celery") -> None:
        """Puts bytes on a queue as they are."""

    def waiting(self, queue: str = "celery") -> int:
        """How many messages wait."""

    def held(self) -> int:
        """How many messages a worker has and has not settled."""


class RedisQueues:
    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url, socket_timeout=120)

    def put(self, payload: bytes, queue: str = "celery") -> None:
        self.client.lpush(queue, payload)

    def waiting(self, queue: str = "celery") -> int:
        return int(self.client.llen(queue))

    def held(self) -> int:
        return max(int(self.client.hlen("unacked")), int(self.client.zcard("unacked_index")))


class SqliteQueues:
    def __init__(self, url: str) -> None:
        self.path = Path(url.partition(":///")[2])

    def _query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        # Waits for the worker's transactions.
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            with connection:
                return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def put(self, payload: bytes, queue: str = "celery") -> None:
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            connection.executescript(_SCHEMA)
        finally:
            connection.close()
        self._query("INSERT OR IGNORE INTO kombu_queue (name) VALUES (?)", queue)
        # The cast keeps bytes that are no UTF-8 as what the column holds: text.
        self._query(
            "INSERT INTO kombu_message (visible, payload, version, queue_id) "
            "SELECT 1, CAST(? AS TEXT), 1, id FROM kombu_queue WHERE name = ?",
            payload,
            queue,
        )

    def put_blob(self, payload: bytes, queue: str = "celery") -> None:
        """A row whose payload is not even text."""
        self.put(payload, queue)
        self._query(
            "UPDATE kombu_message SET payload = CAST(payload AS BLOB) "
            "WHERE id = (SELECT max(id) FROM kombu_message)"
        )

    def _count(self, condition: str, *values: Any) -> int:
        if not self.path.exists():
            return 0
        rows = self._query(
            "SELECT count(*) FROM kombu_message m JOIN kombu_queue q ON q.id = m.queue_id "
            f"WHERE {condition}",
            *values,
        )
        return int(rows[0][0])

    def waiting(self, queue: str = "celery") -> int:
        return self._count("q.name = ? AND m.visible != 0", queue)

    def held(self) -> int:
        return self._count("m.visible = 0")


def queues_of(url: str) -> Queues:
    """The queues of the broker that ``url`` names."""
    return RedisQueues(url) if url.startswith("redis") else SqliteQueues(url)


def envelope(
    body: bytes | str,
    headers: Any = None,
    properties: dict[str, Any] | None = None,
    **members: Any,
) -> dict[str, Any]:
    """A message as kombu's virtual transports write it; ``members`` replace or add to its own."""
    raw = body.encode() if isinstance(body, str) else body
    own: dict[str, Any] = {
        "body": base64.b64encode(raw).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {} if headers is None else headers,
        "properties": {
            "correlation_id": "none",
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
            **(properties or {}),
        },
    }
    return {**own, **members}


def protocol_2(task: str, body: bytes | str = "[[], {}, {}]", /, **headers: Any) -> dict[str, Any]:
    """A message of protocol 2 with all its headers; ``headers`` replace or add to them."""
    task_id = str(uuid.uuid4())
    own: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "test",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    return envelope(body, {**own, **headers})


def protocol_1(**members: Any) -> dict[str, Any]:
    """A message of protocol 1; ``members`` replace or add to those of its body."""
    own: dict[str, Any] = {
        "task": "basic.echo",
        "id": str(uuid.uuid4()),
        "args": [],
        "kwargs": {},
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "utc": True,
        "callbacks": None,
        "errbacks": None,
        "timelimit": [None, None],
        "taskset": None,
        "chord": None,
    }
    return envelope(json.dumps({**own, **members}))


def to_bytes(message: Any) -> bytes:
    return json.dumps(message).encode()
