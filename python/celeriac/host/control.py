"""Remote control: the commands that only Python can carry out, and messages that Rust can't read.

The Rust parent receives all commands and answers most of them. Those of the app, and those that
look at the interpreter, are run here by kombu's own node with Celery's own panel.

Celery's counterparts: ``celery.worker.pidbox.Pidbox`` and ``kombu.pidbox.Node``.
"""

from __future__ import annotations

import base64
import threading
from typing import Any

from celery.exceptions import WorkerTerminate
from celery.utils.log import get_logger
from celery.worker import state

from celeriac.host import remote
from celeriac.host.consumer import log_undecodable
from celeriac.host.plain import as_kombu_reads, as_kombu_writes

logger = get_logger("celery.worker.pidbox")


class Control:
    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._app = worker.app
        self._made: Any = None
        #: Celery's commands and the app's have threads of their own, and one node.
        self._making = threading.Lock()

    # -- commands --------------------------------------------------------------------------------

    def is_celerys(self, method: Any) -> bool:
        """Whether a command is one that Celery defines, and not the app."""
        from celery.worker.control import Panel

        return remote.is_celerys(Panel.data.get(method))

    def command(
        self, method: str, arguments: dict[str, Any] | None = None, clock: int | None = None
    ) -> dict[str, Any]:
        """Runs a command; ``clock`` is the parent's logical clock.

        Answers one of

        - ``{"reply": "…"}``: what the command returned, as the JSON text that kombu writes;
        - ``{"message": {…}}``: the whole reply, ``{node: reply}``, in the app's serializer where
          that is another (see :meth:`_encode`);
        - ``{}``: what it returned can't be written, and there is no reply.

        Has ``"shutdown": {"warm": true, "exitcode": 0}`` as well, or alone, where the command ends
        the worker.
        """
        if clock is not None:
            self._app.clock.adjust(clock)
        try:
            reply = self._node.dispatch(method, as_kombu_reads(arguments or {}))
        except SystemExit as exc:
            # What Celery's own message loop ends by.
            return {"shutdown": _end(exc)}
        answer = self._answer(reply)
        if _is_asked_to_stop():
            answer["shutdown"] = _end(SystemExit(state.should_stop))
        return answer

    def _answer(self, reply: Any) -> dict[str, Any]:
        try:
            if self._mailbox.serializer in (None, "json"):
                return {"reply": _text(_dumps(reply, "json")[2])}
            return {"message": self._encode({self._worker.hostname: reply})}
        except Exception as exc:
            logger.error("Control command error: %r", exc, exc_info=True)
            return {}

    @property
    def _mailbox(self) -> Any:
        return self._app.control.mailbox

    @property
    def _node(self) -> Any:
        with self._making:
            if self._made is None:
                self._made = self._make_node()
            return self._made

    def _make_node(self) -> Any:
        from celery.utils.collections import AttributeDict
        from celery.utils.functional import pass1
        from celery.worker.control import Panel
        from kombu.utils.encoding import safe_str

        worker = self._worker
        return self._mailbox.Node(
            safe_str(worker.hostname),
            handlers=Panel.data,
            state=AttributeDict(
                app=self._app,
                hostname=worker.hostname,
                consumer=worker.consumer,
                tset=pass1 if worker.use_eventloop else set,
            ),
        )

    # -- messages --------------------------------------------------------------------------------

    def open(self, message: dict[str, Any], body: bytes) -> dict[str, Any] | None:
        """The request of a message whose content Rust does not read.

        ``None`` when it can't be opened, or is no request: then it is in the log, as Celery's.
        """
        from kombu.message import Message
        from kombu.serialization import prepare_accept_content

        received = Message(
            body=body,
            headers=as_kombu_reads(message["headers"]),
            properties=as_kombu_reads(message["properties"]),
            content_type=message["content_type"],
            content_encoding=message["content_encoding"],
            delivery_info=message["delivery_info"],
            accept=prepare_accept_content(self._mailbox.accept),
        )
        try:
            request = received.decode()
        except Exception as exc:
            log_undecodable(received, exc)
            return None
        if not isinstance(request, dict):
            kind = type(request).__name__
            logger.error("Control command error: the request is of type %s", kind)
            return None
        opened: dict[str, Any] = as_kombu_writes(request)
        return opened

    def reply(self, reply: Any) -> dict[str, Any]:
        """A reply, ``{node: …}``, in the serializer that the app's mailbox has."""
        return self._encode(as_kombu_reads(reply))

    def event(self, event: Any) -> dict[str, Any]:
        """An event, or a list of them, in the serializer that the app has for events."""
        return _encoded(_dumps(as_kombu_reads(event), self._app.conf.event_serializer))

    def _encode(self, reply: Any) -> dict[str, Any]:
        return _encoded(_dumps(reply, self._mailbox.serializer or "json"))


def _is_asked_to_stop() -> bool:
    """Whether the app has set the flag that Celery's loop looks at between two messages."""
    return state.should_stop is not None and state.should_stop is not False


def _end(exc: SystemExit) -> dict[str, Any]:
    code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    return {"warm": not isinstance(exc, WorkerTerminate), "exitcode": int(code)}


def _dumps(value: Any, serializer: str) -> tuple[str, str, Any]:
    from kombu.serialization import dumps

    encoded: tuple[str, str, Any] = dumps(value, serializer=serializer)
    return encoded


def _encoded(encoded: tuple[str, str, Any]) -> dict[str, Any]:
    """Content type and encoding by their names, and the body in base 64."""
    content_type, content_encoding, body = encoded
    if isinstance(body, str):
        body = body.encode(content_encoding)
    return {
        "content_type": content_type,
        "content_encoding": content_encoding,
        "body": base64.b64encode(body).decode(),
    }


def _text(body: Any) -> str:
    return body if isinstance(body, str) else bytes(body).decode()
