"""Asking workers by remote control, with the client that Celery has for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from harness.wait import wait_until

#: Seconds for an answer: a busy machine may take its time.
TIMEOUT = 30.0


def ask(app: Celery, node: str, command: str, **arguments: Any) -> Any:
    """What one node answers; the arguments are the command's."""
    # A worker that is ready may not have subscribed to Redis yet, and what was sent before is lost.
    wait_until(
        lambda: app.control.ping(destination=[node], timeout=2),
        f"{node} can be reached",
        TIMEOUT,
    )
    replies = app.control.broadcast(
        command, arguments=arguments, destination=[node], reply=True, timeout=TIMEOUT
    )
    assert replies, f"{node} does not answer to {command}"
    (reply,) = replies
    assert list(reply) == [node], reply
    return reply[node]


def ask_until(
    app: Celery, node: str, command: str, condition: Callable[[Any], Any], **arguments: Any
) -> Any:
    """Asks until the answer is as wanted, and returns it."""
    last: Any = None

    def is_so() -> bool:
        nonlocal last
        last = ask(app, node, command, **arguments)
        return bool(condition(last))

    wait_until(is_so, f"{command} tells what is wanted", TIMEOUT, lambda: f"last: {last!r}")
    return last
