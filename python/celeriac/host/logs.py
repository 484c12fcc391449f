"""Log records as JSON, one object a line (``--log-format json``)."""

from __future__ import annotations

import functools
import json
import logging
from datetime import datetime, timezone
from typing import Any


class JsonFormatter(logging.Formatter):
    """Writes a record with the members that the Rust parent's records have."""

    def format(self, record: logging.LogRecord) -> str:
        from celery._state import get_current_task

        at = datetime.fromtimestamp(record.created, timezone.utc)
        members: dict[str, Any] = {
            "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.processName,
            "pid": record.process,
            "message": record.getMessage(),
        }
        data = getattr(record, "data", None)
        if isinstance(data, dict) and "id" in data:
            members["task_id"] = data["id"]
            members["task_name"] = data.get("name")
        else:
            task = get_current_task()
            if task and task.request:
                members["task_id"] = task.request.id
                members["task_name"] = task.name
        if isinstance(record.exc_info, tuple):
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members, default=repr)


def set_up_as_json(log: Any) -> None:
    """Has a Celery app's logging make handlers that write JSON, now and whenever it is set up
    again, as in children with log files of their own."""
    setup_handlers = log.setup_handlers

    @functools.wraps(setup_handlers)
    def with_json(*args: Any, **kwargs: Any) -> Any:
        # Celery's formatters are made with a format and whether to use colours.
        return setup_handlers(*args, **{**kwargs, "formatter": lambda *_, **__: JsonFormatter()})

    log.setup_handlers = with_json


def write_json() -> None:
    """Gives the JSON format also to the handlers that the app installed itself."""
    for name in (None, "celery.task", "multiprocessing"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(JsonFormatter())
