"""What the Rust parent must know of the app to answer remote control commands and send events.

Counterparts: ``celeriac_core::bus::BusSettings`` and ``celeriac_config``.
"""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any

from kombu.utils.url import maybe_sanitize_url

from celeriac.host import revocations
from celeriac.host.errors import StartError
from celeriac.host.plain import as_kombu_writes, without_passwords

#: Settings by the names that ``BusSettings`` has.
BUS = (
    "control_exchange",
    "control_queue_ttl",
    "control_queue_expires",
    "control_queue_exclusive",
    "control_queue_durable",
    "event_exchange",
    "event_queue_prefix",
    "event_queue_ttl",
    "event_queue_expires",
    "event_queue_exclusive",
    "event_queue_durable",
)


def bus(app: Any) -> dict[str, Any]:
    """Names and limits of what commands and events go through.

    Raises:
        StartError: when the settings contradict one another.
    """
    settings = {name: app.conf.get(name) for name in BUS}
    for kind in ("control", "event"):
        if settings[f"{kind}_queue_durable"] and settings[f"{kind}_queue_exclusive"]:
            raise StartError(
                f"{kind}_queue_durable and {kind}_queue_exclusive cannot both be True: "
                "an exclusive queue is deleted with its connection.",
                hint=f"set one of {kind}_queue_durable and {kind}_queue_exclusive to False",
            )
    # Older Celery does not have all of them.
    return {name: value for name, value in settings.items() if value is not None or _is_span(name)}


def _is_span(name: str) -> bool:
    return name.endswith(("_ttl", "_expires"))


def remote(worker: Any) -> dict[str, Any]:
    """What a node answers of itself, and what it takes part in."""
    from celery.worker import state

    app, conf, options = worker.app, worker.app.conf, worker.options
    return {
        "control": bool(conf.worker_enable_remote_control),
        "gossip": not options.get("without_gossip"),
        "mingle": not options.get("without_mingle"),
        "heartbeat": not options.get("without_heartbeat"),
        "heartbeat_interval": options.get("heartbeat_interval"),
        "control_serializer": conf.task_serializer or "json",
        "event_serializer": conf.event_serializer or "json",
        "signs": "auth" in (conf.task_serializer, conf.event_serializer),
        "commands": _commands(),
        "users": sorted(name for name, handler in _panel().data.items() if not is_celerys(handler)),
        "broker_info": broker_info(app),
        "sw_ver": state.SOFTWARE_INFO["sw_ver"],
        "sw_sys": state.SOFTWARE_INFO["sw_sys"],
        "pool_restarts": bool(conf.worker_pool_restarts),
        "revoke_store": revocations.reader(app),
        # Celery has read them from the environment; JSON has no infinite numbers.
        "revokes_max": state.REVOKES_MAX,
        "revoke_expires": state.REVOKE_EXPIRES if math.isfinite(state.REVOKE_EXPIRES) else 0,
        "keeps_stamps": revocations.keeps_stamps(app),
    }


def _panel() -> Any:
    from celery.worker.control import Panel

    return Panel


def _commands() -> dict[str, dict[str, Any]]:
    return {
        name: {"alias": info.alias, "type": info.type, "visible": bool(info.visible)}
        for name, info in _panel().meta.items()
    }


def is_celerys(handler: Any) -> bool:
    """Whether a handler is one that Celery defines: what wraps it is written elsewhere, whatever
    name it goes by."""
    from celery.worker import control

    return type(handler) is FunctionType and handler.__globals__ is vars(control)


def broker_info(app: Any) -> dict[str, Any]:
    """The connection as ``inspect stats`` shows it."""
    info = app.connection_for_read(heartbeat=app.conf.broker_heartbeat).info()
    info.pop("password", None)
    alternates = info.get("alternates")
    if isinstance(alternates, str):
        info["alternates"] = maybe_sanitize_url(alternates)
    elif alternates:
        info["alternates"] = [maybe_sanitize_url(url) for url in alternates]
    shown: dict[str, Any] = as_kombu_writes(without_passwords(info))
    return shown
