"""The pool ``gevent``: each task in a greenlet of one child.

A soft limit, or the end of a task, is an exception that is thrown into its greenlet, which gets it
where it waits. Celery's counterpart: ``celery.concurrency.gevent``.
"""

from __future__ import annotations

import socket
from typing import Any

from celeriac.host.jobs import Job, Jobs, Terminated, current


class GreenletJobs(Jobs):
    def __init__(self, app: Any, channel: Any) -> None:
        import gevent
        from gevent.socket import wait_read

        super().__init__(app, channel)
        self._gevent = gevent
        self._wait_read = wait_read

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
        if greenlet is None:
            return
        if not greenlet.started or greenlet.dead or current_of(greenlet) is not job:
            # It is about to begin. One that is killed before that never does, and has no end.
            if not greenlet.dead:
                self._gevent.spawn_later(0.01, self.throw, job, exception)
            return
        if isinstance(exception, Terminated):
            # What code for gevent knows as the end of a greenlet.
            exception = self._gevent.GreenletExit()
        greenlet.kill(exception, block=False)

    def _live(self, job: Job) -> None:
        current.set(job)
        self.end(job, self.perform(job))


def current_of(greenlet: Any) -> Job | None:
    """The job that a greenlet has begun."""
    context = greenlet.gr_context
    return context.get(current) if context is not None else None


def channel_of(fd: int) -> socket.socket:
    """A socket whose calls do not wait for the hub."""
    from gevent.monkey import get_original

    made: socket.socket = get_original("socket", "socket")(fileno=fd)
    return made
