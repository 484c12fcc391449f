"""A figure: one number that is measured on both workers, and what is asked of it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Better(Enum):
    MORE = "more"
    LESS = "less"


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    key: str
    title: str
    unit: str
    better: Better
    #: How many times better than Celery it has to be. 1: no worse.
    factor: float = 1
    #: What it may be at most, whatever Celery's is, instead of a factor.
    at_most: float | None = None

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g} {self.unit}"
        return f"{self.factor:g}×" if self.factor != 1 else "no worse"


@dataclass
class Result:
    """A figure with its samples, by the kind of worker."""

    figure: Figure
    samples: dict[str, list[float]] = field(default_factory=lambda: {"celery": [], "celeriac": []})

    def median(self, kind: str) -> float:
        return statistics.median(self.samples[kind])

    @property
    def ratio(self) -> float:
        """How many times better celeriac is; below 1 when it is worse."""
        celery, celeriac = self.median("celery"), self.median("celeriac")
        over, under = (
            (celeriac, celery) if self.figure.better is Better.MORE else (celery, celeriac)
        )
        if over == under:
            return 1
        return over / under if under else math.inf

    @property
    def is_met(self) -> bool:
        if self.figure.at_most is not None:
            # Still, no row may be worse than Celery.
            return self.median("celeriac") <= self.figure.at_most and self.ratio >= 1
        return self.ratio >= self.figure.factor

    def as_json(self) -> dict[str, Any]:
        return {
            "key": self.figure.key,
            "title": self.figure.title,
            "unit": self.figure.unit,
            "better": self.figure.better.value,
            "celery": _finite(self.median("celery")),
            "celeriac": _finite(self.median("celeriac")),
            "ratio": _finite(self.ratio),
            "target": self.figure.target,
            "met": self.is_met,
            "samples": {
                kind: [_finite(sample) for sample in samples]
                for kind, samples in self.samples.items()
            },
        }


def _finite(value: float) -> float | None:
    """JSON knows no infinity: what never happened is null."""
    return value if math.isfinite(value) else None
