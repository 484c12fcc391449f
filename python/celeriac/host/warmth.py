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
    _try(lambda: _make_a_client(app.backend))


def _make_a_client(backend: Any) -> None:
    if type(backend).__module__ == "celery.backends.redis":
        # Of a backend of its own: the app's must not have one before a fork.
        _ = backend.app._get_backend().client


def _try(what: Callable[..., Any], *arguments: Any) -> None:
    try:
        what(*arguments)
    except Exception:
        return
