"""The Python side of the worker: what runs inside the app's interpreter.

One process imports the app and runs the hooks that Celery runs before its pool starts
(:mod:`.start`). It then splits: a single-threaded copy of it, the zygote (:mod:`.zygote`), forks
the pool's children (:mod:`.child`); the original stays as main (:mod:`.main`), keeps the threads
and connections that the app started, and runs the hooks that Celery runs in its parent process.

All policy is in the Rust parent. What is here does what it is told, and answers.
"""
