"""Revoked tasks: what Celery's worker stores and remembers of them.

Celery's counterparts: ``celery.worker.control._revoke`` and ``celery.worker.state``.
"""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger

logger = get_logger("celery.worker.control")


def mark(app: Any, ids: list[str], names: dict[str, str] | None = None) -> None:
    """Stores that tasks are revoked, unless another worker has begun them or they have ended.

    ``names`` are the names of those that this worker holds: a task may have a backend of its own.
    Tasks that run here are not among ``ids``.
    """
    from celery import states

    revocable = (states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED)
    names = names or {}
    for task_id in ids:
        task = app.tasks.get(names.get(task_id))
        backend = app.backend if task is None else task.backend
        try:
            if backend.get_state(task_id) in revocable:
                backend.mark_as_revoked(task_id, reason="revoked", store_result=True)
        except Exception as exc:
            logger.warning("Failed to mark task %s as revoked in backend: %s", task_id, exc)


def add(ids: list[str], headers: dict[str, list[str]] | None = None) -> None:
    """Makes known to code in this process what is revoked: ids, and values of stamped headers."""
    from celery.worker import state

    if ids:
        state.revoked.update(ids)
    # Older Celery knows no stamps.
    stamps = getattr(state, "revoked_stamps", {})
    for header, values in (headers or {}).items():
        known = list(stamps.get(header) or ())
        stamps[header] = known + [value for value in values if value not in known]
