"""The settings of those who send tasks and read results, for the Rust parent: its tasks do both.

Counterpart: ``celeriac_client::Config::from_settings``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celeriac.host.plain import json_safe

SETTINGS = (
    "broker_connection_timeout",
    "result_backend_transport_options",
    "result_chord_expires",
    "result_chord_join_timeout",
    "result_expires",
    "result_extended",
    "result_failure_expires",
    "result_persistent",
    "task_create_missing_queue_type",
    "task_create_missing_queues",
    "task_default_delivery_mode",
    "task_default_exchange",
    "task_default_priority",
    "task_default_queue",
    "task_default_queue_type",
    "task_default_routing_key",
    "task_ignore_result",
    "task_inherit_parent_priority",
    "task_publish_retry",
    "task_publish_retry_policy",
    "task_queue_max_priority",
    "task_track_started",
    "worker_deduplicate_successful_tasks",
)

#: Settings of single result backends begin with these.
BACKENDS = ("database_", "filesystem_", "mongodb_", "redis_", "s3_")


def describe(app: Any, broker: dict[str, Any], backend_url: str) -> dict[str, Any]:
    """The settings by their names; ``broker`` is what is described of the connection."""
    conf = app.conf
    names = [name for name in conf.keys() if name.startswith(BACKENDS)]
    found = {name: _plain(conf.get(name)) for name in (*SETTINGS, *names)}
    found.update(
        broker_url=";".join(broker["urls"]),
        broker_transport_options=broker["transport_options"],
        broker_use_ssl=broker["ssl"],
        result_backend=_result_backend(app, backend_url),
        task_routes=_routes(conf.task_routes),
    )
    return found


def _result_backend(app: Any, url: str) -> str | None:
    """The URL of the results; a class of the app's own has none: only Python reads its results."""
    named = app.backend_cls or app.conf.result_backend
    # Backends know their URL without what is before a `+`, such as `db+sqlite://`.
    if url and isinstance(named, str) and "+" in named.partition("://")[0]:
        return named
    return url or None


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else json_safe(value)


def _routes(routes: Any) -> dict[str, Any]:
    """The routes that are written down by names and patterns; functions are Python's."""
    if not isinstance(routes, dict):
        return {}
    return {
        name: json_safe(dict(route) if isinstance(route, dict) else {"queue": str(route)})
        for name, route in routes.items()
        if isinstance(name, str) and isinstance(route, (dict, str))
    }
