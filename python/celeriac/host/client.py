"""The commands that Celery itself carries out: ``celeriac inspect``, ``control``, ``events``, …

They are Celery's own, in the app's interpreter. Added is what reaches the nodes of this machine
where the broker has no fanout, and what keeps a revoke for workers that start later.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import warnings
from typing import Any

from celeriac.host import configuration
from celeriac.host.configuration import Given

NO_CELERY = """\
Error: Celery is not installed for {executable}.

To mend this: install it there (`pip install celery`), or name the interpreter of your app with \
--python, CELERIAC_PYTHON or an activated virtual environment."""

#: What an operator is told in a node's place when no node has replied.
KEPT = "recorded: no node replied, workers that start later will heed it"


def main(settings: dict[str, Any]) -> None:
    """Becomes the program ``celery`` with the words in ``sys.argv``; ``settings`` count over those
    of the app."""
    sys.argv[0] = "celery"
    # Celery's `events` has it for two options.
    warnings.filterwarnings("ignore", message="The parameter -d is used more than once")
    try:
        from celery.__main__ import main as celery
    except ModuleNotFoundError as exc:
        if exc.name != "celery":
            raise
        sys.exit(NO_CELERY.format(executable=sys.executable))
    install()
    given = Given(settings)
    put_over_apps(given)
    add_commands(given)
    celery()


def put_over_apps(given: Given) -> None:
    """Puts settings over those of the app that Celery's program finds."""
    from celery.bin import celery as program

    given.install()
    find_app = program.find_app

    @functools.wraps(find_app)
    def find_and_put_over(*args: Any, **kwargs: Any) -> Any:
        app = find_app(*args, **kwargs)
        given.put_over(app)
        return app

    program.find_app = find_and_put_over


def add_commands(given: Given) -> None:
    """Adds the commands by which Rust asks for the app's broker, its configuration, and what those
    go by who send its tasks."""
    import click
    from celery.bin.celery import celery, report

    def tell() -> None:
        # Rust knows the answer by what is before it, among what the app prints.
        print("\nceleriac-broker: " + json.dumps(broker(click.get_current_context().obj.app)))

    def tell_clients() -> None:
        print("\nceleriac-client: " + json.dumps(client(click.get_current_context().obj.app)))

    def tell_more() -> None:
        context = click.get_current_context()
        context.invoke(report)
        own = given.own(context.obj.app)
        told = {**configuration.describe(own), "settings": configuration.shown(own)}
        print("\nceleriac-report: " + json.dumps(told))

    celery.add_command(click.Command("celeriac-broker", callback=tell, hidden=True))
    celery.add_command(click.Command("celeriac-client", callback=tell_clients, hidden=True))
    celery.add_command(click.Command("celeriac-report", callback=tell_more, hidden=True))


def broker(app: Any) -> dict[str, Any]:
    """The app's broker, by the members of ``AppBroker``."""
    from celeriac.host import description, queues

    return {
        "broker": description.broker(app, app.connection_for_read()),
        "settings": description.settings(app),
        "queues": [queues.describe(queue) for queue in app.amqp.queues.values()],
    }


def client(app: Any) -> dict[str, Any]:
    """The settings of those who send tasks to the app and read their results."""
    from celeriac.host import clients, description

    broker = description.broker(app, app.connection_for_write())
    return clients.describe(app, broker, description.backend_url(app.backend))


def install() -> None:
    """Has each app's ``control`` and ``events`` do more than Celery's do."""
    from celery.app.control import Control
    from celery.app.events import Events

    from celeriac.host import local

    initialize = Control.__init__

    @functools.wraps(initialize)
    def with_app(control: Any, app: Any = None) -> None:
        initialize(control, app)
        control.mailbox.app = app

    Control.__init__ = with_app
    Control.Mailbox = _mailbox_class()
    Events.receiver_cls = local.LocalReceiver


def _mailbox_class() -> type[Any]:
    from celeriac.host import local

    class CommandMailbox(local.LocalMailbox):
        """A mailbox that also keeps what is revoked."""

        app: Any = None

        def _broadcast(self, *args: Any, **kwargs: Any) -> Any:
            broadcast = super()._broadcast
            called = inspect.signature(broadcast).bind(*args, **kwargs)
            called.apply_defaults()
            given = called.arguments
            # Kept before it is told: a node that begins in between has heard it or finds it. What
            # is for some nodes only is none of the others' business.
            for_all = given["destination"] is None and given["pattern"] is None
            kept = for_all and keep(self.app, given["command"], given["arguments"] or {})
            replies = broadcast(*called.args, **called.kwargs)
            reply, callback = given["reply"], given["callback"]
            if not (reply and kept and not replies):
                return replies
            instead = {"revoked": {"ok": KEPT}}
            if callback:
                callback(instead)
            return [instead]

    return CommandMailbox


def keep(app: Any, command: str, arguments: dict[str, Any]) -> bool:
    """Keeps what a command revokes; whether it did. What stands in its way is told."""
    from celery.utils.functional import maybe_list

    from celeriac.host.revocations import Revocations, keeps_stamps

    if command in ("revoke", "terminate"):
        revoked: dict[str, Any] = {"ids": maybe_list(arguments.get("task_id")) or []}
    elif command == "revoke_by_stamped_headers" and keeps_stamps(app):
        revoked = {"headers": _headers(arguments.get("headers"))}
    else:
        return False
    revocations = Revocations(app)
    try:
        return revocations.add(**revoked)
    except Exception as exc:
        reason = f"{type(exc).__name__}: {exc}"
        print(f"Workers that start later will not know of this: {reason}", file=sys.stderr)
        return False
    finally:
        revocations.close()


def _headers(headers: Any) -> dict[str, Any]:
    """Stamped headers as Celery's workers read them: a mapping, or ``name=value`` words."""
    if isinstance(headers, dict):
        return headers
    pairs = [str(word).split("=") for word in headers or ()]
    return {pair[0]: pair[1] for pair in pairs if len(pair) > 1}
