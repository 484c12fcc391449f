"""What the Rust parent must know of the app: read after ``celeryd_after_setup``, written as JSON.

Counterpart: ``crates/celeriac-config``, whose structs have the same members.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
from typing import Any

from celeriac.host import clients, configuration, pools, queues, remote
from celeriac.host import worker as hosted
from celeriac.host.errors import StartError
from celeriac.host.options import umask
from celeriac.host.plain import json_safe

#: Settings that the parent reads under their own names.
SETTINGS = (
    "broker_channel_error_retry",
    "broker_connection_max_retries",
    "broker_connection_retry",
    "broker_connection_retry_on_startup",
    "broker_connection_timeout",
    "broker_heartbeat",
    "broker_native_delayed_delivery_queue_type",
    "celeriac_dead_letter_expires",
    "celeriac_dead_letter_limit",
    "celeriac_delay_store",
    "celeriac_hard_memory_per_child",
    "celeriac_health_address",
    "celeriac_limit_store",
    "celeriac_limits",
    "celeriac_max_deaths",
    "celeriac_max_memory",
    "celeriac_memory_pressure",
    "celeriac_shutdown_deadline",
    "celeriac_soft_memory_per_child",
    "celeriac_unique",
    "celeriac_unknown_task_grace",
    "event_serializer",
    "task_send_sent_event",
    "worker_cancel_long_running_tasks_on_connection_loss",
    "worker_deduplicate_successful_tasks",
    "worker_detect_quorum_queues",
    "worker_enable_soft_shutdown_on_idle",
    "worker_eta_task_limit",
    "worker_proc_alive_timeout",
    "worker_soft_shutdown_timeout",
)

#: Signals that are sent from main only where a receiver is connected.
SIGNALS = (
    "heartbeat_sent",
    "task_received",
    "task_rejected",
    "task_revoked",
    "task_unknown",
    "worker_before_create_process",
)

#: Methods of a Request subclass that main calls in the parent's place.
REQUEST_METHODS = ("on_accepted", "on_success", "on_failure", "on_timeout", "on_retry")


def describe(worker: Any) -> dict[str, Any]:
    """Everything the parent needs, as JSON types."""
    import billiard
    import celery
    import kombu
    from kombu.serialization import prepare_accept_content

    app = worker.app
    conf = app.conf
    warnings: list[str] = []
    described_broker, results_url = broker(app, worker._conninfo), backend_url(app.backend)
    return {
        "versions": {
            "python": platform.python_version(),
            "celery": celery.__version__,
            "celery_series": getattr(celery, "SERIES", ""),
            "kombu": kombu.__version__,
            "billiard": billiard.__version__,
        },
        "platform": platform.platform(),
        "app": {
            "main": app.main or "__main__",
            "id": f"{id(app):#x}",
            "loader": _loader_name(app),
            "task_names": sorted(app.tasks),
        },
        "worker": _worker(worker),
        "daemon": _daemon(worker),
        "broker": described_broker,
        "bus": remote.bus(app),
        "remote": remote.remote(worker),
        "result_backend": app.backend.as_uri(),
        "result_backend_url": results_url,
        "client": clients.describe(app, described_broker, results_url),
        "accept_content": sorted(prepare_accept_content(conf.accept_content)),
        "queues": [queues.describe(queue) for queue in app.amqp.queues.consume_from.values()],
        "tasks": {name: _task(task, warnings) for name, task in app.tasks.items()},
        "signals": [name for name in SIGNALS if getattr(_celery_signals(), name).receivers],
        "settings": settings(app),
        "own_settings": configuration.describe(worker.given.own(app)),
        "logging": _logging(worker),
        "revoked": _revoked(worker),
        "threads": [
            thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
        ],
        "has_worker_steps": bool(app.steps["worker"]),
        "has_consumer_steps": bool(app.steps["consumer"]),
        "warnings": warnings + _warnings(worker),
    }


def settings(app: Any) -> dict[str, Any]:
    """The settings that the worker reads itself."""
    return {name: json_safe(app.conf.get(name)) for name in SETTINGS}


def backend_url(backend: Any) -> str:
    """Where results are, with the password; empty for a backend that has no URL, such as a class
    of the app's own."""
    url = getattr(backend, "url", None)
    return url if isinstance(url, str) else ""


def _celery_signals() -> Any:
    from celery import signals

    return signals


def _loader_name(app: Any) -> str | None:
    from celery.loaders.app import AppLoader
    from celery.utils.imports import qualname

    if isinstance(app.loader, AppLoader):
        return None
    name: str = qualname(app.loader)
    return name[len("celery.loaders") :] if name.startswith("celery.loaders") else name


def _worker(worker: Any) -> dict[str, Any]:
    return {
        "hostname": worker.hostname,
        # What --loglevel says, whatever single loggers have.
        "loglevel": worker.loglevel,
        "pool": pools.kind(worker.pool_cls),
        "concurrency": worker.concurrency,
        "autoscale": list(worker.autoscale) if worker.autoscale else None,
        "max_tasks_per_child": worker.max_tasks_per_child or None,
        "max_memory_per_child": worker.max_memory_per_child or None,
        "time_limit": worker.time_limit,
        "soft_time_limit": worker.soft_time_limit,
        "prefetch_multiplier": worker.prefetch_multiplier,
        "disable_rate_limits": bool(worker.disable_rate_limits),
        "task_events": bool(worker.task_events),
        "statedb": worker.statedb,
    }


