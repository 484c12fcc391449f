"""Celery's own integration suite: what passes on Celery's worker passes on celeriac's."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.run import PAIRS, Results, Runner, collect
from harness.workers import KIND


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """Of all pairs, which are run side by side."""
    with Runner(KIND) as runner:
        return runner.run_pairs(PAIRS.values(), tmp_path_factory.mktemp("conformance"))


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("pair", PAIRS)
def test_celerys_own_integration_suite_passes(results: dict[str, Results], pair: str) -> None:
    print(results[pair].summary())
    problems = results[pair].problems(PAIRS[pair].expected(KIND))
    assert not problems, "\n".join(problems)


def test_what_is_left_out_of_the_suite_is_in_the_suite(tmp_path: Path) -> None:
    collect(tmp_path)
