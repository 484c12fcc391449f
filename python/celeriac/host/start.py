"""The process that loads the app: its first minute, until it splits into main and zygote.

Order and hooks are those of ``celery worker`` (``celery.bin.celery``, ``celery.apps.worker``).
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from typing import Any, NoReturn

from celeriac.host import application, pools, processes, warmth
from celeriac.host.errors import StartError
from celeriac.host.wire import Channel, Closed


def run(control: int, zygote: int, start: dict[str, Any]) -> NoReturn:
    """Loads the app, describes it to the Rust parent, splits when told to, and becomes main."""
    processes.leave_signals_to_parent()
    channel = Channel(socket.socket(fileno=control))
    parent = socket.socket(fileno=zygote)
    try:
        worker = load(start)
        from celeriac.host import results
        from celeriac.host.description import describe

        channel.write({"ready": describe(worker)})
        results.shorten(worker.app)
        channel.read()
        if start["detaches"]:
            processes.leave_terminal()
    except StartError as exc:
        _refuse(channel, exc)
    except Closed:
        sys.exit(1)
    except SystemExit as exc:
        _refuse(channel, StartError(f"The app ended the process while it was loaded: {exc!r}"))
    except Exception as exc:
        text = application.format_exception(exc)
        _refuse(channel, StartError(f"The worker could not be set up: {exc!r}", traceback=text))
    warmth.import_what_tasks_need(worker.app)
    # What is loaded now is shared by all processes: the collector must not touch (and so copy)
    # it again.
    gc.collect()
    gc.freeze()
    processes.flush_standard_streams()
    if start["only_zygote"]:
        channel.close()
        _become_zygote(parent, worker)
    _fork_zygote(channel, parent, worker)
    parent.close()
    from celeriac.host import main

    main.run(channel.detach(), worker)


def load(start: dict[str, Any]) -> Any:
    """The worker object of the app, after ``celeryd_after_setup``."""
    sys.argv[:] = start["argv"]
    gc.disable()
    pools.prepare(start["options"].get("pool"))
    application.import_celery()
    pools.make_known()
    application.put_workdir_on_path()
    from celeriac.host import child, configuration, logs, urls

    # All of this stays: the collector need not go through it while the app is loaded, nor at its
    # end.
    gc.freeze()
    gc.enable()
    child.install_workloop()
    given = configuration.Given(start["settings"])
    given.install()
    app = application.find_app(start["app"])
    try:
        from celeriac.host.worker import create_worker

        given.put_over(app)
        if start["log_format"] == "json":
            logs.set_up_as_json(app.log)
        worker = create_worker(app, start["options"])
        worker.given = given
        if start["log_format"] == "json":
            logs.write_json()
        worker.after_setup()
        urls.check(app)
    except StartError:
        raise
    except Exception as exc:
        if isinstance(exc, ValueError):
            urls.check(app)
        if application.traceback_of_app(exc.__traceback__) is None and not _is_import(exc):
            raise
        raise StartError(
            "The app could not be set up: the following error occurred:",
            traceback=application.format_exception(exc),
        ) from exc
    return worker


def _is_import(exc: BaseException) -> bool:
    return isinstance(exc, (ImportError, SyntaxError))


def _fork_zygote(channel: Channel, parent: socket.socket, worker: Any) -> None:
    """Forks the zygote so that the Rust parent, a subreaper, is its parent as well: should main
    die, or look after children of its own, the zygote is none of its business."""
    fork, waitpid = pools.original("os", "fork"), pools.original("os", "waitpid")
    first = fork()
    if first == 0:
        if fork():
            os._exit(0)
        channel.close()
        _become_zygote(parent, worker)
    waitpid(first, 0)


def _become_zygote(parent: socket.socket, worker: Any) -> NoReturn:
    from celeriac.host.zygote import Zygote

    def become_main(control: int) -> NoReturn:
        # Not before: the first child would have to wait for it.
        from celeriac.host import main

        main.run(control, worker)

    try:
        Zygote(parent, worker, become_main).run()
    except SystemExit:
        raise  # a later main, forked from here, leaves as the first one does
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(70)


def _refuse(channel: Channel, error: StartError) -> NoReturn:
    channel.write(
        {
            "failed": {
                "message": str(error),
                "hint": error.hint,
                "traceback": error.traceback,
                "exit_status": error.exit_status,
            }
        }
    )
    sys.exit(error.exit_status)
