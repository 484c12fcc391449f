"""Exceptions that tasks see.

An app that also runs where celeriac is not installed imports them so::

    try:
        from celeriac.exceptions import SoftMemoryLimitExceeded
    except ImportError:
        SoftMemoryLimitExceeded = MemoryError
"""

from __future__ import annotations


class SoftMemoryLimitExceeded(MemoryError):
    """The task's process and its subprocesses hold more than the soft memory limit.

    The counterpart of ``celery.exceptions.SoftTimeLimitExceeded``: raised once in a task, wherever
    it stands, so that it can let go of what it holds, or fail in its own way.
    """
