"""The app's consumer steps that consume messages of their own.

They live in a thread with a connection of their own: a handler that takes long or raises holds up
the steps in this thread, and nothing else of the worker.

Celery's counterparts: ``celery.bootsteps.ConsumerStep`` and ``Consumer.start``, in whose event loop
these steps live there.
"""

from __future__ import annotations

import functools
import socket
import threading
from typing import Any, Callable

from celery.utils.log import get_logger

logger = get_logger("celery.worker.consumer.consumer")

#: Seconds after which the thread looks whether it is to stop.
POLL = 1.0
#: Seconds between a connection that was lost and the next.
PAUSE = 1.0
#: Seconds between attempts to connect: the first pause, what each is longer by, the longest.
RETRY = {"interval_start": 1, "interval_step": 1, "interval_max": 10}
#: Seconds between two heartbeats, unless the server wants them sooner or the app wants none. The
#: app's own number may be lower: it is made for a loop that nothing holds up.
HEARTBEAT = 600.0
#: Seconds in which a handler should have ended: when a shutdown begins, when tasks have ended,
#: and when there is no time.
CLOSING, ENDING, TERMINATING = 5.0, 30.0, 1.0
#: Seconds for which the start of the worker waits until the steps consume.
STARTING = 5.0


class _Stopping(Exception):
    """Asked to stop while there was no connection."""


class _Lost(Exception):
    """A handler found the connection broken, or one like it of its own."""


class ConsumingSteps:
    """Starts, serves and stops some steps in a thread."""

    def __init__(self, consumer: Any, steps: list[Any]) -> None:
        self._consumer = consumer
        self._steps = steps
        self._started: list[Any] = []
        self._consuming = threading.Event()
        self._stopping = threading.Event()
        self._may_shut_down = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, timeout: float = STARTING) -> None:
        """Begins, and waits so many seconds until the steps consume: what is sent to them once the
        worker is ready must find their queues."""
        if self._steps and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="celeriac-steps", daemon=True)
            self._thread.start()
            self._consuming.wait(timeout)

    def stop(self, timeout: float) -> None:
        """Has the steps closed and stopped; waits so many seconds for what their handlers do."""
        if self._thread is None:
            return
        self._stopping.set()
        if not self._stopped.wait(timeout):
            logger.warning("A handler of a consumer step still runs after %s seconds.", timeout)

    def shutdown(self, timeout: float) -> None:
        """Has the steps that were stopped shut down; waits as :meth:`stop` does."""
        if self._thread is None:
            return
        self._may_shut_down.set()
        self.stop(timeout)
        self._thread.join(timeout if self._stopped.is_set() else 0)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._live()
            except _Stopping:
                break
            except Exception as exc:
                logger.warning("Connection of consumer steps lost: %r. Connecting again.", exc)
                logger.debug("Connection error: %r", exc, exc_info=True)
            self._stopping.wait(PAUSE)
        self._stopped.set()

    def _live(self) -> None:
        """Serves the steps on one connection, until it is lost or they are to stop."""
        connection = self._connect()
        try:
            self._start(connection)
            self._consuming.set()
            while not self._stopping.is_set():
                self._serve(connection)
        except Exception:
            self._each("stop", "restarting")
            raise
        else:
            self._end()
        finally:
            self._started.clear()
            self._consumer.connection = None
            _close(connection)

    def _connect(self) -> Any:
        app = self._consumer.app
        wanted = app.conf.broker_heartbeat
        connection = app.connection_for_read(heartbeat=wanted and max(wanted, HEARTBEAT))

        def tell(exc: BaseException, interval: float) -> None:
            uri = connection.as_uri()
            logger.error("Consumer steps: cannot connect to %s: %s. Trying again.", uri, exc)

        connection.ensure_connection(tell, callback=self._check, **RETRY)
        self._consumer.connection = connection
        return connection

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopping

    def _start(self, connection: Any) -> None:
        for step in self._steps:
            try:
                step.start(self._consumer)
            except connection.connection_errors:
                raise
            except Exception as exc:
                logger.critical(
                    "Consumer step %s can't be started: %r", step.alias, exc, exc_info=True
                )
                continue
            self._started.append(step)
            for consumer in getattr(step, "consumers", None) or ():
                _guard(step, consumer, connection.connection_errors)

    def _serve(self, connection: Any) -> None:
        try:
            connection.drain_events(timeout=POLL)
        except socket.timeout:
            pass
        except (_Lost, *connection.connection_errors, *connection.channel_errors):
            raise
        except Exception as exc:
            # A message that can't be decoded, where nobody is told of it.
            logger.error("A consumer step can't read a message: %r", exc, exc_info=True)
        if connection.heartbeat and connection.supports_heartbeats:
            connection.heartbeat_check()

    def _end(self) -> None:
        self._each("close", "closing", reverse=False)
        self._each("stop", "stopping")
        self._stopped.set()
        self._may_shut_down.wait()
        self._each("shutdown", "shutdown")

    def _each(self, method: str, what: str, reverse: bool = True) -> None:
        for step in self._started[:: -1 if reverse else 1]:
            called = getattr(step, method, None)
            try:
                if called is not None:
                    called(self._consumer)
            except Exception as exc:
                logger.exception("Error on %s %s: %r", what, step.alias, exc)


def _guard(step: Any, consumer: Any, connection_errors: tuple[type[BaseException], ...]) -> None:
    """Has what a handler raises end in the log.

    Its message is not acknowledged then, and comes back when the connection ends.
    """

    def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def handle(*args: Any) -> Any:
            try:
                return handler(*args)
            except connection_errors as exc:
                raise _Lost(repr(exc)) from exc
            except Exception as exc:
                logger.error(
                    "Consumer step %s: its handler raised: %r", step.alias, exc, exc_info=True
                )
                return None

        return handle

    if consumer.on_message is not None:
        consumer.on_message = guarded(consumer.on_message)
    consumer.receive = guarded(consumer.receive)


def _close(connection: Any) -> None:
    try:
        connection.release()
    except Exception as exc:
        logger.debug("Error on closing a connection: %r", exc)
