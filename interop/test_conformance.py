"""Celery's own integration suite: what passes on Celery's worker passes on celeriac's."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.run import collect, run
from harness.workers import KIND


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file", ["test_tasks.py"])
def test_celerys_own_integration_tests_pass(file: str, tmp_path: Path) -> None:
    results = run(KIND, [file], tmp_path)
    assert not results.failed(), results.summary()
    passed = [test for test in results.tests.values() if test.outcome == "passed"]
    assert passed, results.summary()
    assert results.exit_status == 0


def test_what_is_left_out_of_the_suite_is_in_the_suite(tmp_path: Path) -> None:
    collect(tmp_path)
