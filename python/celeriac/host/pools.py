"""The kinds of pools that there are, and what each needs of the interpreter.

Celery's counterparts: ``celery.concurrency``, ``celery.maybe_patch_concurrency``. Counterpart in
Rust: ``crates/celeriac-pool/src/prefork/kind.rs``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

from celeriac.host.errors import StartError

PREFORK, SOLO, THREADS, GEVENT, ASYNCIO = "prefork", "solo", "threads", "gevent", "asyncio"

#: Classes by which Celery knows them.
_CLASSES = {
    "celery.concurrency.prefork:TaskPool": PREFORK,
    "celery.concurrency.solo:TaskPool": SOLO,
    "celery.concurrency.thread:TaskPool": THREADS,
    "celery.concurrency.gevent:TaskPool": GEVENT,
    "celeriac.host.pools:AsyncioPool": ASYNCIO,
}
_HINT = (
    "use one of the pools prefork, solo, threads, gevent and asyncio (--pool, worker_pool), or run "
    "this app with `celery worker`"
)


def prepare(name: str | None) -> None:
    """What has to be done before Celery and the app are imported, for the pool on the command line.

    Raises:
        StartError: when there is no such pool, or what it needs is not installed.
    """
    name = name or PREFORK
    if name == "eventlet":
        raise StartError(
            "The pool 'eventlet' is not available: eventlet is no longer developed, and celeriac "
            "does not run it.",
            hint="use `--pool gevent`, which does the same, or `--pool asyncio`",
        )
    if name == "custom":
        raise StartError(
            "The pool 'custom' is not available: a pool class of the app's own "
            "(CELERY_CUSTOM_WORKER_POOL) would run inside the Rust parent, which runs no Python.",
            hint="use `--pool gevent` or `--pool asyncio`, or run this app with `celery worker`",
        )
    if name == GEVENT:
        _need("gevent", GEVENT)
        import gevent.monkey

        gevent.monkey.patch_all()
    if name == ASYNCIO:
        _need("greenlet", ASYNCIO)
        # Celery's stacks are then of a kind whose owner can be chosen.
        os.environ.pop("USE_FAST_LOCALS", None)


def make_known() -> None:
    """Adds asyncio to the pools that Celery knows by name."""
    from celery import concurrency

    concurrency.ALIASES[ASYNCIO] = "celeriac.host.pools:AsyncioPool"


def kind(pool: Any) -> str:
    """The kind of a pool, by its class or the class's name.

    Raises:
        StartError: when the pool is none that celeriac runs, or can't be any more.
    """
    name = pool if isinstance(pool, str) else f"{pool.__module__}:{pool.__qualname__}"
    # Celery makes a class of the name after it has called what asks this first.
    names = {"processes": PREFORK, **{name: name for name in _CLASSES.values()}}
    found = _CLASSES.get(name) or names.get(name)
    if found is None:
        raise StartError(f"The pool {name!r} is not available.", hint=_HINT)
    if found == GEVENT and not is_patched():
        raise StartError(
            "The pool gevent is set by worker_pool, which is read when the app is loaded: too late "
            "for gevent's patches of the standard library.",
            hint="name the pool on the command line: --pool gevent",
        )
    if found == ASYNCIO:
        _need("greenlet", ASYNCIO)
    return found


def is_patched() -> bool:
    """Whether gevent has patched the standard library."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def original(module: str, name: str) -> Any:
    """A function of the standard library as it is without gevent's patches.

    Processes that fork must not start gevent's hub: its event loop would be shared with the fork.
    """
    if is_patched():
        from gevent.monkey import get_original

        return get_original(module, name)
    return getattr(importlib.import_module(module), name)


def after_fork() -> None:
    """Gives a forked process an event loop of its own, where the app has started gevent's hub."""
    if is_patched():
        import gevent

        gevent.reinit()


def _need(module: str, pool: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise StartError(
            f"The pool {pool} needs the package {module}, which is not installed for "
            f"{sys.executable}.",
            hint=f"install it there: `pip install {module}`",
        )


def __getattr__(name: str) -> Any:
    # Not before: it imports Celery.
    if name != "AsyncioPool":
        raise AttributeError(name)
    from celery.concurrency.base import BasePool

    class AsyncioPool(BasePool):  # type: ignore[misc]
        """What Celery's worker knows of the pool: its name."""

    AsyncioPool.__qualname__ = "AsyncioPool"
    globals()[name] = AsyncioPool
    return AsyncioPool
