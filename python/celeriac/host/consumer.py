"""The consumer that bootsteps and remote control commands of the app are given.

What it consists of stands for Celery's own parts, which the Rust parent replaces. What the app asks
of them is told to the parent: ``{"command": "pool_grow", "arguments": {"n": 1}}``. Commands are
those of the remote control (``celery.worker.control``), and these:

- ``prefetch_count`` with ``by``, a number that may be negative;
- ``terminate_job`` with ``pid`` and the number ``signal``;
- ``shutdown`` with ``warm`` and ``exitcode``.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Callable

from celery.bootsteps import ConsumerStep
from celery.utils.log import get_logger

from celeriac.host import pools
from celeriac.host.steps import ConsumingSteps

logger = get_logger("celery.worker.consumer.consumer")

#: How a lost event is sent again: at once, on a new connection, or not at all.
EVENT_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class Parent:
    """The Rust parent, as far as it can be asked for something."""

    def __init__(self) -> None:
        #: Sends a command's name and arguments; main knows how.
        self.send: Callable[[str, dict[str, Any]], None] | None = None

    def ask(self, command: str, **arguments: Any) -> None:
        if self.send is not None:
            self.send(command, arguments)


class HostedPool:
    """Stands for the pool in ``worker.pool``: the children belong to the Rust parent."""

    signal_safe = True

    def __init__(self, limit: int, parent: Parent, kind: str) -> None:
        self.limit = limit
        self._parent = parent
        self._kind = kind
        self.is_green = kind == pools.GEVENT
        self.task_join_will_block = not self.is_green

    @property
    def num_processes(self) -> int:
        return self.limit

    @property
    def info(self) -> dict[str, Any]:
        return {"implementation": f"celeriac:{self._kind}", "max-concurrency": self.limit}

    def grow(self, n: int = 1) -> None:
        self.limit += n
        self._parent.ask("pool_grow", n=n)

    def shrink(self, n: int = 1) -> None:
        self.limit = max(self.limit - n, 0)
        self._parent.ask("pool_shrink", n=n)

    def restart(self) -> None:
        self._parent.ask("pool_restart")

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        from celery.platforms import signals

        self._parent.ask("terminate_job", pid=pid, signal=int(signals.signum(signal or "TERM")))

    def flush(self) -> None:
        pass


class HostedAutoscaler:
    """Stands for ``worker.autoscaler``."""

    def __init__(self, maximum: int, minimum: int, parent: Parent) -> None:
        self.max_concurrency = maximum
        self.min_concurrency = minimum
        self._parent = parent

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:
        if max is not None:
            self.max_concurrency = max
        if min is not None:
            self.min_concurrency = min
        self._parent.ask("autoscale", max=max, min=min)
        return self.max_concurrency, self.min_concurrency

    def info(self) -> dict[str, int]:
        return {"max": self.max_concurrency, "min": self.min_concurrency}


class HostedQoS:
    """Stands for ``consumer.qos``: how many messages are fetched at most."""

    def __init__(self, value: int, parent: Parent) -> None:
        self.value = value
        self._parent = parent

    def increment_eventually(self, n: int = 1) -> int:
        return self._change(n)

    def decrement_eventually(self, n: int = 1) -> int:
        return self._change(-n)

    def _change(self, by: int) -> int:
        # No bound is no bound, whatever is added.
        if self.value:
            self.value = max(self.value + by, 1)
            self._parent.ask("prefetch_count", by=by)
        return self.value


class HostedHeart:
    """Stands for ``celery.worker.heartbeat.Heart``, the sender of ``heartbeat_sent``."""

    eventer = None
    interval = 2.0
    tref = None

    def __init__(self, timer: Any) -> None:
        self.timer = timer


class HostedConsumer:
    """Stands for the consumer, which is the sender of ``worker_ready`` and ``task_received``.

    The Rust parent owns the connection that fetches tasks; here each thread that asks for
    :attr:`connection` has one of its own.
    """

    hub = None
    # Messages of tasks come to the Rust parent.
    task_consumer = None
    restart_count = 0

    def __init__(self, controller: Any) -> None:
        self.controller = controller
        self.app = controller.app
        self.hostname = controller.hostname
        self.pool = controller.pool
        self.parent: Parent = controller.parent
        self.timer = controller.timer
        self.heart = HostedHeart(self.timer)
        self.pid = os.getpid()
        #: The steps that only start and stop, and those that consume.
        self.steps: list[Any] = []
        self.consuming = ConsumingSteps(self, [])
        self.blueprint: Any = None
        self.disable_rate_limits = controller.disable_rate_limits
        self.prefetch_multiplier = controller.prefetch_multiplier
        self.initial_prefetch_count = controller.concurrency * controller.prefetch_multiplier
        self.qos = HostedQoS(self.initial_prefetch_count, self.parent)
        self.amqheartbeat = self.app.conf.broker_heartbeat
        self.task_buckets: dict[str, Any] = defaultdict(lambda: None)
        self._rate_limits = {name: task.rate_limit for name, task in self.app.tasks.items()}
        self._groups = None if controller.task_events else ["worker"]
        self._lock = threading.Lock()
        self._dispatcher: Any = None
        self._of_thread = threading.local()
        self._connections: list[Any] = []
        self._consumes = False

    def part_steps(self) -> None:
        """Parts the steps that consume from the others."""
        consuming = [step for step in self.steps if isinstance(step, ConsumerStep)]
        self.steps = [step for step in self.steps if step not in consuming]
        self.consuming = ConsumingSteps(self, consuming)

    # -- what listens ----------------------------------------------------------------------------

    @cached_property
    def gossip(self) -> Any:
        """Celery's own, which listens for other workers only where the app asks for it."""
        from celeriac.host.gossip import HostedGossip

        made = HostedGossip(self)
        # Before, others may yet be forked of this process. Callbacks are added in no time, and must
        # hear of the first that is heard.
        if self._consumes and made.enabled:
            made.consuming.start(0)
        return made

    def begin(self) -> None:
        """Main runs: where no steps are to be started, what listens need not wait for them."""
        if not self.app.steps["consumer"]:
            self.start_consuming()

    def start_consuming(self) -> None:
        """Starts the threads of those steps that consume."""
        self._consumes = True
        for each in self._all_consuming():
            each.start()

    def stop_consuming(self, timeout: float) -> None:
        """Stops the steps that consume; each is given so many seconds for what it does."""
        self._consumes = False
        for each in self._all_consuming():
            each.stop(timeout)

    def end_consuming(self, timeout: float) -> None:
        """Ends the threads of the steps that consume, each of which is given so many seconds."""
        self._consumes = False
        for each in self._all_consuming():
            each.shutdown(timeout)

    def _all_consuming(self) -> Iterator[ConsumingSteps]:
        yield self.consuming
        # A step may have asked for it while it was started.
        made: Any = vars(self).get("gossip")
        if made is not None and made.enabled:
            yield made.consuming

    # -- connections -----------------------------------------------------------------------------

    @property
    def connection(self) -> Any:
        made = getattr(self._of_thread, "connection", None)
        if made is None:
            made = self.app.connection_for_read()
            self._connections.append(made)
            self._of_thread.connection = made
        return made

    @connection.setter
    def connection(self, connection: Any) -> None:
        self._of_thread.connection = connection

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        errors: tuple[type[BaseException], ...] = self.connection.connection_errors
        return errors

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        errors: tuple[type[BaseException], ...] = self.connection.channel_errors
        return errors

    @property
    def conninfo(self) -> Any:
        return self.connection

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        return self.app.connection_for_read(heartbeat=heartbeat)

    def connection_for_write(self, url: Any = None, heartbeat: float | None = None) -> Any:
        return self.app.connection_for_write(url=url, heartbeat=heartbeat)

    def close(self) -> None:
        """Gives up all connections."""
        with self._lock:
            dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            dispatcher.close()
            self._connections.append(dispatcher.connection)
        while self._connections:
            self._connections.pop().release()
        self._of_thread = threading.local()

    # -- events ----------------------------------------------------------------------------------

    @property
    def event_dispatcher(self) -> Any:
        """A dispatcher on a connection of its own; events of all threads go through it."""
        with self._lock:
            if self._dispatcher is None:
                self._dispatcher = self._make_dispatcher()
            return self._dispatcher

    def _make_dispatcher(self) -> Any:
        options = self.controller.options
        made = self.app.events.Dispatcher(
            self.app.connection_for_write(),
            hostname=self.hostname,
            enabled=(
                self._groups is None
                or not options.get("without_gossip")
                or not options.get("without_heartbeat")
            ),
            groups=self._groups,
        )
        send = made.send

        def send_again_if_lost(type: str, blind: bool = False, **fields: Any) -> Any:
            return send(type, blind, **{"retry": True, "retry_policy": EVENT_RETRY, **fields})

        made.send = send_again_if_lost
        return made

    def set_event_groups(self, groups: list[str] | None) -> None:
        """What is sent from now on: events of these groups, or all."""
        with self._lock:
            self._groups = groups
            if self._dispatcher is not None:
                self._dispatcher.groups = set(groups or ())

    # -- what the app may ask for ----------------------------------------------------------------

    def call_soon(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def add_task_queue(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> None:
        self.parent.ask(
            "add_consumer",
            queue=queue,
            exchange=exchange,
            exchange_type=exchange_type,
            routing_key=routing_key,
            **options,
        )

    def cancel_task_queue(self, queue: str) -> None:
        self.parent.ask("cancel_consumer", queue=queue)

    def reset_rate_limits(self) -> None:
        """Has the limits count that tasks have been given since."""
        for name, task in self.app.tasks.items():
            if self._rate_limits.get(name) != task.rate_limit:
                self._rate_limits[name] = task.rate_limit
                self.parent.ask("rate_limit", task_name=name, rate_limit=task.rate_limit)

    def update_strategies(self) -> None:
        pass

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        log_undecodable(message, exc)
        message.ack()


def log_undecodable(message: Any, exc: BaseException) -> None:
    """Writes of a message that can't be decoded what Celery does."""
    from celery.worker.consumer.consumer import MESSAGE_DECODE_ERROR, dump_body
    from kombu.utils.encoding import safe_repr

    logger.critical(
        MESSAGE_DECODE_ERROR,
        exc,
        message.content_type,
        message.content_encoding,
        safe_repr(message.headers),
        dump_body(message, message.body),
        exc_info=exc,
    )
