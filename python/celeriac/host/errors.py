"""What stops a start, in words for the operator."""

from __future__ import annotations


class StartError(Exception):
    """The worker can't start.

    Attributes:
        hint: what to do about it.
        traceback: the app's own traceback, where its code failed.
        exit_status: what the command exits with.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        traceback: str | None = None,
        exit_status: int = 1,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.traceback = traceback
        self.exit_status = exit_status
