"""celeriac: runs Celery apps on a worker written in Rust.

The package holds the launcher of the binary (``python -m celeriac``) and, in :mod:`celeriac.host`,
the code that the binary runs inside the app's own interpreter. The binary carries that code
itself, so that it works in any virtual environment; nothing here needs to be imported by an app.
"""
