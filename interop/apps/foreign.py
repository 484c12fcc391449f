"""An app that consumes what is no task, by a bootstep of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery, bootsteps
from celery.worker import state as worker_state
from celery.worker.control import inspect_command
from kombu import Consumer, Exchange, Queue

app = Celery("foreign", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.broker_transport_options = eval(os.environ.get("INTEROP_TRANSPORT_OPTIONS", "{}"))
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))

QUEUE = Queue("foreign", Exchange("foreign", type="topic"), routing_key="foreign.#")


def note(text, file="notes"):
    with Path(os.environ["INTEROP_FOLDER"], file).open("a") as notes:
        notes.write(f"{text}\n")


class Foreign(bootsteps.ConsumerStep):
    """Does with each message what it says."""

    def get_consumers(self, channel):
        return [Consumer(channel, queues=[QUEUE], callbacks=[self.handle], accept=["json"])]

    def handle(self, body, message):
        note(f"begin {body['name']}")
        time.sleep(body.get("seconds", 0))
        if body.get("fails"):
            raise ValueError("its mistake")
        message.ack()
        note(f"end {body['name']}")


app.steps["consumer"].add(Foreign)


class Starts(bootsteps.StartStopStep):
    """Notes that it is started."""

    def start(self, parent):
        note("worker step", "starts")


app.steps["worker"].add(Starts)


@inspect_command()
def knows(state):
    """Tell what this process knows of what commands may change."""
    return {
        "queues": sorted(state.app.amqp.queues.consume_from),
        "limits": [add.rate_limit, add.soft_time_limit, add.time_limit],
        "processes": state.consumer.pool.limit,
        "groups": sorted(state.consumer.event_dispatcher.groups),
        "revoked": sorted(worker_state.revoked),
    }


@app.task
def add(x, y):
    return x + y
