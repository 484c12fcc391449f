"""Main: runs what Celery runs in its parent process, when the Rust parent asks for it.

Calls come one at a time and are answered in order, but those that may take long: these have threads
of their own. A call is ``{"id": 1, "call": "worker_ready",
…}``; the answer ``{"id": 1, "ok": …}`` or ``{"id": 1, "error": "…"}``. Calls about a task carry its
message, the body as the frame's bytes. Calls without an id want no answer.

What the app asks of the worker is told to the parent without its having called: see
:mod:`celeriac.host.consumer`.

A hook that blocks holds up the hooks after it, and nothing else.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import traceback
from functools import partial
from typing import Any, Callable, NoReturn

from celery import signals
from celery.utils.log import get_logger

from celeriac.host import processes, queues, revokes, steps
from celeriac.host.control import Control
from celeriac.host.errands import Errands
from celeriac.host.requests import Requests
from celeriac.host.revocations import Revocations
from celeriac.host.wire import Channel, Closed, Unreadable

#: How the parent begins every call, so that a call can be answered whose message can't be read.
_BEGINNING = re.compile(rb'\{(?:"id": (\d+), )?"call": "(\w+)"')

#: Seconds in which stores should have got what they were given before the end.
STORING = 5.0

logger = get_logger("celery.worker")


class Main:
    def __init__(self, channel: Channel, worker: Any) -> None:
        self._channel = channel
        self._worker = worker
        self._consumer = worker.consumer
        self._requests = Requests(worker)
        self._control = Control(worker)
        worker.parent.send = self._command
        #: The blueprints of which a start was begun, and those of which it succeeded.
        self._starting: set[str] = set()
        self._started: set[str] = set()
        revocations = Revocations(worker.app)
        commands = Errands("celeriac-commands")
        stores = self._stores = Errands("celeriac-stores")
        #: Who does Celery's own commands, which must not wait for those of the app.
        self._celerys_commands = Errands("celeriac-celerys-commands")
        #: The calls that may take long, and who does them: the app's own commands, and what asks
        #: the result backend about any number of tasks.
        self._errands = {
            "control_command": commands,
            "mark_revoked": stores,
            "revoked_store_load": stores,
            "revoked_store_add": stores,
        }
        self._calls: dict[str, Callable[..., Any]] = {
            "start_steps": self.start_steps,
            "close_steps": self.close_steps,
            "end_steps": self.end_steps,
            "worker_ready": self.worker_ready,
            "worker_shutting_down": self.worker_shutting_down,
            "worker_shutdown": self.worker_shutdown,
            "heartbeat_sent": self.heartbeat_sent,
            "terminating": self.terminating,
            "log": self.log,
            "cry": self.cry,
            "save_state": self.save_state,
            "control_command": self._control.command,
            "control_open": self._control.open,
            "control_reply": self._control.reply,
            "encode_event": self._control.event,
            "set_event_groups": self._set_event_groups,
            "set_pool_size": self._set_pool_size,
            "set_task_attributes": self._set_task_attributes,
            "select_queue": partial(queues.select, worker.app),
            "deselect_queue": partial(queues.deselect, worker.app),
            "mark_revoked": partial(revokes.mark, worker.app),
            "add_revoked": revokes.add,
            "call_task": self.call_task,
            "revoked_store_load": revocations.load,
            "revoked_store_add": revocations.add,
            "open_v1": self._requests.open_v1,
            "task_received": self._requests.task_received,
            "task_unknown": self._requests.task_unknown,
            "task_rejected": self._requests.task_rejected,
            "task_revoked": self._requests.task_revoked,
            "success_was_stored": self._requests.success_was_stored,
            "retry_lost": self._requests.retry_lost,
            "lost": self._requests.lost,
            "timed_out": self._requests.timed_out,
            "rejected": self._requests.rejected,
            "raised": self._requests.raised,
            "cancelled": self._requests.cancelled,
            "notify": self._requests.notify,
        }

    def run(self) -> None:
        """Serves the parent until it closes the channel or asks main to leave."""
        self._consumer.begin()
        while True:
            try:
                try:
                    call, blob = self._channel.read()
                except Unreadable as exc:
                    number, answer = _refuse(exc)
                else:
                    name = call.pop("call")
                    if name == "leave":
                        # What is revoked now is to last.
                        self._stores.finish(STORING)
                        return
                    number = call.pop("id", None)
                    errands = self._errands_for(name, call)
                    if errands is not None:
                        if errands.take(partial(self._answer_aside, number, name, call, blob)):
                            continue
                        refusal = f"too many calls of {name} wait for an answer"
                        if number is None:
                            logger.error("Hook %s is left out: %s", name, refusal)
                        answer = {"error": refusal}
                    else:
                        answer = self._answer(name, call, blob)
                if number is not None:
                    self._channel.write({"id": number, **answer})
            except Closed:
                # The parent is gone without a word: so must this process be.
                os._exit(1)

    def _errands_for(self, name: str, call: dict[str, Any]) -> Errands | None:
        """Who does a call that may take long."""
        if name == "control_command" and self._control.is_celerys(call.get("method")):
            return self._celerys_commands
        return self._errands.get(name)

    def _answer_aside(
        self, number: int | None, name: str, call: dict[str, Any], blob: bytes
    ) -> None:
        """Answers a call in a thread of its own."""
        answer = self._answer(name, call, blob)
        if number is not None:
            self._tell({"id": number, **answer})

    def _command(self, command: str, arguments: dict[str, Any]) -> None:
        """Asks the parent for something on behalf of the app."""
        self._tell({"command": command, "arguments": arguments})

    def _tell(self, frame: dict[str, Any]) -> None:
        try:
            self._channel.write(frame)
        except Closed:
            pass  # whoever reads the channel acts on it

    def _answer(self, name: str, arguments: dict[str, Any], blob: bytes) -> dict[str, Any]:
        try:
            if "message" in arguments:
                arguments["body"] = blob
            return {"ok": self._calls[name](**arguments)}
        except Exception as exc:
            logger.error("Hook %s failed: %r", name, exc, exc_info=True)
            return _error(exc)

    # -- the worker ----------------------------------------------------------------------------

    def start_steps(self, blueprint: str) -> None:
        """Starts the app's own steps of a blueprint, in the blueprint's order."""
        parent = self._parent_of(blueprint)
        self._starting.add(blueprint)
        for step in parent.steps:
            step.start(parent)
        self._started.add(blueprint)
        if blueprint == "consumer":
            self._consumer.start_consuming()

    def close_steps(self) -> None:
        """A shutdown of any kind has begun: what Celery does before running tasks have ended.

        As there, nothing is called of a blueprint that was not started to its end.
        """
        if self._start_failed():
            return
        try:
            self._worker.on_close()
        except Exception as exc:
            logger.error("Error on closing: %r", exc, exc_info=True)
        self._send_steps("worker", "close", "closing", reverse=False)
        self._send_steps("consumer", "close", "closing", reverse=False)
        self._consumer.stop_consuming(steps.CLOSING)
        self._send_steps("consumer", "stop", "stopping")

    def end_steps(self, terminate: bool) -> None:
        """Running tasks have ended, or ``terminate`` is true and they are being ended."""
        if terminate:
            self._send_steps("worker", "terminate", "terminating")
        else:
            self._send_steps("worker", "stop", "stopping")
        self._worker.on_stopped()
        self._consumer.end_consuming(steps.TERMINATING if terminate else steps.ENDING)
        self._send_steps("consumer", "shutdown", "shutdown")

    def _start_failed(self) -> bool:
        return "worker" in self._starting - self._started

    def _send_steps(self, blueprint: str, method: str, what: str, reverse: bool = True) -> None:
        parent = self._parent_of(blueprint)
        if blueprint in self._started and parent.blueprint is not None:
            parent.blueprint.send_all(parent, method, what, reverse=reverse, propagate=False)

    def _parent_of(self, blueprint: str) -> Any:
        return self._worker if blueprint == "worker" else self._consumer

    def worker_ready(self) -> None:
        signals.worker_ready.send(sender=self._consumer)

    def worker_shutting_down(self, sig: str, how: str, exitcode: int) -> None:
        signals.worker_shutting_down.send(
            sender=self._worker.hostname, sig=sig, how=how, exitcode=exitcode
        )

    def worker_shutdown(self) -> None:
        signals.worker_shutdown.send(sender=self._worker)
        self._consumer.close()

    def heartbeat_sent(self) -> None:
        """The parent has told the cluster that the worker is alive."""
        signals.heartbeat_sent.send(sender=self._consumer.heart)

    def terminating(self) -> None:
        """A cold shutdown has begun: Celery's own code asks for this flag."""
        from celery.worker import state

        state.should_terminate = True

    # -- what a remote control command has changed in the parent -----------------------------------

    def _set_event_groups(self, groups: list[str] | None) -> None:
        self._consumer.set_event_groups(groups)

    def _set_pool_size(self, limit: int) -> None:
        self._worker.pool.limit = limit

    def _set_task_attributes(self, task: str, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            setattr(self._worker.app.tasks[task], name, value)

    def call_task(self, action: dict[str, Any]) -> None:
        """Sends the task that this worker was elected for (``Gossip.call_task``)."""
        try:
            self._worker.app.signature(action).apply_async()
        except Exception as exc:
            logger.exception("Could not call task: %r", exc)

    def save_state(self, revoked: list[str]) -> None:
        """Writes the state database as Celery keeps it (``celery.worker.state.Persistent``)."""
        from celery.worker import state

        database = state.Persistent(state, self._worker.statedb, self._worker.app.clock)
        state.revoked.update(revoked)
        database.save()

    def cry(self) -> None:
        """Shows what every thread of this process is doing, as Celery does for SIGUSR1."""
        from celery.utils.debug import cry

        print(f"\n{cry()}\n", file=sys.__stdout__, flush=True)

    def log(self, records: list[dict[str, Any]]) -> None:
        """Writes the parent's log records through the app's own logging."""
        for record in records:
            target = logging.getLogger(record["name"])
            if not target.isEnabledFor(record["level"]):
                continue
            made = target.makeRecord(
                record["name"],
                record["level"],
                # Celery's name and file for it, which a format may show.
                record["name"].replace(".", "/") + ".py",
                0,
                record["message"],
                (),
                None,
                extra={"data": record["data"]} if record.get("data") else None,
            )
            made.created = record["created"]
            made.msecs = (record["created"] % 1) * 1000
            target.handle(made)


def _refuse(unreadable: Unreadable) -> tuple[int | None, dict[str, Any]]:
    """The number of a call that can't be read, and its answer."""
    beginning = _BEGINNING.match(unreadable.text)
    number, name = beginning.groups() if beginning else (None, b"of no name")
    logger.error("Hook %s can't be called: %r", name.decode(), unreadable.reason)
    return int(number) if number else None, _error(unreadable.reason)


def _error(exc: Exception) -> dict[str, Any]:
    return {"error": "".join(traceback.format_exception_only(type(exc), exc)).strip()}


def run(control: int, worker: Any) -> NoReturn:
    """Becomes main; called in the process that loaded the app, or in a later copy of it."""
    processes.set_name("celeriac:main")
    processes.leave_signals_to_parent()
    channel = Channel(socket.socket(fileno=control))
    Main(channel, worker).run()
    # The interpreter ends as Celery's does: exit handlers run.
    sys.exit(0)
