"""The ledger: what is lost and what runs twice while everything is killed.

See ``docs/ledger.md``.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "interop")]

from harness import workers  # noqa: E402
from proof import page, table  # noqa: E402
from proof.broker import BROKERS  # noqa: E402
from proof.trial import Trial, trial  # noqa: E402

WORKERS = ("celeriac", "celery")


def main() -> int:
    options = _options()
    if not Path(workers.CELERIAC).exists():
        sys.exit(
            f"There is no {workers.CELERIAC}: run `cargo build --release`, or set CELERIAC to the "
            "path of the binary."
        )
    seed = options.seed if options.seed is not None else random.randrange(1 << 16)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="celeriac-ledger-"))
    brokers = options.broker or list(BROKERS)
    trials: list[Trial] = []
    for kind in [options.worker] if options.worker else WORKERS:
        for broker in brokers:
            _say(f"{kind} on {broker}, seed {seed}, {options.seconds / len(brokers):.0f} s")
            place = folder / f"{kind}-{broker}"
            place.mkdir(parents=True)
            trials.append(trial(broker, kind, seed, options.seconds / len(brokers), place, _say))
            print(page.summary(trials[-1]), flush=True)
            if options.write:
                page.write(options.write, trials)
    print(table.render([table.row(one) for one in trials]))
    failed = [one for one in trials if one.worker == "celeriac" and one.has_failed]
    if failed:
        print(f"FAILED; logs and books are in {folder}")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=600, help="for all brokers together, with each worker"
    )
    parser.add_argument("--seed", type=int, help="of the plan; by default another one each time")
    parser.add_argument("--broker", action="append", choices=list(BROKERS), help="only this one")
    parser.add_argument("--worker", choices=WORKERS, help="only this one")
    parser.add_argument("--folder", type=Path, help="for books and logs; must not exist")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this page")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
