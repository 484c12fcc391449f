"""Celery's own integration suite against a worker that runs as a process of its own."""
