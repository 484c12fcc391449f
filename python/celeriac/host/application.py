"""Finds the app as ``celery -A`` does, and says in the user's terms what went wrong.

Celery's counterpart: ``celery.bin.celery.celery`` and ``celery.app.utils.find_app``.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import TracebackType
from typing import Any

from celeriac.host.errors import StartError

#: The exit status of ``celery`` for a wrong command line.
EX_USAGE = 2


def import_celery() -> None:
    """Imports Celery itself, before the app's folder is put on the path.

    A file ``celery.py`` in that folder would hide the library otherwise.
    """
    try:
        importlib.import_module("celery")
    except ModuleNotFoundError as exc:
        if exc.name != "celery":
            raise StartError(
                f"Celery can't be imported by {sys.executable}: {exc}",
                traceback=format_exception(exc),
            ) from exc
        raise StartError(
            f"Celery is not installed for {sys.executable}.",
            hint=(
                "install it there (`pip install celery`), or name the interpreter of your app "
                "with --python, CELERIAC_PYTHON or an activated virtual environment"
            ),
        ) from exc


def put_workdir_on_path() -> None:
    """Makes the working directory importable, before everything else."""
    cwd = os.getcwd()
    if cwd not in sys.path:
        sys.path.insert(0, cwd)


def find_app(name: str | None) -> Any:
    """The Celery app that ``-A name`` stands for; without a name the default app.

    Raises:
        StartError: naming the module or attribute that is missing, or with the app's traceback.
    """
    if not name:
        from celery._state import get_current_app

        return get_current_app()
    from celery.app.base import Celery
    from celery.app.utils import find_app as celery_find_app
    from celery.local import Proxy

    try:
        app = celery_find_app(name)
    except ModuleNotFoundError as exc:
        if ":" in name and exc.name == name:
            # What Celery tries last when the module lacks the attribute, or when it raised an
            # AttributeError of its own.
            first = exc.__context__
            if first is not None and traceback_of_app(first.__traceback__) is not None:
                raise _broken_app(name, first) from first
            module, _, attribute = name.partition(":")
            raise StartError(
                f"Unable to load celery application.\nModule '{module}' has no attribute "
                f"'{attribute}'",
                hint="name the app's variable: -A module:variable",
                exit_status=EX_USAGE,
            ) from exc
        if _is_part_of(exc.name, name):
            raise StartError(
                f"Unable to load celery application.\nThe module {exc.name} was not found.",
                hint=(
                    f"-A {name} is looked for in {os.getcwd()} and on Python's path; "
                    "is the name right, or is --workdir missing?"
                ),
                exit_status=EX_USAGE,
            ) from exc
        raise _broken_app(name, exc) from exc
    except AttributeError as exc:
        if traceback_of_app(exc.__traceback__) is not None:
            raise _broken_app(name, exc) from exc
        missing = str(exc)
        raise StartError(
            f"Unable to load celery application.\n{missing[:1].upper()}{missing[1:]}",
            hint=f"name the app's variable: -A {name.partition(':')[0]}:app",
            exit_status=EX_USAGE,
        ) from exc
    except (Exception, SystemExit) as exc:
        raise _broken_app(name, exc) from exc
    if isinstance(app, Proxy):
        app = app._get_current_object()
    if not isinstance(app, Celery):
        raise StartError(
            f"Unable to load celery application.\n{name} is {_article(type(app).__name__)}, "
            "not a Celery app.",
            hint=f"name the app's variable: -A {name.partition(':')[0]}:app",
            exit_status=EX_USAGE,
        )
    return app


def format_exception(exc: BaseException) -> str:
    """The traceback as the app's author should see it: without the frames of this package, of the
    import machinery, and of Celery's own search for the app."""
    context = exc.__context__
    if isinstance(context, ValueError) and str(exc).startswith("Couldn't import "):
        # kombu's words around the app's own error.
        exc = context
    link: BaseException | None = exc
    seen: list[BaseException] = []  # an error can be its own cause
    while link is not None and not any(link is one for one in seen):
        seen.append(link)
        link.__traceback__ = traceback_of_app(link.__traceback__)
        context = link.__context__
        # The search for the app tries several names: what failed on the way, or failed the same
        # way before, says nothing about the app.
        if context is not None and link.__cause__ is None:
            is_same = repr(context) == repr(link)
            if is_same or traceback_of_app(context.__traceback__) is None:
                link.__context__ = None
        link = link.__cause__ or link.__context__
    return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__)).rstrip("\n")


def traceback_of_app(tb: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the app's own code, ``None`` when it has none."""
    while tb is not None:
        filename = tb.tb_frame.f_code.co_filename
        module = tb.tb_frame.f_globals.get("__name__", "")
        machinery = filename.startswith(("<celeriac>", "<frozen importlib"))
        library = module.partition(".")[0] in ("celeriac", "celery", "kombu", "importlib")
        if not (machinery or library):
            return tb
        tb = tb.tb_next
    return None


def _broken_app(name: str, exc: BaseException) -> StartError:
    return StartError(
        "Unable to load celery application.\n"
        f"While trying to load the module {name} the following error occurred:",
        hint=(
            "mend the app where the traceback ends; "
            f"`python -c 'import {name.partition(':')[0]}'` in {os.getcwd()} shows whether it loads"
        ),
        traceback=format_exception(exc),
        exit_status=EX_USAGE,
    )


def _is_part_of(missing: str | None, name: str) -> bool:
    """Whether the module that is missing is the one asked for, or a package on the way to it."""
    wanted = name.partition(":")[0]
    return missing is not None and (wanted == missing or wanted.startswith(missing + "."))


def _article(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
