"""Log records as JSON."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from celery._state import _task_stack

from celeriac.host.logs import JsonFormatter, write_json


def written(**extra: Any) -> dict[str, Any]:
    record = logging.LogRecord("a.b", logging.WARNING, "f.py", 1, "x=%d", (5,), None)
    record.created = 1767323045.25
    record.__dict__.update(extra)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    return json.loads(line)


def test_a_record_has_the_members_of_the_parents():
    members = written()
    assert members.pop("pid") and members.pop("process")
    assert members == {
        "timestamp": "2026-01-02T03:04:05.250Z",
        "level": "WARNING",
        "logger": "a.b",
        "message": "x=5",
    }


def test_an_exception_is_in_one_line():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        members = written(exc_info=sys.exc_info())
    assert members["exception"].startswith("Traceback")
    assert members["exception"].endswith("ValueError: two\nlines")


def test_the_data_of_a_record_name_the_task():
    members = written(data={"id": "1", "name": "t"})
    assert (members["task_id"], members["task_name"]) == ("1", "t")
    assert "task_id" not in written(data={"other": 1})


def test_the_current_task_is_named(app):
    @app.task(name="current")
    def current():
        pass

    current.push_request(id="7")
    _task_stack.push(current)
    try:
        members = written()
    finally:
        _task_stack.pop()
        current.pop_request()
    assert (members["task_id"], members["task_name"]) == ("7", "current")


def test_every_handler_of_celerys_writes_json():
    logger = logging.getLogger("celery.task")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    root = [(found, found.formatter) for found in logging.getLogger().handlers]
    try:
        write_json()
        assert isinstance(handler.formatter, JsonFormatter)
    finally:
        logger.removeHandler(handler)
        for found, formatter in root:
            found.setFormatter(formatter)
