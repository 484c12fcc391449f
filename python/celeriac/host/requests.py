"""What Celery's parent process does for single tasks: results, signals and hooks of failures that
no child could report, and the signals of messages.

The work is done by Celery's own :class:`celery.worker.request.Request` (or the task's subclass),
given the message that the Rust parent received. What that class would tell the broker goes
nowhere: the parent has decided it already.
"""

from __future__ import annotations

import pickle
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import signals
from celery.exceptions import NotRegistered, Reject, WorkerLostError
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from kombu.message import Message
from kombu.serialization import prepare_accept_content

from celeriac.host.plain import as_kombu_reads

logger = get_logger("celery.worker.request")


class Requests:
    def __init__(self, worker: Any) -> None:
        self._app = worker.app
        self._consumer = worker.consumer
        self._hostname = worker.hostname
        self._accept = prepare_accept_content(worker.app.conf.accept_content)

    # -- messages that are no task -------------------------------------------------------------

    def open_v1(self, message: dict[str, Any], body: bytes) -> dict[str, Any] | None:
        """The members of a protocol 1 body that its head is made of.

        ``None`` when it is no mapping. For serializers that the parent does not read itself.
        """
        payload = self._message(message, body).decode()
        if not isinstance(payload, dict):
            return None
        names = ("task", "id", "eta", "expires", "retries", "timelimit", "utc")
        head = {name: payload[name] for name in names if name in payload}
        for name in ("eta", "expires"):
            if hasattr(head.get(name), "isoformat"):
                head[name] = head[name].isoformat()
        if not isinstance(payload.get("kwargs", {}), dict):
            head["kwargs"] = None
        return head

    def task_received(self, message: dict[str, Any], body: bytes) -> None:
        signals.task_received.send(sender=self._consumer, request=self._request(message, body))

    def task_rejected(
        self, message: dict[str, Any], body: bytes, reason: str | None = None
    ) -> None:
        from celery.exceptions import InvalidTaskError

        signals.task_rejected.send(
            sender=self._consumer,
            message=self._message(message, body),
            exc=InvalidTaskError(reason) if reason is not None else None,
        )

    def task_unknown(
        self, message: dict[str, Any], body: bytes, task: str, task_id: str | None
    ) -> None:
        """Stores that nobody here knows the task: ``Consumer.on_unknown_task``."""
        from celery.utils.objects import Bunch

        received = self._message(message, body)
        if task_id is not None:
            request = Bunch(
                name=task,
                chord=None,
                root_id=(received.headers or {}).get("root_id"),
                correlation_id=received.properties.get("correlation_id"),
                reply_to=received.properties.get("reply_to"),
                errbacks=None,
            )
            self._app.backend.mark_as_failure(task_id, NotRegistered(task), request=request)
        signals.task_unknown.send(
            sender=self._consumer,
            message=received,
            # What the look-up raised, not what is stored.
            exc=KeyError(task),
            name=task,
            id=task_id,
        )

    # -- tasks -----------------------------------------------------------------------------------

    def task_revoked(
        self,
        message: dict[str, Any],
        body: bytes,
        reason: str,
        terminated: bool = False,
        signum: int | str | None = None,
        expired: bool = False,
    ) -> None:
        """Stores and announces that a task is revoked.

        Also for one that was terminated (``request.terminate``): the reason is ``terminated``.
        """
        request = self._request(message, body)
        request._announce_revoked(reason, terminated, signum, expired)

    def success_was_stored(self, message: dict[str, Any], body: bytes) -> bool:
        """Whether a lost child had stored the task's success before it was lost."""
        request = self._request(message, body)
        check = getattr(request, "_success_was_stored", None)  # since Celery 5.7
        return bool(check()) if check is not None else False

    def retry_lost(self, message: dict[str, Any], body: bytes, reason: str) -> bool:
        """Sends the task of a lost child again, as ``retry_on_worker_lost`` asks."""
        request = self._request(message, body)
        info = _raise(WorkerLostError(reason))
        return bool(request._retry_worker_lost(_exception(info), info))

    def lost(
        self,
        message: dict[str, Any],
        body: bytes,
        reason: str,
        pid: int | None = None,
        time_start: float | None = None,
        status: int | None = None,
        requeues: bool = False,
    ) -> None:
        """Fails the task of a child that is gone.

        ``status`` is what the task exited with, if that is how it ended. ``requeues`` tells that
        the message goes back to its queue: then ``on_failure`` stores nothing, and is called for
        the sake of a Request class that has its own. Otherwise the task has failed for good, also
        where Celery would run it again for ever.
        """
        request = self._request(message, body, pid=pid, time_start=time_start)
        exc: BaseException = WorkerLostError(reason)
        if status is not None and hasattr(request, "_worker_lost_info"):  # since Celery 5.7
            # Celery makes a WorkerLostError of it.
            exc = SystemExit(status)
        # The parent has asked both already, and has settled the message by the answers.
        request._success_was_stored = request._retry_worker_lost = _no
        task = request.task
        declared = task.reject_on_worker_lost
        task.reject_on_worker_lost = declared and requeues
        try:
            request.on_failure(_raise(exc), return_ok=False)
        finally:
            task.reject_on_worker_lost = declared

    def timed_out(
        self, message: dict[str, Any], body: bytes, limit: float, pid: int, time_start: float
    ) -> None:
        """Fails the task of a child that is killed for the hard time limit.

        Celery also fails it a second time, because its pool reports the kill as well; errbacks
        then run twice. Here each hook runs once.
        """
        request = self._request(message, body, pid=pid, time_start=time_start)
        request.on_timeout(False, limit)

    def rejected(self, message: dict[str, Any], body: bytes, exception: str, pickle: str) -> None:
        """Records a task that raised ``Reject``, as Celery does unless it is requeued."""
        info = _unpickle(pickle) or _raise(Reject(exception))
        self._request(message, body).on_failure(info, return_ok=True)

    def raised(self, message: dict[str, Any], body: bytes, exception: str, pickle: str) -> None:
        """Fails a task whose tracer raised."""
        request = self._request(message, body)
        info = _unpickle(pickle) or _raise(RuntimeError(exception))
        exc = _exception(info)
        if not isinstance(exc, MemoryError):
            request.on_failure(info, return_ok=False)
            return
        # Celery raises it again in its main process; the task is the one that failed.
        request.task.backend.mark_as_failure(
            request.id, exc, request=request._context, store_result=request.store_errors
        )
        signals.task_failure.send(
            sender=request.task,
            task_id=request.id,
            exception=exc,
            args=request.args,
            kwargs=request.kwargs,
            traceback=info.traceback,
            einfo=info,
        )
        logger.error("Task handler raised error: %r", exc, exc_info=info.exc_info)

    def cancelled(self, message: dict[str, Any], body: bytes, emit_retry: bool) -> None:
        """Announces a task that a shutdown or a lost connection has stopped."""
        self._request(message, body)._announce_cancelled(emit_retry=emit_retry)

    def notify(
        self,
        message: dict[str, Any],
        body: bytes,
        method: str,
        pid: int | None = None,
        time_start: float | None = None,
        **details: Any,
    ) -> None:
        """Calls a method that the task's own Request class overrides."""
        request = self._request(message, body, pid=pid, time_start=time_start)
        if method == "on_accepted":
            request.on_accepted(pid, details["accepted"])
        elif method == "on_success":
            request.on_success((0, details["result"], details["runtime"]))
        elif method == "on_timeout":
            request.on_timeout(details["soft"], details["limit"])
        else:
            info = _unpickle(details["pickle"]) or _raise(RuntimeError(details["exception"]))
            request.on_failure(info, return_ok=True)

    # -- objects ---------------------------------------------------------------------------------

    def _message(self, message: dict[str, Any], body: bytes) -> Message:
        return Message(
            body=body,
            headers=as_kombu_reads(message["headers"]),
            properties=as_kombu_reads(message["properties"]),
            content_type=message["content_type"],
            content_encoding=message["content_encoding"],
            delivery_info=message["delivery_info"],
            accept=self._accept,
        )

    def _request(
        self,
        message: dict[str, Any],
        body: bytes,
        pid: int | None = None,
        time_start: float | None = None,
    ) -> Any:
        """The request as ``celery.worker.strategy.default`` makes it."""
        from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2

        received = self._message(message, body)
        if "task" in received.headers:
            payload = received.payload
            if "args" in payload:
                made = hybrid_to_proto2(received, payload)
            else:
                made = received.body, received.headers, False, self._app.uses_utc_timezone()
        else:
            made = proto1_to_proto2(received, received.decode())
        content, headers, decoded, utc = made
        task = self._app.tasks[headers["task"]]
        request = symbol_by_name(task.Request)(
            received,
            app=self._app,
            hostname=self._hostname,
            task=task,
            body=content,
            headers=headers,
            decoded=decoded,
            utc=utc,
        )
        request.worker_pid = pid
        request.time_start = time_start
        return request


def _raise(exc: BaseException) -> ExceptionInfo:
    """The exception with a traceback, as Celery passes exceptions on."""
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()


def _no(*_: Any) -> bool:
    return False


def _exception(info: ExceptionInfo) -> BaseException:
    # Not whatever has a member `exc`: Celery's Retry has one as well.
    exc: BaseException = info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def _unpickle(data: str) -> ExceptionInfo | None:
    """An exception that a child of this worker pickled; ``None`` when it had none to give."""
    if not data:
        return None
    try:
        info = pickle.loads(bytes.fromhex(data))
    except Exception:
        return None
    return info if isinstance(info, ExceptionInfo) else None
