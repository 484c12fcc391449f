from __future__ import annotations

import os

from celery import current_app, shared_task
from django.db import connection, transaction

from shop.apps import database, note, open_files
from shop.models import Order


@shared_task
def order(name):
    Order.objects.create(name=name, made_by=os.getpid())
    return Order.objects.filter(name=name).count()


@shared_task
def look():
    """The connection as the task finds it, and as it leaves it."""
    before = [open_files(database()), connection.connection is None]
    Order.objects.count()
    return {
        "pid": os.getpid(),
        "before": before,
        "after": len(open_files(database())),
        "connection": id(connection.connection),
    }


@shared_task
def order_and_fail(name):
    with transaction.atomic():
        Order.objects.create(name=name, made_by=os.getpid())
        raise ValueError("changed my mind")


@shared_task
def confirm(name):
    """Fails unless the order is there for everybody."""
    note(f"confirmed {Order.objects.get(name=name).name}")


@shared_task
def order_and_confirm(name):
    with transaction.atomic():
        confirm.delay_on_commit(name)
        Order.objects.create(name=name, made_by=os.getpid())
        note(f"ordered {name}")


@shared_task
def now():
    return [current_app.now().isoformat(), str(current_app.timezone)]


@shared_task
def die():
    Order.objects.count()
    os._exit(9)
