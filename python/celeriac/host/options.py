"""Turns the command line into the arguments of Celery's ``Worker``.

Celery's counterpart: ``celery.bin.worker.worker``, whose option callbacks fall back to the app's
configuration; importing it would cost more than everything else that a start imports.
"""

from __future__ import annotations

from typing import Any

from celeriac.host.errors import StartError

#: What ``celery`` exits with for a wrong option.
EX_USAGE = 2


def worker_arguments(app: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for ``app.Worker``, by the names that Celery's command line has."""
    arguments = dict(options)
    conf = app.conf
    configure_from_command_line(app, arguments.pop("extra", []))
    if arguments.get("disable_prefetch") is not None:
        conf.worker_disable_prefetch = arguments.pop("disable_prefetch")
    arguments["concurrency"] = concurrency(app, arguments.get("concurrency"))
    arguments["statedb"] = arguments.get("statedb") or conf.worker_state_db
    arguments["schedule_filename"] = (
        arguments.get("schedule_filename") or conf.beat_schedule_filename
    )
    arguments["prefetch_multiplier"] = (
        arguments.get("prefetch_multiplier") or conf.worker_prefetch_multiplier
    )
    # The command line's own default yields to the configuration, as in Celery.
    pool = arguments.pop("pool", None) or "prefork"
    arguments["pool_cls"] = conf.worker_pool if pool == "prefork" else pool
    return arguments


def concurrency(app: Any, value: str | None) -> Any:
    """``--concurrency``: a number, ``auto``, or the configuration's where empty or zero."""
    if not value:
        return app.conf.worker_concurrency
    if value.strip().lower() == "auto":
        return "auto"
    if not value.isdigit():
        raise StartError(
            f"Invalid value for '-c' / '--concurrency': must be a non-negative integer or 'auto', "
            f"got {value!r}",
            exit_status=EX_USAGE,
        )
    return int(value) or app.conf.worker_concurrency


def configure_from_command_line(app: Any, extra: list[str]) -> None:
    """``-- worker.prefetch_multiplier=1 broker.url=…``"""
    if not extra:
        return
    try:
        app.config_from_cmdline(extra, namespace="worker")
    except (KeyError, ValueError) as exc:
        raise StartError(
            f"Unable to parse extra configuration from command line.\nReason: {exc}",
            hint="write settings as `-- worker.prefetch_multiplier=1`",
            exit_status=EX_USAGE,
        ) from exc
