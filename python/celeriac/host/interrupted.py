"""The soft time limit's exception where it is the worker that wants a task to end."""

from __future__ import annotations

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject


class Interrupted(SoftTimeLimitExceeded, Reject, Ignore):  # type: ignore[misc]
    """Tasks catch it as ``SoftTimeLimitExceeded``. From one that does not, Celery's tracer takes
    it for a ``Reject(requeue=True)``: no failure is stored, and no errback is called, for the task
    will run again. As an ``Ignore`` it passes ``autoretry_for``, which would count a retry.
    """
