"""Turns the command line into the arguments of Celery's ``Worker``.

Celery's counterpart: ``celery.bin.worker.worker``, whose option callbacks fall back to the app's
configuration; importing it would cost more than everything else that a start imports.
"""

from __future__ import annotations

import os
from typing import Any

from celeriac.host import processes
from celeriac.host.errors import StartError

#: What ``celery`` exits with for a wrong option.
EX_USAGE = 2

#: Options that fall back to a setting ``worker_<name>``.
DAEMON_OPTIONS = ("logfile", "pidfile", "uid", "gid", "umask")

#: Options that Celery does not have: they are settings ``celeriac_<name>``.
OWN_OPTIONS = ("soft_memory_per_child", "hard_memory_per_child", "max_memory")


def worker_arguments(app: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for ``app.Worker``, by the names that Celery's command line has."""
    from celery.utils.nodenames import default_nodename, host_format, node_format

    arguments = dict(options)
    conf = app.conf
    configure_from_command_line(app, arguments.pop("extra", []))
    arguments.update(user_arguments(app, arguments.pop("user", [])))
    given, default = arguments.pop("disable_prefetch", None), conf.get("worker_disable_prefetch")
    if given is not None or default is not None:
        # Also where it changes nothing: then it is among the changed settings, as in Celery.
        conf.worker_disable_prefetch = default if given is None else given
    for name in OWN_OPTIONS:
        if name in arguments:
            conf[f"celeriac_{name}"] = arguments.pop(name)
    arguments["concurrency"] = concurrency(app, arguments.get("concurrency"))
    arguments["statedb"] = arguments.get("statedb") or conf.worker_state_db
    arguments["schedule_filename"] = (
        arguments.get("schedule_filename") or conf.beat_schedule_filename
    )
    arguments["prefetch_multiplier"] = (
        arguments.get("prefetch_multiplier") or conf.worker_prefetch_multiplier
    )
    for name in DAEMON_OPTIONS:
        arguments[name] = arguments.get(name) or conf.get(f"worker_{name}")
    hostname = host_format(default_nodename(arguments.get("hostname")))
    arguments["hostname"] = hostname
    for name in ("pidfile", "statedb"):
        arguments[name] = node_format(arguments[name], hostname)
    # The command line's own default yields to the configuration, as in Celery.
    pool = arguments.pop("pool", None) or "prefork"
    arguments["pool_cls"] = conf.worker_pool if pool == "prefork" else pool
    return arguments


def user_arguments(app: Any, words: list[str]) -> dict[str, Any]:
    """The values of the app's own options (``app.user_options``), read by Click as Celery does.

    Raises:
        StartError: when the app has no such option, in Click's words.
    """
    preload = list(app.user_options["preload"])
    options = [*app.user_options["worker"], *preload]
    if not (options or words):
        return {}
    import click

    command = click.Command("worker", params=options)
    try:
        values = command.make_context("worker", list(words)).params
    except click.UsageError as exc:
        raise StartError(
            exc.format_message(),
            hint="see `celeriac worker --help` for the options that there are",
            exit_status=EX_USAGE,
        ) from exc
    if preload:
        from celery.signals import user_preload_options

        given = {option.name: values[option.name] for option in preload}
        user_preload_options.send(sender=command, app=app, options=given)
    return dict(values)


def drop_privileges(arguments: dict[str, Any]) -> None:
    """Becomes the user that ``--uid`` and ``--gid`` name."""
    from celery.platforms import maybe_drop_privileges

    uid, gid = arguments.get("uid"), arguments.get("gid")
    if not (uid or gid):
        return
    try:
        maybe_drop_privileges(uid=uid, gid=gid)
    except (KeyError, OSError, RuntimeError, AssertionError) as exc:
        raise StartError(
            f"The user can't be changed (--uid {uid}, --gid {gid}): {exc}",
            hint="start as root, and name a user and a group that exist",
        ) from exc
    # The kernel forgets this with every change of the user.
    processes.die_with_parent(os.getppid())


def umask(value: str | int | None) -> int | None:
    """A mask in octal digits, or a number."""
    if value is None or isinstance(value, int):
        return value
    try:
        return int(value, 8)
    except ValueError as exc:
        raise StartError(
            f"Invalid value for '--umask': {value!r} is no octal number.", exit_status=EX_USAGE
        ) from exc


def concurrency(app: Any, value: str | None) -> Any:
    """``--concurrency``: a number, ``auto``, or the configuration's where empty or zero."""
    if not value:
        return app.conf.worker_concurrency
    if value.strip().lower() == "auto":
        return "auto"
    if not value.isdecimal():
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
