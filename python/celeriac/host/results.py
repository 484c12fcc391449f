"""Stores results in Redis with one round trip instead of two.

Celery asks for what is stored (a success is never overwritten), then sends a transaction that sets
the key and publishes the value. Here a script does all of it: what it sets, for how long, and what
it publishes is what Celery would. In everything else, and whenever Redis has an objection, the
result goes Celery's own way.

Celery's counterparts: ``BaseKeyValueStoreBackend._store_result`` and ``RedisBackend._set``.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from datetime import timedelta
from operator import attrgetter, is_
from types import FunctionType
from typing import Any

logger = logging.getLogger("celery.worker")

#: The versions whose way of storing is the one below.
CELERY_VERSIONS = ((5, 7),)

#: Takes the value, the seconds it is kept (empty: for ever), and the value that may be replaced.
#: Answers nil when the value is stored, otherwise the value that it found.
SCRIPT = b"""
local stored = redis.call('GET', KEYS[1])
if stored and stored ~= '' and stored ~= ARGV[3] then
  return stored
end
if ARGV[2] == '' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
end
local published = redis.pcall('PUBLISH', KEYS[1], ARGV[1])
if type(published) == 'table' then
  -- A transaction would have stored nothing either.
  redis.call('DEL', KEYS[1])
  return published
