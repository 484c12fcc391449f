"""The ledger in short: half a minute of kills, cuts and full disks on each broker.

``make ledger`` is the real one.
"""

from __future__ import annotations

import random

import pytest

from proof import audit, page
from proof.broker import BROKERS
from proof.trial import trial

SECONDS = 30
#: Seconds for an acknowledgement, on a machine that runs other tests beside this one.
GRACE = 5.0


@pytest.mark.timeout(400)
@pytest.mark.parametrize("broker", list(BROKERS))
def test_nothing_is_lost_and_what_is_repeated_has_a_reason(broker, tmp_path):
    seed = random.randrange(1 << 16)
    result = trial(broker, "celeriac", seed, SECONDS, tmp_path, print, GRACE)
    shown = f"seed {seed}\n{page.summary(result)}"
    assert result.findings.confirmed > 200, shown
    assert result.kills > 5, shown
    assert not result.troubles, shown
    assert not result.lost, shown
    assert not result.repeats(audit.FINISHED, audit.UNEXPLAINED), shown
