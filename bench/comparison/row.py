"""A row: what is measured in one go on one worker after the other."""

from __future__ import annotations

from typing import Protocol

from comparison.figure import Figure
from comparison.place import Place


class Row(Protocol):
    #: For ``--only``.
    name: str
    #: What it is measured with: ``redis`` or ``rabbitmq``.
    broker: str
    #: How often it is measured in a full run, and in a quick one.
    repetitions: tuple[int, int]

    def figures(self) -> list[Figure]:
        """The lines that it has in the table."""
        ...

    def measure(self, place: Place, kind: str) -> dict[str, float]:
        """Measures one worker once, and gives the value of each figure by its key."""
        ...
