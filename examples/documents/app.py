"""A Celery app that reads documents: one task for each of them, and a chord for the report.

It needs nothing but Celery and SQLAlchemy; broker and results are SQLite files in one folder.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import counting
import reading
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

DATA = Path(os.environ.get("DEMO_DATA") or "celeriac-demo").absolute()


def _database(name: str) -> str:
    """The URL of a database in the data folder, in the mode in which reading and writing do not
    wait for each other."""
    DATA.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(DATA / name, timeout=30)) as database:
        database.execute("PRAGMA journal_mode=WAL")
    return f"sqlite:///{DATA / name}"


app = Celery(
    "documents", broker=f"sqla+{_database('broker.db')}", backend=f"db+{_database('results.db')}"
)
# Several processes write to these files: each waits for its turn instead of failing.
_patient = {"connect_args": {"timeout": 30}}
app.conf.update(
    broker_transport_options=_patient,
    broker_connection_retry_on_startup=True,
    database_engine_options=_patient,
    # How often Celery looks whether the whole chord is done; every second by default.
    result_chord_retry_interval=0.5,
    # What an interrupted run has left behind is of no use to the next one.
    result_expires=24 * 3600,
)

#: How many terms each document contributes to the report.
_TERMS = 50


@app.task(
    bind=True,
    autoretry_for=(reading.Busy,),
    max_retries=2,
    retry_backoff=1,
    soft_time_limit=60,
    # Reading a document twice does no harm; losing one to a killed process does.
    acks_late=True,
    reject_on_worker_lost=True,
)
def describe(self: Any, path: str) -> dict[str, Any]:
    """Reads one document, counts its words and summarises it.

    What can't be read is part of the result: one bad document must not fail the chord. A document
    that is busy is tried again, later each time.
    """
    about: dict[str, Any] = {"path": path, "attempts": self.request.retries + 1, "pid": os.getpid()}
    try:
        document = reading.read(Path(path))
        return {**about, "outcome": "read", "kind": document.kind, **_counts(document.text)}
    except reading.Busy as exc:
        if self.request.retries < self.max_retries:
            raise
        return {**about, "outcome": "failed", "reason": str(exc)}
    except reading.Unreadable as exc:
        return {**about, "outcome": "failed", "reason": str(exc)}
    except reading.Skipped as exc:
        return {**about, "outcome": "skipped", "reason": str(exc)}
    except SoftTimeLimitExceeded:
        limit = f"took longer than {self.soft_time_limit} s"
        return {**about, "outcome": "failed", "reason": limit}


@app.task
def report(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds up what the documents have given."""
    read = [one for one in found if one["outcome"] == "read"]
    kinds: dict[str, Counter[str]] = {}
    terms: Counter[str] = Counter()
    for one in read:
        kind = kinds.setdefault(one["kind"], Counter())
        kind.update(documents=1, words=one["words"], sentences=one["sentences"])
        terms.update(dict(one["terms"]))
    longest = sorted(read, key=lambda one: (-one["words"], one["path"]))
    return {
        "documents": len(found),
        "read": len(read),
        "kinds": {kind: dict(kinds[kind]) for kind in sorted(kinds)},
        "languages": Counter(one["language"] for one in read).most_common(),
        "terms": sorted(terms.items(), key=lambda item: (-item[1], item[0]))[:12],
        "summaries": [
            {name: one[name] for name in ("path", "words", "distinct_words", "summary")}
            for one in longest[:3]
        ],
        "failed": _not_read(found, "failed"),
        "skipped": _not_read(found, "skipped"),
        "tried_again": sum(one["attempts"] > 1 for one in found),
        "processes": len({one["pid"] for one in found}),
    }


def _counts(text: str) -> dict[str, Any]:
    words = counting.words(text)
    return {
        "words": len(words),
        "distinct_words": len({word.lower() for word in words}),
        "sentences": len(counting.sentences(text)),
        "language": counting.language(words),
        "terms": counting.terms(words).most_common(_TERMS),
        "summary": counting.summary(text),
    }


def _not_read(found: list[dict[str, Any]], outcome: str) -> list[dict[str, Any]]:
    return [
        {name: one[name] for name in ("path", "reason", "attempts")}
        for one in found
        if one["outcome"] == outcome
    ]
