"""Peak memory of a process, seen from outside."""

from __future__ import annotations

from threading import Event, Thread

from engines import Child, Fields, Task

from octavo.core.errors import UserError
from octavo.core.hardware import process_memory


def peak_memory(name: str, setup: Fields, task: Task) -> tuple[int, int]:
    """Proportional set size of a fresh process: at its peak, sampled every 5 ms, and at its end."""
    child = Child(name, setup)
    seen: list[int] = []
    done = Event()
    watcher = Thread(target=_watch, args=(child.pid, seen, done))
    watcher.start()
    try:
        child.ready().measure(task)
        after = process_memory(child.pid).proportional
    finally:
        done.set()
        watcher.join()
        child.close()
    return max(*seen, after), after


def _watch(pid: int, seen: list[int], done: Event) -> None:
    while not done.wait(0.005):
        try:
            seen.append(process_memory(pid).proportional)
        except UserError:  # the process has just ended
            return
