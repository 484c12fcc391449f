"""The pool ``gevent``: each task in a greenlet of one child.

A soft limit, or the end of a task, is an exception that is thrown into its greenlet, which gets it
where it waits. Celery's counterpart: ``celery.concurrency.gevent``.
"""

from __future__ import annotations

import sys
from typing import Any

from celeriac.host.jobs import Job, Jobs, Terminated, current


class GreenletJobs(Jobs):
    def __init__(self, app: Any, channel: Any) -> None:
        import gevent
        from gevent.socket import wait_read

        super().__init__(app, channel)
        self._gevent = gevent
        self._wait_read = wait_read
        self._backends = Backends(app)

    def serve(self) -> int:
        while True:
            status = self.read()
            if status is not None:
                return status
            # Whoever else is ready comes first: there may always be something to read.
            self._gevent.sleep(0)
            self._wait_read(self.channel.fileno())

    def begin(self, job: Job) -> None:
        job.handle = self._gevent.spawn(self.or_die, self._live, job)

    def throw(self, job: Job, exception: BaseException) -> None:
        greenlet = job.handle
        if greenlet is None or greenlet.dead:
            return
        if not has_begun(greenlet, job):
            # One that is killed before never begins, and has no end.
            self._gevent.spawn_later(0.01, self.throw, job, exception)
            return
        if isinstance(exception, Terminated):
            # What code for gevent knows as the end of a greenlet.
            exception = self._gevent.GreenletExit()
        greenlet.kill(exception, block=False)

    def _live(self, job: Job) -> None:
        current.set(job)
        self._backends.lend()
        try:
            ending = self.perform(job)
            # From here on it is too late for any limit.
            job.handle = None
        finally:
            self._backends.take_back()
        self.end(job, ending)


def has_begun(greenlet: Any, job: Job) -> bool:
    context = greenlet.gr_context
    return context is not None and context.get(current) is job


def wait_for_connections(backend: Any) -> None:
    """Has who finds all of a Redis backend's connections in use wait for one, instead of failing:
    there are ``redis_max_connections`` of them, or as many as redis-py allows."""
    import redis

    pool = backend.client.connection_pool
    if type(pool) is redis.ConnectionPool:
        backend.client.connection_pool = redis.BlockingConnectionPool(
            max_connections=pool.max_connections,
            connection_class=pool.connection_class,
            **pool.connection_kwargs,
        )


class Backends:
    """Result backends for greenlets.

    Celery makes one for each greenlet, and with it a connection for each task. Those for Redis are
    safe to be shared, as they are by all with Celery's ``result_backend_thread_safe``. One of
    another kind serves one task after the other.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._idle: list[Any] = []
        redis = sys.modules.get("celery.backends.redis")
        self._is_shared = redis is not None and isinstance(app.backend, redis.RedisBackend)
        if self._is_shared:
            app._backend_cache = app.backend
            wait_for_connections(app.backend)

    def lend(self) -> None:
        """Gives this greenlet a backend, if there is an idle one."""
        if self._idle and not self._is_shared:
            self._app._local.backend = self._idle.pop()

    def take_back(self) -> None:
        """Takes what this greenlet had been lent, or had made."""
        made = getattr(self._app._local, "backend", None)
        if made is not None and not self._is_shared:
            self._idle.append(made)
            self._app._local.backend = None
