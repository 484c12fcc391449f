"""All processes compute without a pause: the worker answers, and is never taken for dead."""

from __future__ import annotations

import time

import pytest

from harness.wait import wait_until

#: The comparison in `bench` asks a thousand times, and measures.
PINGS = 300
TIMEOUT = 60.0


@pytest.mark.timeout(300)
def test_pings_are_answered_while_all_are_busy(fanout_place, start, client):
    fanout_place.settings = {"broker_heartbeat": 4}
    app = client(fanout_place)
    worker = start(fanout_place, "-c", "2", "-E")
    running = [app.spin.delay(300, fanout_place.file(), str(number)) for number in range(2)]
    wait_until(lambda: len(fanout_place.lines()) == 2, "both compute", TIMEOUT)
    beats = []
    control = app.app.control
    times = []
    with app.app.connection_for_write() as connection:
        for _ in range(PINGS):
            began = time.perf_counter()
            # As soon as there is one answer, which is that of the only worker.
            answers = control.broadcast(
                "ping", reply=True, limit=1, timeout=TIMEOUT, connection=connection
            )
            times.append(time.perf_counter() - began)
            assert answers == [{worker.node: {"ok": "pong"}}]
        receiver = app.app.events.Receiver(connection, handlers={"worker-heartbeat": beats.append})
        for _ in receiver.itercapture(limit=None, timeout=TIMEOUT, wakeup=False):
            if len(beats) >= 3:
                break
    times.sort()
    print(f"p50 {times[PINGS // 2] * 1000:.1f} ms, p99 {times[PINGS * 99 // 100] * 1000:.1f} ms")
    # They say every how many seconds they come.
    gaps = [later["timestamp"] - earlier["timestamp"] for earlier, later in zip(beats, beats[1:])]
    assert all(gap < 2 * beat["freq"] for gap, beat in zip(gaps, beats)), beats
    assert all(beat["active"] == 2 for beat in beats)
    assert "Connection to broker lost" not in worker.log
    for result in running:
        result.revoke(terminate=True, signal="SIGKILL")
    wait_until(lambda: all(result.state == "REVOKED" for result in running), "they are ended")
    assert worker.stop(timeout=TIMEOUT) == 0
