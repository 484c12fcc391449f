"""The worker object that Celery's hooks are given.

It is Celery's own :class:`celery.apps.worker.Worker` (or the app's subclass of it), so that
``celeryd_init``, ``worker_init`` and ``celeryd_after_setup`` find everything they know. Only the
parts that the Rust parent replaces are swapped: the bootsteps of the pool, the timer and the
consumer have stand-ins of the same names here, so that an app's own steps can require them.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from typing import Any

from celery import bootsteps, signals
from celery.exceptions import ImproperlyConfigured, SecurityError
from celery.utils.log import worker_logger as logger

from celeriac.host import pools
from celeriac.host.configuration import Given
from celeriac.host.consumer import HostedAutoscaler, HostedConsumer, HostedPool, Parent
from celeriac.host.errors import StartError

#: Settings that name a class which the Rust parent replaces, and the only value it can honour.
REPLACED_CLASSES = {
    "worker_consumer": "celery.worker.consumer:Consumer",
    "worker_autoscaler": "celery.worker.autoscale:Autoscaler",
    "worker_timer": None,
    "worker_agent": None,
}
#: The names under which the Rust parent logs: ``crates/celeriac-worker/src/happening.rs``.
PARENTS_LOGGERS = (
    "celery.apps.worker",
    "celery.worker",
    "celery.worker.autoscale",
    "celery.worker.consumer.connection",
    "celery.worker.consumer.consumer",
    "celery.worker.consumer.gossip",
    "celery.worker.consumer.mingle",
    "celery.worker.control",
    "celery.worker.request",
    "celery.worker.strategy",
    "kombu.pidbox",
)
#: billiard's, which has a handler of its own and the level ERROR.
POOL_LOGGER = "multiprocessing"
DEFAULT_STRATEGY = "celery.worker.strategy:default"
DEFAULT_REQUEST = "celery.worker.request:Request"


def _stand_in(name: str, **attributes: Any) -> type[bootsteps.Step]:
    """A step that does nothing and is found under the name of one of Celery's own."""
    base = bootsteps.StartStopStep if attributes.pop("starts", True) else bootsteps.Step
    step: type[bootsteps.Step] = type(base)(
        name.rpartition(".")[2], (base,), {"name": name, "__module__": __name__, **attributes}
    )
    return step


def _create_timer(_step: Any, worker: Any) -> None:
    # A thread of main that fires what steps schedule with worker.timer.call_repeatedly(); it
    # starts when the first entry is added.
    from celery.utils.timer2 import Timer

    worker.timer = Timer(max_interval=worker.timer_precision or 1.0)


def _create_pool(_step: Any, worker: Any) -> None:
    worker.pool = HostedPool(worker.concurrency, worker.parent, pools.kind(worker.pool_cls))


_WORKER_STEPS = [
    _stand_in("celery.worker.components.Timer", starts=False, create=_create_timer),
    _stand_in("celery.worker.components.Hub"),
    _stand_in("celery.worker.components.Pool", create=_create_pool),
    _stand_in("celery.worker.components.Beat"),
    _stand_in("celery.worker.components.StateDB", starts=False),
    _stand_in("celery.worker.components.Consumer", last=True),
    _stand_in("celery.worker.autoscale.WorkerComponent"),
]
_CONSUMER_STEPS = [
    _stand_in(f"celery.worker.consumer.{module}.{name}", last=name == "Evloop")
    for module, name in (
        ("connection", "Connection"),
        ("mingle", "Mingle"),
        ("events", "Events"),
        ("gossip", "Gossip"),
        ("heart", "Heart"),
        ("control", "Control"),
        ("tasks", "Tasks"),
        ("delayed_delivery", "DelayedDelivery"),
        ("consumer", "Evloop"),
        ("agent", "Agent"),
    )
]


class _Blueprint(bootsteps.Blueprint):  # type: ignore[misc]
    """A blueprint whose stand-ins answer for Celery's own steps wherever they are required."""

    def _firstpass(self, steps: dict[str, Any]) -> None:
        super()._firstpass(steps)
        for step in steps.values():
            step.requires = [steps[required.name] for required in step.requires]


class _WorkerBlueprint(_Blueprint):
    name = "Worker"
    default_steps = frozenset(_WORKER_STEPS)


class _ConsumerBlueprint(_Blueprint):
    name = "Consumer"
    default_steps = frozenset(_CONSUMER_STEPS)


