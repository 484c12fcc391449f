"""Celery's worker and celeriac's side by side: ``python bench/compare.py``.

See ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent / "interop"))

from comparison import machine, table  # noqa: E402
from comparison.figure import Result  # noqa: E402
from comparison.place import place  # noqa: E402
from comparison.row import Row  # noqa: E402
from comparison.servers import Servers  # noqa: E402
from comparison.worker import KINDS  # noqa: E402
from harness import workers  # noqa: E402
from rows import ROWS  # noqa: E402


def main() -> int:
    options = _options()
    rows = _chosen(options.only)
    if not Path(workers.CELERIAC).exists():
        sys.exit(
            f"There is no {workers.CELERIAC}: run `cargo build --release`, or set CELERIAC to the "
            "path of the binary."
        )
    began, load = time.monotonic(), machine.load()
    results: dict[str, list[Result]] = {}
    failures: dict[str, str] = {}
    repetitions = {row.name: options.repetitions or row.repetitions[options.quick] for row in rows}
    with Servers() as servers:
        versions = machine.describe(servers.redis)
        for number, row in enumerate(rows, 1):
            _say(f"[{number}/{len(rows)}] {row.name}")
            try:
                results[row.name] = _compare(row, repetitions[row.name], servers, options.quick)
            except AssertionError as exc:
                failures[row.name] = str(exc)
                _say(f"    failed: {exc}")
    flat = [result for found in results.values() for result in found]
    print(table.render(flat))
    print()
    print("Medians; repetitions: " + ", ".join(f"{name} {n}" for name, n in repetitions.items()))
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"Load of the machine before: {load}; after {time.monotonic() - began:.0f} s: "
          f"{machine.load()}")  # fmt: skip
    missed = sum(not result.is_met for result in flat)
    print(f"{len(flat) - missed} met, {missed} missed" + (", quick run" if options.quick else ""))
    for name, reason in failures.items():
        print(f"\n{name} could not be measured: {reason}")
    if options.json:
        document = {
            "quick": options.quick,
            "machine": versions,
            "load": load,
            "repetitions": repetitions,
            "rows": {name: [one.as_json() for one in found] for name, found in results.items()},
            "failures": failures,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if failures else 0


def _compare(row: Row, repetitions: int, servers: Servers, is_quick: bool) -> list[Result]:
    """Measures both workers in turn, each time the other one first."""
    results = {figure.key: Result(figure) for figure in row.figures()}
    for repetition in range(repetitions):
        for kind in KINDS if repetition % 2 == 0 else reversed(KINDS):
            with place(row.broker, servers, is_quick) as here:
                measured = row.measure(here, kind)
            for key, value in measured.items():
                results[key].samples[kind].append(value)
            shown = ", ".join(
                f"{key} {table.number(value)} {results[key].figure.unit}"
                for key, value in measured.items()
            )
            _say(f"    {repetition + 1}/{repetitions} {kind:8}  {shown}")
    return list(results.values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures Celery's worker and celeriac's side by side.",
        epilog="rows: " + " ".join(row.name for row in ROWS),
    )
    parser.add_argument("--quick", action="store_true", help="less of everything: rough figures")
    parser.add_argument(
        "--only", action="append", metavar="ROW", help="these rows; the beginning of names will do"
    )
    parser.add_argument("--repetitions", type=int, metavar="N", help="the same for every row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    return parser.parse_args()


def _chosen(names: list[str] | None) -> list[Row]:
    rows = [row for row in ROWS if names is None or row.name.startswith(tuple(names))]
    if not rows:
        sys.exit(f"no row is named so; there are: {' '.join(row.name for row in ROWS)}")
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
