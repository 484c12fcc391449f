"""The app's queues: what the Rust parent declares and consumes from.

Celery's counterparts: ``Consumer.add_task_queue``, ``Consumer.cancel_task_queue`` and the command
``active_queues``.
"""

from __future__ import annotations

from typing import Any

from kombu.transport.base import to_rabbitmq_queue_arguments

from celeriac.host.plain import as_kombu_writes, json_safe


def describe(queue: Any) -> dict[str, Any]:
    """A queue, by the members of ``celeriac_core::queue::Queue``; ``info`` is what an operator who
    asks for the active queues is shown."""
    return {
        "name": queue.name,
        "exchange": _exchange(queue.exchange),
        "routing_key": queue.routing_key or "",
        "binding_arguments": json_safe(queue.binding_arguments or {}),
        "bindings": [
            {
                "exchange": _exchange(binding.exchange),
                "routing_key": binding.routing_key or "",
                "arguments": json_safe(binding.arguments or {}),
            }
            for binding in queue.bindings or ()
        ],
        "durable": bool(queue.durable),
        "exclusive": bool(queue.exclusive),
        "auto_delete": bool(queue.auto_delete),
        "no_ack": bool(queue.no_ack),
        "no_declare": bool(queue.no_declare),
        "arguments": json_safe(
            to_rabbitmq_queue_arguments(
                queue.queue_arguments or {},
                message_ttl=queue.message_ttl,
                max_length=queue.max_length,
                max_length_bytes=queue.max_length_bytes,
                max_priority=queue.max_priority,
            )
        ),
        "consumer_arguments": json_safe(queue.consumer_arguments or {}),
        "expires": queue.expires,
        "info": as_kombu_writes(dict(queue.as_dict(recurse=True))),
    }


def _exchange(exchange: Any) -> dict[str, Any]:
    if not exchange:
        return {"name": "", "type": "direct", "durable": True}
    return {
        "name": exchange.name,
        "type": exchange.type,
        "durable": bool(exchange.durable),
        "auto_delete": bool(exchange.auto_delete),
        "passive": bool(exchange.passive),
        "no_declare": bool(exchange.no_declare),
        "arguments": json_safe(exchange.arguments or {}),
    }


def select(
    app: Any,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Has the app consume from a queue, which it makes up unless it knows it."""
    queues = app.amqp.queues
    # `in`: an item that is missing would be made up by other rules.
    if queue in queues:
        queues.select_add(queues[queue])
    else:
        queues.select_add(
            queue,
            exchange=queue if exchange is None else exchange,
            exchange_type="direct" if exchange_type is None else exchange_type,
            routing_key=routing_key,
            **(options or {}),
        )
    return describe(queues[queue])


def deselect(app: Any, queue: str) -> str:
    """Has the app no longer consume from a queue; returns its name, for which ``queue`` may be an
    alias."""
    queues = app.amqp.queues
    queues.deselect(queue)
    aliased = queues.aliases.get(queue)
    return str(queue if aliased is None else aliased.name)
