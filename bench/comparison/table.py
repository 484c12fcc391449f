"""The table of the comparison as text."""

from __future__ import annotations

import math

from comparison.figure import Result

_HEAD = ("row", "celery", "celeriac", "ratio", "target", "")


def render(results: list[Result]) -> str:
    lines = [_HEAD, *map(_line, results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    rule = "  ".join("-" * width for width in widths)
    texts = [_align(line, widths) for line in lines]
    return "\n".join([texts[0], rule, *texts[1:]])


def number(value: float) -> str:
    """Three significant digits, and all those before the point."""
    if math.isinf(value):
        return "never"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _line(result: Result) -> tuple[str, ...]:
    figure = result.figure
    return (
        f"{figure.title}, {figure.unit}",
        number(result.median("celery")),
        number(result.median("celeriac")),
        f"{number(result.ratio)}×" if math.isfinite(result.ratio) else "∞",
        figure.target,
        "met" if result.is_met else "MISSED",
    )


def _align(line: tuple[str, ...], widths: list[int]) -> str:
    first, *rest = zip(line, widths)
    cells = [first[0].ljust(first[1])]
    cells += [cell.rjust(width) for cell, width in rest[:-1]]
    return "  ".join([*cells, rest[-1][0]]).rstrip()
