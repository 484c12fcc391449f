"""An app whose messages come to their queues in every way that kombu has."""

from __future__ import annotations

import os

from celery import Celery
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

app = Celery("routed", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.broker_transport_options = eval(os.environ.get("INTEROP_TRANSPORT_OPTIONS", "{}"))
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))

MEDIA = Exchange("media", type="topic")
NEWS = Exchange("news", type="fanout")
MATCHING = Exchange("matching", type="headers")

queues = [
    Queue("celery"),
    Queue(
        "pictures",
        [binding(MEDIA, routing_key="media.picture.#"), binding(MEDIA, routing_key="*.thumbnail")],
    ),
    Broadcast("everybody"),
]
if os.environ["INTEROP_BROKER"].startswith("amqp"):
    # What Redis has no way for.
    red = {"x-match": "all", "colour": "red"}
    queues += [
        Queue("reds", [binding(MATCHING, arguments=red)]),
        Queue("readers", [binding(NEWS)]),
        Queue("urgent", max_priority=10),
    ]
app.conf.task_queues = queues
app.conf.worker_direct = True


@app.task(bind=True)
def where(self):
    return [self.request.hostname, self.request.delivery_info["routing_key"]]


@app.task(bind=True, ignore_result=True)
def note(self, text):
    fd = os.open(
        os.path.join(os.environ["INTEROP_FOLDER"], "notes"),
        os.O_WRONLY | os.O_APPEND | os.O_CREAT,
        0o644,
    )
    try:
        os.write(fd, f"{text} {self.request.hostname}\n".encode())
    finally:
        os.close(fd)
