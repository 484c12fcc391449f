"""What a trial showed, in words; and the page of the documentation that keeps it."""

from __future__ import annotations

import collections
from pathlib import Path

from proof import table
from proof.trial import Trial

BEGIN, END = "<!-- begin: written by make ledger -->", "<!-- end: written by make ledger -->"
#: How many of each finding are shown in full.
SHOWN = 10


def summary(trial: Trial) -> str:
    findings = trial.findings
    kinds = collections.Counter(fault.kind for fault in trial.faults)
    lines = [
        f"{trial.worker} on {trial.broker}: {findings.confirmed:,} tasks confirmed "
        f"({findings.unconfirmed} not), {findings.runs:,} runs, {trial.kills} kills",
        "faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
        f"interrupted and run again: {findings.interrupted}",
        f"lost: {len(trial.lost)}; by Celery workers of the fleet: {len(trial.lost_by_celery)}",
        *(f"  lost {task}" for task in trial.lost[:SHOWN]),
        f"in the dead letters: {len(findings.buried)}",
        *(f"  kept {task}" for task in findings.buried[:SHOWN]),
        f"repeated: {len(findings.repeats)}",
        *(f"  {count:5} {reason}" for reason, count in findings.reasons().most_common()),
    ]
    for repeat in findings.repeats:
        if repeat.reason.isupper() or "finished" in repeat.reason:
            lines.append(f"  {repeat}")
    lines += [f"impossible here: {kind}" for kind in trial.impossible]
    lines += [f"TROUBLE: {text}" for text in trial.troubles]
    return "\n".join(lines)


def write(page: Path, trials: list[Trial]) -> None:
    """Puts the rows of these trials in the place of those with the same broker and worker."""
    before, _, rest = page.read_text().partition(BEGIN)
    kept, _, after = rest.partition(END)
    cells = (tuple(cell.strip() for cell in line[1:-1].split("|")) for line in kept.splitlines())
    old = [row for row in cells if len(row) == len(table.HEAD)][2:]
    rows = {row[:2]: row for row in [*old, *map(table.row, trials)]}
    shown = table.render(list(rows.values()))
    page.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}")
