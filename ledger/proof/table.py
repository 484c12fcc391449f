"""The table of all trials, in the terminal and in the documentation."""

from __future__ import annotations

from proof import audit
from proof.trial import Trial

HEAD = (
    *("broker", "worker", "seed", "seconds", "load before", "tasks", "runs", "kills"),
    *(
        "other faults",
        "lost",
        "dead letters",
        "repeated",
        "finished before the kill",
        "unexplained",
    ),
    "lost by Celery workers of the fleet",
)


def row(trial: Trial) -> tuple[str, ...]:
    findings = trial.findings
    by_celery = str(len(trial.lost_by_celery)) if trial.worker == "celeriac" else "(all)"
    return (
        trial.broker,
        trial.worker,
        str(trial.seed),
        f"{trial.seconds:.0f}",
        f"{trial.load:.1f}",
        f"{findings.confirmed:,}",
        f"{findings.runs:,}",
        str(trial.kills),
        str(len(trial.faults) - trial.kills),
        str(len(trial.lost)),
        str(len(findings.buried)) if trial.worker == "celeriac" else "-",
        str(len(findings.repeats)),
        str(trial.repeats(audit.FINISHED)),
        str(trial.repeats(audit.UNEXPLAINED)),
        by_celery,
    )


def render(rows: list[tuple[str, ...]]) -> str:
    lines = [HEAD, tuple("---" for _ in HEAD), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