end
return false
"""
DIGEST = hashlib.sha1(SCRIPT).hexdigest().encode()

#: What is longer goes Celery's way, lest the server's interpreter has to hold it.
MAX_BYTES = 1 << 20
#: What is longer is not remembered until the task's next state.
MAX_REMEMBERED_BYTES = 4096
#: How often in a row Celery's way may do what the script could not.
MAX_FAILURES = 3
#: How often another process may store another state in between.
MAX_ATTEMPTS = 4

# The methods that are passed over. Who wraps one of them, to trace or to change what it does,
# must find it called.
_OF_BACKEND = (
    *("_store_result", "_get_task_meta_for", "get", "_set_with_state", "set", "ensure", "_set"),
    *("_create_client", "_get_client", "_get_pool"),
)
_OF_CLIENT = (
    *("get", "pipeline", "execute_command", "_execute_command", "parse_response"),
    *("_send_command_parse_response", "__init__"),
)
_OF_PIPELINE = (
    *("set", "setex", "publish", "execute", "execute_command", "pipeline_execute_command"),
    *("immediate_execute_command", "_execute_transaction", "parse_response", "__init__"),
    *("__enter__", "__exit__", "reset"),
)
_OF_CONNECTION = (
    *("send_command", "send_packed_command", "read_response", "pack_command", "pack_commands"),
)


def shorten(app: Any) -> int:
    """Makes the backends of an app and its tasks use the script; returns how many now do.

    To be called before the fork: it connects to nothing.
    """
    backends = _backends(app)
    module = sys.modules.get("celery.backends.redis")
    if module is None or sys.modules["celery"].VERSION[:2] not in CELERY_VERSIONS:
        return 0
    methods = _Methods(module)
    if not methods.are_original():
        return 0
    count = 0
    for backend in backends:
        # A subclass, Sentinel's among them, has ways of its own.
        if type(backend) is module.RedisBackend and "_store_result" not in vars(backend):
            backend._store_result = _Store(backend, methods)._store_result
            count += 1
    return count


def _backends(app: Any) -> list[Any]:
    backends = [app.backend, *(task.backend for task in app.tasks.values())]
    return list({id(backend): backend for backend in backends}.values())


class _Methods:
    """The methods that are passed over, as they are before anybody wraps them."""

    def __init__(self, module: Any) -> None:
        import redis

        self._owners = []
        self._names = frozenset(_OF_BACKEND) - {"_store_result"}
        self._client_names = frozenset(_OF_CLIENT)
        self.client = redis.client.Redis
        self.pools = (redis.connection.ConnectionPool, redis.connection.BlockingConnectionPool)
        self.connections = (
            redis.connection.Connection,
            redis.connection.SSLConnection,
            redis.connection.UnixDomainSocketConnection,
        )
        for owner, names in (
            (module.RedisBackend, _OF_BACKEND),
            (redis.client.Redis, _OF_CLIENT),
            (redis.client.Pipeline, _OF_PIPELINE),
            *((connection, _OF_CONNECTION) for connection in self.connections),
        ):
            # Versions of redis-py differ in what they have.
            get = attrgetter(*(name for name in names if hasattr(owner, name)))
            self._owners.append((get, owner, get(owner)))
        # redis-py's own metrics count the commands that its client sends.
        self._recorder = sys.modules.get("redis.observability.recorder")

    def are_original(self) -> bool:
        """Whether they are those of Celery and redis-py: what wraps one is written elsewhere,
        whatever name it goes by."""
        return all(
            type(method) is FunctionType
            and method.__globals__["__name__"].partition(".")[0] in ("celery", "redis")
            for _, _, methods in self._owners
            for method in methods
        )

    def are_unchanged(self, backend: Any) -> bool:
        # By identity: a wrapper may say that it equals what it wraps.
        for get, owner, methods in self._owners:
            if not all(map(is_, get(owner), methods)):
                return False
        client = backend.client
        pool = client.connection_pool
        return (
            self._names.isdisjoint(vars(backend))
            and type(client) is self.client
            and self._client_names.isdisjoint(vars(client))
            and client.connection is None
            and type(pool) in self.pools
            and pool.connection_class in self.connections
            and getattr(pool, "cache", None) is None
            and getattr(self._recorder, "_metrics_collector", None) is None
        )


class _Store:
    """Stores the results of one backend."""

    def __init__(self, backend: Any, methods: _Methods) -> None:
        from celery import states
        from kombu.utils.encoding import bytes_to_str
        from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

        self._backend = backend
        self._methods = methods
        self._states = states
        self._bytes_to_str = bytes_to_str
        self._no_permission = NoPermissionError
        self._no_script = NoScriptError
        self._response_error = ResponseError
        # Not every Exception: a time limit that strikes here is one.
        self._objections = (RedisError, OSError, UnicodeError)
        self._failures = 0
        #: The key and value of a state that was stored last and may be replaced unseen.
        self._last: tuple[Any, Any] = (None, b"")

    def _store_result(
        self,
        task_id: Any,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        # Named after the method that it stands for: Celery logs the name.
        backend = self._backend
        if self._failures >= MAX_FAILURES or not self._methods.are_unchanged(backend):
            return self._own_way(task_id, result, state, traceback, request, **kwargs)
        meta = backend._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = self._bytes_to_str(task_id)
        key = backend.get_key_for_task(task_id)
        value = backend.encode(meta)
        objection = None
        if len(value) <= MAX_BYTES:
            # A pool that can't connect raises here just as it does where Celery asks what is
            # stored, and is tried again, or not, by the same rules.
            pool = backend.client.connection_pool
            connection = _connection_of(pool)
            try:
                if self._replace(connection, key, value, state):
                    return result
            except self._objections as exc:
                objection = exc
            finally:
                pool.release(connection)
        returned = self._own_way(task_id, result, state, traceback, request, **kwargs)
        if objection is not None:
            self._count(objection)
        return returned

    def _own_way(self, *args: Any, **kwargs: Any) -> Any:
        # Looked up each time: somebody may have wrapped it since.
        return type(self._backend)._store_result(self._backend, *args, **kwargs)

    def _replace(self, connection: Any, key: Any, value: Any, state: str) -> bool:
        """Stores the value unless a success is stored; ``False`` when it came to neither."""
        backend = self._backend
        success = self._states.SUCCESS
        last_key, last = self._last
        replaceable = last if last_key == key else b""
        self._last = None, b""
        for _ in range(MAX_ATTEMPTS):
            arguments = b"1", key, value, self._seconds(state), replaceable
            stored = self._run(connection, arguments)
            self._failures = 0
            if stored is None:
                if state != success and len(value) <= MAX_REMEMBERED_BYTES:
                    self._last = key, value
                return True
            if backend.decode_result(stored)["status"] == success:
                return True
            replaceable = stored
        return False

    def _seconds(self, state: str) -> Any:
        backend = self._backend
        seconds = backend.failure_expires if state == self._states.FAILURE else None
        if seconds is None:
            seconds = backend.expires
        if isinstance(seconds, timedelta):
            seconds = int(seconds.total_seconds())
        return seconds or b""

    def _run(self, connection: Any, arguments: tuple[Any, ...]) -> Any:
        try:
            return self._ask(connection, b"EVALSHA", DIGEST, *arguments)
        except self._no_script:
            return self._ask(connection, b"EVAL", SCRIPT, *arguments)

    def _ask(self, connection: Any, *command: Any) -> Any:
        packed = connection.pack_command(*command)
        try:
            connection.send_packed_command(packed)
            return connection.read_response()
        except self._response_error:
            raise
        except BaseException:
            # Whatever strikes in between, a time limit for one, must not leave an answer to be
            # taken for that of the next command.
            connection.disconnect()
            raise

    def _count(self, objection: BaseException) -> None:
        """Counts what only Celery's way could do: a server that knows no scripts, or forbids
        them, is not asked for ever."""
        forbidden = isinstance(objection, self._no_permission) or (
            isinstance(objection, self._response_error)
            and "unknown command" in str(objection).lower()
        )
        self._failures = MAX_FAILURES if forbidden else self._failures + 1
        if self._failures >= MAX_FAILURES:
            logger.debug("Results are stored without a script from now on: %r", objection)


def _connection_of(pool: Any) -> Any:
    try:
        return pool.get_connection()
    except TypeError:
        # Before redis-py 5.3 it must be told the command.
        return pool.get_connection("EVALSHA")
