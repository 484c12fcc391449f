"""Brokers that are killed and come back with their data, and what they still hold."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Set
from typing import Any, Protocol

import kombu
import redis

from harness import amqp, processes
from harness.queues import RedisQueues
from harness.servers import RabbitServer, RedisServer
from proof.disk import Disk

QUEUE = "celery"


class Broker(Protocol):
    #: Seconds after which Celery's workers take back what was not acknowledged.
    visibility_timeout: float | None
    #: What clients are configured with.
    options: dict[str, Any]
    #: Faults that it can't have.
    without: Set[str]
    #: Whether Celery's workers lose what they have when they are killed, by design.
    is_lost_with_celery: bool
    #: Where it listens, if it is a server.
    port: int | None
    #: Bytes that a full disk has left.
    full: int

    def url(self, host: str, port: int | None) -> str:
        """Where clients find it, by way of a proxy or not."""

    def kill(self) -> None: ...

    def start(self) -> None:
        """After ``kill``, or after it ended by itself."""

    def is_up(self) -> bool: ...

    def left(self) -> int:
        """Messages that wait, are held for later, or are taken and not acknowledged."""

    def lost_by_celery(self, tasks: list[str]) -> set[str]:
        """Which of these a Celery worker was the last to have, by the broker's own records."""

    def close(self) -> None: ...


#: Where celeriac keeps dead letters on RabbitMQ.
DEAD_LETTERS = "celeriac.dead"


class Redis:
    visibility_timeout: float | None = 30.0
    without: Set[str] = frozenset()
    is_lost_with_celery = False
    full = 0

    def __init__(self, disk: Disk) -> None:
        self._folder = disk.folder
        self._server = RedisServer(
            disk.folder,
            *("--appendonly", "yes", "--appendfsync", "always"),
            # The whole file is the record of who took what.
            *("--auto-aof-rewrite-percentage", "0"),
        )
        self.port: int | None = self._server.port
        self.options: dict[str, Any] = {
            "visibility_timeout": self.visibility_timeout,
            # Celery's looks for what has to be restored are counted in its polls.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # Who is killed while it restores keeps all others from it: for five minutes, if they
            # are not told otherwise.
            "unacked_mutex_expire": 5,
        }
        self._queues = RedisQueues(self.url("127.0.0.1", self.port))

    def url(self, host: str, port: int | None) -> str:
        return f"redis://{host}:{port}/0"

    def kill(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()

    def is_up(self) -> bool:
        return self._server.is_up()

    def left(self) -> int:
        return self._queues.waiting() + self._queues.held()

    def lost_by_celery(self, tasks: list[str]) -> set[str]:
        files = sorted(self._folder.glob("appendonlydir/*.incr.aof"))
        written = b"".join(file.read_bytes() for file in files)
        return {task for task in tasks if celery_had(written, task)}

    def close(self) -> None:
        self._server.stop()


def celery_had(written: bytes, task: str) -> bool:
    """Whether the append-only file says that a Celery worker was the last to have a message.

    kombu pops a message and then notes it in ``unacked`` under a tag that is a UUID: a message that
    was last heard of when it was put on the list, or under such a tag, was popped by kombu.
    celeriac's claim is one script: who takes it from the list notes it in the same transaction,
    under a tag of another form."""
    at = written.rfind(task.encode())
    if at < 0:
        return False
    begin = written.rfind(b"\r\n*", 0, at)
    words = written[begin + 2 : at].split(b"\r\n")[2::2]
    command = words[0].upper()
    if command in (b"LPUSH", b"RPUSH"):
        return words[1] == QUEUE.encode()
    tags = [word for word in words if re.fullmatch(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-.{12}", word)]
    return command == b"HSET" and bool(tags)


class RabbitMQ:
    visibility_timeout: float | None = None
    without: Set[str] = frozenset()
    is_lost_with_celery = False
    #: Less than what it wants to have: it blocks who publishes.
    full = 40 << 20

    def __init__(self, disk: Disk) -> None:
        self._server = RabbitServer(disk.folder, "disk_free_limit.absolute = 50MB")
        # The node's own: one that is killed reads every virtual host's messages when it starts.
        self._vhost = "/"
        self.port: int | None = self._server.port
        # py-amqp waits for a confirmation after each message.
        self.options: dict[str, Any] = {"confirm_publish": True}

    def url(self, host: str, port: int | None) -> str:
        return f"amqp://guest:guest@{host}:{port}/{self._vhost}"

    def kill(self) -> None:
        self._server.kill()

    def start(self) -> None:
        self._server.start()

    def is_up(self) -> bool:
        return processes.is_running(self._server.pid)

    def left(self) -> int:
        ready = amqp.queue_state(self.url("127.0.0.1", self.port), QUEUE)
        if ready is None or ready.ready:
            return 1
        messages = self._server.queues(self._vhost, "messages")
        # Dead letters stay.
        return sum(int(count) for name, (count,) in messages.items() if name != DEAD_LETTERS)

    def lost_by_celery(self, tasks: list[str]) -> set[str]:
        return set()

    def close(self) -> None:
        self._server.close()


class SQLite:
    visibility_timeout: float | None = None
    #: There is no server and no network.
    without: Set[str] = frozenset({"kill broker", "cut", "stall", "network namespace down"})
    port: int | None = None
    #: kombu takes a message for good when it fetches it.
    is_lost_with_celery = True
    full = 0

    def __init__(self, disk: Disk) -> None:
        self._file = disk.folder / "broker.db"
        self.options: dict[str, Any] = {}
        # kombu's clients fail when two of them make the queue at once.
        with kombu.Connection(self.url("", None)) as connection:
            connection.default_channel.queue_declare(QUEUE)

    def url(self, host: str, port: int | None) -> str:
        return f"sqla+sqlite:///{self._file}"

    def kill(self) -> None:
        raise AssertionError("SQLite is no server")

    def start(self) -> None:
        """There is nothing to start."""

    def is_up(self) -> bool:
        return True

    def _query(self, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self._file, timeout=30)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def left(self) -> int:
        # What kombu has fetched stays as an invisible row for ever, without a lease.
        left = self._query("SELECT count(*) FROM kombu_message WHERE visible != 0")[0][0]
        if self._query("SELECT 1 FROM sqlite_master WHERE name = 'celeriac_lease'"):
            left += self._query("SELECT count(*) FROM celeriac_lease")[0][0]
        return int(left)

    def lost_by_celery(self, tasks: list[str]) -> set[str]:
        # celeriac deletes a row when its task has ended.
        rows = self._query("SELECT payload FROM kombu_message WHERE visible = 0")
        return {task for task in tasks if any(task in payload for (payload,) in rows)}

    def close(self) -> None:
        """Nothing runs."""


BROKERS: dict[str, type[Redis | RabbitMQ | SQLite]] = {
    "redis": Redis,
    "rabbitmq": RabbitMQ,
    "sqlite": SQLite,
}


def left_in(broker: Broker) -> int | None:
    """What a broker holds, if it answers."""
    try:
        return broker.left()
    except (OSError, redis.RedisError, sqlite3.OperationalError, AssertionError):
        return None
