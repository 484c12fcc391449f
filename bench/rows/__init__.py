"""The rows of the comparison, in the order of the table."""

from __future__ import annotations

from comparison.row import Row
from rows.eta import Eta
from rows.large import Large
from rows.latency import Latency
from rows.memory import Memory
from rows.ping import Ping
from rows.recycling import Recycling
from rows.start import Start
from rows.throughput import Throughput

ROWS: list[Row] = [
    Throughput("ignored", 1, factor=8),
    Throughput("ignored", 2, factor=12),
    Throughput("ignored", 4, factor=1),
    Throughput("stored", 1, factor=5),
    Throughput("stored", 2, factor=5),
    Throughput("stored", 4, factor=5),
    Latency(),
    Memory("small", 1, factor=1),
    Memory("small", 8, factor=2),
    Memory("small", 32, factor=1),
    Memory("fat", 1, factor=1),
    Memory("fat", 8, factor=3),
    Memory("fat", 32, factor=1),
    Start("small"),
    Start("fat"),
    Recycling(),
    Eta("redis", at_most=5, limit=300),
    Large(),
    Throughput("ignored", 2, factor=5, events=True),
    Ping("redis"),
    Throughput("ignored", 2, factor=5, broker="rabbitmq", main_factor=10),
    Throughput("stored", 2, factor=5, broker="rabbitmq", main_factor=10),
    Throughput("ignored", 2, factor=5, broker="rabbitmq", main_factor=10, events=True),
    Eta("rabbitmq", at_most=10, limit=30),
    Ping("rabbitmq"),
]