def _daemon(worker: Any) -> dict[str, Any]:
    options = worker.options
    return {
        "pidfile": worker.pidfile,
        "uid": os.getuid() if options.get("uid") else None,
        "gid": os.getgid() if options.get("uid") or options.get("gid") else None,
        "umask": umask(options.get("umask")),
    }


def broker(app: Any, connection: Any) -> dict[str, Any]:
    """The broker of a connection, by the members of ``BrokerSettings``."""
    urls = list(connection.alt) or [connection.as_uri(include_password=True)]
    strategy = connection.failover_strategy
    options = dict(connection.transport_options or {})
    ssl = connection.ssl
    driver = connection.transport.driver_type
    return {
        "urls": urls,
        "display": connection.as_uri(),
        "driver": driver,
        "has_quorum_queues": _has_quorum_queues(app, driver),
        "failover_strategy": strategy if isinstance(strategy, str) else "round-robin",
        "transport_options": json_safe(options),
        "ssl": json_safe(ssl) if ssl else None,
        "login_method": connection.login_method,
    }


def _has_quorum_queues(app: Any, driver: str) -> bool:
    if not app.conf.get("worker_detect_quorum_queues"):
        return False
    try:
        from celery.utils.quorum_queues import detect_quorum_queues
    except ImportError:  # before Celery 5.5
        return False
    return bool(detect_quorum_queues(app, driver)[0])


def _task(task: Any, warnings: list[str]) -> dict[str, Any]:
    # Older Celery has one setting for both cases.
    both = getattr(task, "acks_on_failure_or_timeout", True)

    def or_both(value: Any) -> bool:
        return bool(both if value is None else value)

    return {
        "acks_late": bool(task.acks_late),
        "acks_on_failure": or_both(getattr(task, "acks_on_failure", None)),
        "acks_on_timeout": or_both(getattr(task, "acks_on_timeout", None)),
        "reject_on_worker_lost": bool(task.reject_on_worker_lost),
        "retry_on_worker_lost": bool(getattr(task, "retry_on_worker_lost", False)),
        "max_retries": task.max_retries,
        "rate_limit": _rate_limit(task),
        "time_limit": task.time_limit,
        "soft_time_limit": task.soft_time_limit,
        "ignore_result": bool(task.ignore_result),
        "store_errors_even_if_ignored": bool(task.store_errors_even_if_ignored),
        "send_events": bool(task.send_events),
        "exchange": _shown(task, "exchange"),
        "routing_key": _shown(task, "routing_key"),
        "request_methods": _request_methods(task, warnings),
    }


def _shown(task: Any, attribute: str) -> str | None:
    """An attribute as the command ``registered`` shows it."""
    value = getattr(task, attribute, None)
    return None if value is None else str(value)


def _rate_limit(task: Any) -> str | None:
    limit = task.rate_limit
    if limit is None or isinstance(limit, bool):
        return None
    return str(limit)


def _request_methods(task: Any, warnings: list[str]) -> list[str]:
    """The methods that a task's own Request class overrides."""
    if task.Request == hosted.DEFAULT_REQUEST:
        return []
    from celery.utils.imports import symbol_by_name
    from celery.worker.request import Request

    custom = symbol_by_name(task.Request)
    if not (isinstance(custom, type) and issubclass(custom, Request)):
        raise StartError(
            f"The task {task.name} names {task.Request!r} as its Request class, "
            "which is no subclass of celery.worker.request.Request."
        )
    overridden = [
        name
        for name in (*REQUEST_METHODS, "execute_using_pool")
        if getattr(custom, name) is not getattr(Request, name)
    ]
    if "execute_using_pool" in overridden:
        overridden.remove("execute_using_pool")
        warnings.append(
            f"Task {task.name}: {custom.__qualname__}.execute_using_pool() is not called: "
            "the pool belongs to celeriac."
        )
    return overridden


def _logging(worker: Any) -> dict[str, Any]:
    from celery.app import trace

    conf = worker.app.conf
    handler = next(iter(logging.getLogger().handlers), None)
    formatter = getattr(handler, "formatter", None)
    forward = hosted.formats_records_itself(worker)
    level = hosted.lowest_level() if forward else logging.getLogger().getEffectiveLevel()
    return {
        "level": level,
        "format": conf.worker_log_format,
        "datefmt": conf.worker_log_datefmt,
        "file": getattr(handler, "baseFilename", None),
        "color": bool(getattr(formatter, "use_color", False)),
        "forward": forward,
        "received_format": trace.LOG_RECEIVED,
    }


def _revoked(worker: Any) -> list[str]:
    """The ids kept in the state database, which is closed again at once."""
    if not worker.statedb:
        return []
    from celery.worker import state

    try:
        database = state.Persistent(state, worker.statedb, worker.app.clock)
    except Exception as exc:
        raise StartError(
            f"The state database {worker.statedb!r} can't be opened: {exc}",
            hint="check that its folder exists and may be written to (--statedb)",
        ) from exc
    database.close()
    return [str(task_id) for task_id in state.revoked]


def _warnings(worker: Any) -> list[str]:
    found = []
    if worker.pool_start_method != "fork":
        found.append(
            f"pool_start_method {worker.pool_start_method!r} is not used: children are forked "
            "from a process that has one thread and no open connection."
        )
    if os.environ.get("CELERY_CUSTOM_WORKER_POOL"):
        found.append("CELERY_CUSTOM_WORKER_POOL is not used: the pool is celeriac's own.")
    if not sys.flags.utf8_mode and sys.getfilesystemencoding().lower() != "utf-8":
        found.append("The interpreter's file system encoding is not UTF-8.")
    return found
