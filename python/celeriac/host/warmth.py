"""What a child would otherwise do anew before its first task: done once, before it is forked."""

from __future__ import annotations

import codecs
import importlib
from typing import Any, Callable

#: Modules that libraries import only when they are first used: redis its random numbers, sockets
#: the codec for host names.
_LATE_MODULES = (
    "secrets",
    "hmac",
    "stringprep",
    "unicodedata",
    "celery.concurrency.prefork",
    "celery.app.trace",
    "celery.result",
    "celery.canvas",
    "celery.worker.state",
)


def import_what_tasks_need(app: Any) -> None:
    """Imports what a first task and the storing of its result need, and opens no connection.

    Nothing of this has to succeed: who needs it will say so.
    """
    for name in _LATE_MODULES:
        _try(importlib.import_module, name)
    _try(codecs.lookup, "idna")
    _try(lambda: app.connection_for_write().get_transport_cls())
    _try(lambda: _import_driver(app.backend))


def _import_driver(backend: Any) -> None:
    url = getattr(backend, "url", None)
    if type(backend).__module__ == "celery.backends.database" and isinstance(url, str):
        from sqlalchemy.engine import make_url

        dialect = make_url(url).get_dialect()
        (dialect.import_dbapi if hasattr(dialect, "import_dbapi") else dialect.dbapi)()
    elif type(backend).__module__ == "celery.backends.redis":
        # The client of a backend of its own: the app's must not be made before a fork.
        from celery.app import backends

        made, made_url = backends.by_url(backend.app.conf.result_backend, backend.app.loader)
        _ = made(app=backend.app, url=made_url).client


def _try(what: Callable[..., Any], *arguments: Any) -> None:
    try:
        what(*arguments)
    except Exception:
        return
