"""Calls that may take long."""

from __future__ import annotations

import threading

from celeriac.host.errands import Errands

DEADLINE = 10.0


def test_an_errand_that_fails_does_not_keep_the_next_from_being_done(caplog):
    errands = Errands("tried")
    done = threading.Event()

    def fail():
        raise SystemExit("never mind")

    assert errands.take(fail)
    assert errands.take(done.set)
    assert done.wait(DEADLINE)
    assert "A call of tried failed: SystemExit('never mind')" in caplog.text


def test_the_end_waits_for_what_was_asked_for_but_not_for_ever(caplog):
    errands = Errands("tried")
    errands.finish(0)
    goes_on, done = threading.Event(), threading.Event()
    assert errands.take(lambda: goes_on.wait(DEADLINE) and done.set())
    errands.finish(0)
    assert "Some calls of tried are not done after 0 seconds." in caplog.text
    goes_on.set()
    errands.finish(DEADLINE)
    assert done.is_set()
