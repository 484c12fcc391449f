"""What is done to the system and when, decided by a seed alone."""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass

#: How many of each a minute, and how many seconds they last.
RATES: dict[str, tuple[float, tuple[float, float]]] = {
    "kill child": (28, (0, 0)),
    "kill worker": (6, (0, 0)),
    "kill worker and all below it": (3, (0, 0)),
    "kill main": (5, (0, 0)),
    "kill Celery's child": (4, (0, 0)),
    "kill Celery's worker": (2, (0, 0)),
    "kill broker": (1.5, (0.2, 2)),
    "cut": (5, (0, 0)),
    "stall": (2, (1, 8)),
    "network namespace down": (0.5, (2, 14)),
    "disk full": (0.7, (1, 4)),
    "stop": (0.8, (12, 14)),
    "clock jump": (2, (3, 10)),
}


@dataclass(frozen=True)
class Step:
    #: Seconds since the chaos began.
    at: float
    kind: str
    #: Seconds until it is undone.
    lasts: float
    #: Chooses among those whom it may hit.
    lot: float


def plan(seed: int, seconds: float, kinds: Set[str]) -> list[Step]:
    """The steps for so many seconds: each kind at least once, evenly on the whole."""
    choose = random.Random(seed)
    steps = []
    for kind, (rate, (shortest, longest)) in RATES.items():
        # Drawn whether or not it is wanted, so that each kind has the same steps in all runs.
        drawn = [
            Step(
                choose.uniform(0, seconds),
                kind,
                choose.uniform(shortest, longest),
                choose.random(),
            )
            for _ in range(max(1, round(rate * seconds / 60)))
        ]
        if kind in kinds:
            steps += drawn
    return sorted(steps, key=lambda step: step.at)
