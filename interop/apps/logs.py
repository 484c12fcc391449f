"""An app that logs in every way, and sets up logging in the way that it is told to."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from celery import Celery, signals
from celery.utils.log import get_logger, get_task_logger

app = Celery("logs", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))
WAY = os.environ.get("INTEROP_LOGGING", "")
FILE = os.path.join(os.environ["INTEROP_FOLDER"], "own.log")
OWN_FORMAT = "OWN %(levelname)s %(processName)s %(name)s: %(message)s"


def own_handler() -> logging.Handler:
    handler = logging.FileHandler(FILE)
    handler.setFormatter(logging.Formatter(OWN_FORMAT))
    return handler


if WAY == "root":
    # Before Celery's set-up: it stays only where that may not hijack the root logger.
    logging.getLogger().addHandler(own_handler())

if WAY == "setup_logging":

    @signals.setup_logging.connect(weak=False)
    def set_up(loglevel, **_):
        logging.getLogger().addHandler(own_handler())
        logging.getLogger().setLevel(loglevel)


if WAY == "after_setup_logger":

    @signals.after_setup_logger.connect(weak=False)
    def add_handler(logger, **_):
        logger.addHandler(own_handler())


if WAY == "filter":

    class WithoutReceived(logging.Filter):
        def filter(self, record):
            return "received" not in record.getMessage()

    @signals.after_setup_logger.connect(weak=False)
    def add_filter(logger, **_):
        for handler in logger.handlers:
            handler.addFilter(WithoutReceived())


if WAY == "formatter":

    @signals.after_setup_logger.connect(weak=False)
    def set_formatter(logger, **_):
        for handler in logger.handlers:
            handler.setFormatter(logging.Formatter(OWN_FORMAT))


if WAY == "after_setup_task_logger":

    @signals.after_setup_task_logger.connect(weak=False)
    def add_task_handler(logger, **_):
        logger.addHandler(own_handler())


if WAY == "level":

    @signals.celeryd_after_setup.connect(weak=False)
    def quieten(**_):
        logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)


@signals.worker_ready.connect
def say_ready(**_):
    get_logger("logs.hooks").info("MARK ready hook")
    print("MARK printed in main")


@signals.worker_process_init.connect
@signals.worker_process_shutdown.connect
def say_process(**_):
    get_logger("logs.hooks").info("MARK process hook")
    print("MARK printed at the edge of a process")


@signals.worker_shutting_down.connect
@signals.worker_shutdown.connect
def say_end(**_):
    get_logger("logs.hooks").warning("MARK end hook")


@app.task(name="say")
def say(text):
    print("MARK print", text)
    print("MARK error", text, file=sys.stderr)
    get_task_logger("logs").info("MARK task logger %s", text)
    get_task_logger("logs").debug("MARK debug %s", text)
    get_logger("logs.own").warning("MARK logger %s", text)
    logging.getLogger("other").error("MARK root %s", text)
    logging.getLogger("other").info("MARK root info %s", text)
    warnings.warn(f"MARK warning {text}", stacklevel=1)
    return text


@app.task(name="fail")
def fail(text):
    raise ValueError(f"MARK {text}\nin two lines")


@app.task(name="slow", soft_time_limit=1)
def slow():
    import time

    time.sleep(60)


@app.task(name="lose", acks_late=True)
def lose():
    os._exit(7)