def hosted_worker_class(app: Any) -> type[Any]:
    """``app.Worker``, less what the Rust parent does."""
    base: type[Any] = app.Worker

    class HostedWorker(base):  # type: ignore[misc]
        Blueprint = _WorkerBlueprint
        #: Settings that the operator gave.
        given = Given({})

        def setup_instance(self, **kwargs: Any) -> None:
            refuse_replaced_classes(self)
            self.timer = self.hub = self.semaphore = self.autoscaler = None
            self.parent = Parent()
            self.pool = HostedPool(0, self.parent, pools.kind(self.pool_cls))
            self.pool_queues = kwargs.pop("pool_queues", [])
            autoscale = kwargs.get("autoscale")
            self.autoscale = tuple(autoscale) if autoscale else None
            super().setup_instance(**kwargs)
            self.pool.limit = self.max_concurrency = (
                self.autoscale[0] if self.autoscale else self.concurrency
            )
            self.min_concurrency = self.autoscale[1] if self.autoscale else self.concurrency
            if self.autoscale:
                maximum, minimum = self.autoscale
                self.autoscaler = HostedAutoscaler(maximum, minimum, self.parent)
            consumer = self.consumer = HostedConsumer(self)
            consumer.blueprint = _ConsumerBlueprint(steps=self.app.steps["consumer"])
            consumer.blueprint.apply(consumer, **self.options)
            consumer.part_steps()

        def setup_queues(self, include: Any, exclude: Any = None) -> None:
            super().setup_queues(include, exclude)
            queues = self.app.amqp.queues
            for name in self.pool_queues:
                try:
                    queues.select_add(queues[name])
                except KeyError as exc:
                    raise ImproperlyConfigured(
                        f"The queue {name!r} of a pool is none of task_queues, and is not made up: "
                        "task_create_missing_queues is off."
                    ) from exc

        def after_setup(self) -> None:
            """What Celery does between its set-up and its first step: ``Worker.on_start``."""
            if self._pending_concurrency_log is not None:
                level, text, args = self._pending_concurrency_log
                getattr(logger, level)(text, *args)
            signals.celeryd_after_setup.send(
                sender=self.hostname, instance=self, conf=self.app.conf
            )
            self.set_process_status("-active-")
            if not self._custom_logging and self.redirect_stdouts:
                self.app.log.redirect_stdouts(self.redirect_stdouts_level)

        def on_stopped(self) -> None:
            if self.timer is not None:
                self.timer.stop()

        # What the app's own code asks for:

        def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
            self.parent.ask("shutdown", warm=True, exitcode=exitcode or 0)

        def terminate(self, in_sighandler: bool = False) -> None:
            self.parent.ask("shutdown", warm=False, exitcode=0)

        def reload(self, modules: Any = None, reload: bool = False, reloader: Any = None) -> None:
            # Children are forked of a process that loaded the app once: what is imported here and
            # now would not reach them.
            if reload or any(module not in sys.modules for module in modules or ()):
                raise ValueError(
                    "modules are not imported or reloaded while the worker runs: restart it"
                )
            self.parent.ask("pool_restart")

    HostedWorker.__name__ = HostedWorker.__qualname__ = base.__name__
    return HostedWorker


def create_worker(app: Any, options: dict[str, Any]) -> Any:
    """Builds the worker as ``celery worker`` does; sends ``celeryd_init`` and ``worker_init``."""
    from celeriac.host import options as command_line

    arguments = command_line.worker_arguments(app, options)
    command_line.drop_privileges(arguments)
    mask = command_line.umask(arguments["umask"])
    if mask is not None:
        os.umask(mask)
    try:
        return hosted_worker_class(app)(app=app, **arguments)
    except (ImproperlyConfigured, SecurityError) as exc:
        raise StartError(str(exc)) from exc
    except OSError as exc:
        logfile = arguments["logfile"]
        if logfile is None or exc.filename is None:
            raise
        raise StartError(
            f"The log file {exc.filename!r} can't be opened: {exc.strerror}",
            hint="check that its folder exists and may be written to (--logfile)",
        ) from exc


def refuse_replaced_classes(worker: Any) -> None:
    """Refuses what can't be honoured: classes that would run inside the Rust parent."""
    conf = worker.app.conf
    for setting, default in REPLACED_CLASSES.items():
        value = conf.get(setting)
        if value and value != default:
            raise StartError(
                f"The setting {setting} = {value!r} can't be honoured: "
                "celeriac does this work in its own process, which runs no Python.",
                hint=f"remove {setting}, or run this app with `celery worker`",
            )
    pools.kind(worker.pool_cls)
    strategies = sorted(
        f"{task.name} ({task.Strategy})"
        for task in worker.app.tasks.values()
        if task.Strategy != DEFAULT_STRATEGY
    )
    if strategies:
        raise StartError(
            "These tasks have an execution strategy of their own, which can't be honoured: "
            + ", ".join(strategies),
            hint="remove Task.Strategy, or run these tasks with `celery worker`",
        )


def lowest_level() -> int:
    """The lowest level of which one of the parent's loggers writes a record."""
    return min(logging.getLogger(name).getEffectiveLevel() for name in PARENTS_LOGGERS)


def _parents_loggers() -> list[logging.Logger]:
    """The loggers of the parent's records, and those above them but for the root."""
    names = set()
    for name in PARENTS_LOGGERS:
        while name:
            names.add(name)
            name = name.rpartition(".")[0]
    return [logging.getLogger(name) for name in sorted(names)]


def _is_changed(changed: logging.Logger) -> bool:
    """Whether a logger is other than Celery leaves it."""
    handlers = [one for one in changed.handlers if not isinstance(one, logging.NullHandler)]
    return bool(
        handlers
        or changed.filters
        or changed.disabled
        or not changed.propagate
        or changed.level != logging.NOTSET
    )


def formats_records_itself(worker: Any) -> bool:
    """Whether the app changed logging, so that only Python can write the parent's records."""
    from celery.utils.log import ColorFormatter

    if worker._custom_logging or any(map(_is_changed, _parents_loggers())):
        return True
    pool = logging.getLogger(POOL_LOGGER)
    if len(pool.handlers) > 1 or pool.filters or pool.level > logging.ERROR:
        return True
    root = logging.getLogger()
    if len(root.handlers) != 1 or root.filters:
        return True
    handler = root.handlers[0]
    formatter = handler.formatter
    return (
        type(handler) not in (logging.StreamHandler, logging.handlers.WatchedFileHandler)
        or bool(handler.filters)
        or formatter is None
        or type(formatter) is not ColorFormatter
        or formatter._fmt != worker.app.conf.worker_log_format
    )
