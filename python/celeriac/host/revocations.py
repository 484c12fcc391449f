"""Revoked tasks in a store that all workers share: a revoke outlives the workers that hear it.

The store is the broker itself where that is Redis or an SQL database, or a Redis server that the
setting ``celeriac_revoke_store`` or ``CELERIAC_REVOKE_STORE`` names.

What lies in the broker is read by the Rust parent: ``celeriac_core::revokes`` and the sessions of
``celeriac-broker`` know the keys and the table that are written here.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import time
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, Protocol

from celery.utils.log import get_logger

logger = get_logger("celery.worker.control")

SETTING = "celeriac_revoke_store"
VARIABLE = "CELERIAC_REVOKE_STORE"
#: What keeps them in the broker.
BROKER = "broker"
#: What only Python can read.
ELSEWHERE = "elsewhere"

#: How many are kept, and for how many seconds.
MOST, KEPT = 50_000, 90 * 24 * 3600.0
#: Seconds between the moments of those that were revoked at once.
APART = 1e-6
#: How long an id, or a header with its value, may be in an SQL database.
LONGEST = 512

#: A Redis sorted set: ids, by the time at which they were revoked.
IDS_KEY = "_celeriac.revoked"
#: Another: JSON arrays of a header and its value.
HEADERS_KEY = "_celeriac.revoked.headers"

ID, HEADER = "id", "header"


class Store(Protocol):
    """Members of a kind, by the time at which they were revoked."""

    def add(self, kind: str, members: list[str], at: float) -> None: ...

    def load(self, kind: str, since: float) -> list[str]:
        """The oldest first."""

    def close(self) -> None: ...


def where(app: Any) -> str | None:
    """Where they are kept: ``broker``, a URL, or nowhere."""
    named = os.environ.get(VARIABLE)
    if named is None:
        named = app.conf.get(SETTING)
    if named is None:
        return BROKER if _can_keep(app) else None
    return str(named) or None


def reader(app: Any) -> str | None:
    """Who can read the store when a worker starts: the Rust parent, over its connection to the
    ``broker``; only Python, where they are kept ``elsewhere``; nobody where there is none.

    They are kept where messages are sent to, and the parent is connected to where they come from.
    """
    named = where(app)
    if named is None:
        return None
    conf = app.conf
    in_broker = named == BROKER and conf.broker_read_url == conf.broker_write_url and _can_keep(app)
    return BROKER if in_broker else ELSEWHERE


def keeps_stamps(app: Any) -> bool:
    """Whether values of stamped headers are kept as well: where a store is named.

    Unlike ids they may come again, and Celery forgets them with the worker.
    """
    named = os.environ.get(VARIABLE)
    return bool(app.conf.get(SETTING) if named is None else named)


def _can_keep(app: Any) -> bool:
    return app.connection_for_write().transport.driver_type in ("redis", "sql")


def open_store(app: Any) -> Store | None:
    """The app's store; ``None`` where there is none.

    Raises:
        ValueError: when what is named can keep nothing.
    """
    named = where(app)
    if named is None:
        return None
    if named != BROKER:
        return RedisStore.at(named)
    connection = app.connection_for_write()
    driver = connection.transport.driver_type
    if driver == "redis":
        return RedisStore.of_broker(connection)
    if driver == "sql":
        return SqlStore(connection)
    raise ValueError(
        f"{SETTING} = 'broker': a broker of the kind {driver!r} can't keep revoked tasks; "
        "name a Redis server instead, such as redis://host/0"
    )


class RedisStore:
    """Two sorted sets."""

    def __init__(self, client: Any, prefix: str = "", connection: Any = None) -> None:
        self._client = client
        self._keys = {ID: prefix + IDS_KEY, HEADER: prefix + HEADERS_KEY}
        self._connection = connection

    @classmethod
    def at(cls, url: str) -> RedisStore:
        import redis

        return cls(redis.Redis.from_url(url))

    @classmethod
    def of_broker(cls, connection: Any) -> RedisStore:
        import redis

        channel = connection.default_channel
        # A client of our own over kombu's pool: kombu's adds the prefix to some commands only.
        client = redis.Redis(connection_pool=channel.pool)
        return cls(client, channel.global_keyprefix, connection)

    def add(self, kind: str, members: list[str], at: float) -> None:
        key = self._keys[kind]
        with self._client.pipeline() as pipeline:
            pipeline.zadd(
                key, {_encode(member): moment for member, moment in _in_order(members, at)}
            )
            pipeline.zremrangebyscore(key, "-inf", at - KEPT)
            pipeline.zremrangebyrank(key, 0, -MOST - 1)
            pipeline.execute()

    def load(self, kind: str, since: float) -> list[str]:
        found = self._client.zrangebyscore(self._keys[kind], since, "+inf")
        return [_decode(member) for member in found]

    def close(self) -> None:
        self._client.close()
        if self._connection is not None:
            self._connection.release()


def _in_order(members: list[str], at: float) -> list[tuple[str, float]]:
    """Members with moments that tell in which order they were given."""
    return [(member, at + number * APART) for number, member in enumerate(members)]


def _encode(member: str) -> bytes:
    return member.encode("utf-8", "surrogatepass")


def _decode(member: Any) -> str:
    return member if isinstance(member, str) else bytes(member).decode("utf-8", "replace")


class SqlStore:
    """A table ``celeriac_revoked``, which is made when something is to be kept."""

    #: How often the database may say no, and seconds that are waited then at most.
    ATTEMPTS, PAUSE = 5, 0.2

    def __init__(self, connection: Any) -> None:
        import sqlalchemy as sa

        self._connection = connection
        self._sa = sa
        # kombu's engine has the options of the app's transport.
        self._engine = connection.default_channel._engine_from_config()
        self._table = sa.Table(
            "celeriac_revoked",
            sa.MetaData(),
            sa.Column("kind", sa.String(16), primary_key=True),
            sa.Column("member", sa.String(LONGEST), primary_key=True),
            sa.Column("revoked_at", sa.Float(53), nullable=False),
        )

    def add(self, kind: str, members: list[str], at: float) -> None:
        kept = [member for member in dict.fromkeys(members) if len(member) <= LONGEST]
        if len(kept) < len(members):
            logger.warning("What is longer than %s characters is not kept as revoked.", LONGEST)
        for attempt in range(self.ATTEMPTS):
            try:
                self._table.create(self._engine, checkfirst=True)
                with self._engine.begin() as transaction:
                    self._write(transaction, kind, kept, at)
                    self._trim(transaction, kind, at)
                return
            except self._sa.exc.DBAPIError:
                if attempt == self.ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0, self.PAUSE))

    def _write(self, transaction: Any, kind: str, members: list[str], at: float) -> None:
        rows = [
            {"kind": kind, "member": member, "revoked_at": moment}
            for member, moment in _in_order(members, at)
        ]
        # All in one order: every worker that hears a revoke writes the same, and none may wait
        # for a row that another holds who waits for one of its own.
        rows.sort(key=itemgetter("member"))
        if rows:
            transaction.execute(self._insert(), rows)

    def _insert(self) -> Any:
        """Inserts a row, or sets the moment of the one that is there."""
        dialect = self._engine.dialect.name
        module = importlib.import_module(
            f"sqlalchemy.dialects.{'mysql' if dialect == 'mariadb' else dialect}"
        )
        statement = module.insert(self._table)
        if dialect in ("mysql", "mariadb"):
            return statement.on_duplicate_key_update(revoked_at=statement.inserted.revoked_at)
        return statement.on_conflict_do_update(
            index_elements=["kind", "member"], set_={"revoked_at": statement.excluded.revoked_at}
        )

    def _trim(self, transaction: Any, kind: str, at: float) -> None:
        columns, select = self._table.c, self._sa.select
        of_kind = columns.kind == kind
        oldest = transaction.execute(
            select(columns.revoked_at)
            .where(of_kind)
            .order_by(columns.revoked_at.desc())
            .offset(MOST)
            .limit(1)
        ).scalar()
        until = max(at - KEPT, oldest if oldest is not None else float("-inf"))
        transaction.execute(self._table.delete().where(of_kind, columns.revoked_at <= until))

    def load(self, kind: str, since: float) -> list[str]:
        if not self._sa.inspect(self._engine).has_table(self._table.name):
            return []
        columns = self._table.c
        wanted = (
            self._sa.select(columns.member)
            .where(columns.kind == kind, columns.revoked_at >= since)
            .order_by(columns.revoked_at)
        )
        with self._engine.connect() as connection:
            return [str(member) for member in connection.execute(wanted).scalars()]

    def close(self) -> None:
        self._engine.dispose()
        self._connection.release()


class Revocations:
    """An app's store, opened when it is first asked for."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._opened: Store | None = None

    def load(self) -> dict[str, Any] | None:
        """``{"ids": […], "headers": {header: [value, …]}}``, the oldest first; ``None`` where there
        is no store."""
        store = self._store()
        if store is None:
            return None
        since = time.time() - KEPT
        try:
            ids, pairs = store.load(ID, since), store.load(HEADER, since)
        except Exception:
            self.close()
            raise
        headers: dict[str, list[str]] = {}
        for pair in pairs:
            header, value = json.loads(pair)
            headers.setdefault(header, []).append(value)
        return {"ids": ids, "headers": headers}

    def add(self, ids: Iterable[str] = (), headers: dict[str, Any] | None = None) -> bool:
        """Keeps ids, and values of stamped headers; ``False`` where there is no store."""
        store = self._store()
        if store is None:
            return False
        now = time.time()
        pairs = [
            json.dumps([header, value])
            for header, values in (headers or {}).items()
            for value in (values if isinstance(values, (list, tuple, set)) else [values])
        ]
        try:
            for kind, members in ((ID, [str(one) for one in ids]), (HEADER, pairs)):
                if members:
                    store.add(kind, members, now)
        except Exception:
            # A connection that failed is not tried again.
            self.close()
            raise
        return True

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _store(self) -> Store | None:
        if self._opened is None:
            self._opened = open_store(self._app)
        return self._opened
