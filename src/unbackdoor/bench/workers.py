"""Parallel processes for cells: each runs many, and one that dies takes only its own cell with it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function of a module, its arguments and keyword arguments; all can be pickled."""


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a task (killed, out of memory, crashed)."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    index: int | None = None


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(tasks: Iterable[Task], jobs: int, threads: int) -> Iterator[tuple[int, Any]]:
    """Run tasks in ``jobs`` processes of ``threads`` threads each; yield (index, result) as they end.

    The result of a task that raised, or whose process died, is the exception. All processes are ended when
    the generator is closed, Ctrl-C included. With ``jobs=0`` the tasks run here, one after the other.
    """
    tasks = list(tasks)
    if jobs == 0:
        yield from ((index, _call(task)) for index, task in enumerate(tasks))
        return
    waiting, workers = deque(range(len(tasks))), []
    try:
        workers = [_start(threads) for _ in range(min(jobs, len(tasks)))]
        for worker in workers:
            _give(worker, waiting, tasks)
        while busy := [worker for worker in workers if worker.index is not None]:
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                yield worker.index, _take(worker, threads)
                _give(worker, waiting, tasks)
    finally:
        for worker in workers:
            _end(worker)


def _start(threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, waiting: deque[int], tasks: list[Task]) -> None:
    worker.index = waiting.popleft() if waiting else None
    if worker.index is not None:
        worker.pipe.send(tasks[worker.index])


def _take(worker: _Worker, threads: int) -> Any:
    """Return the result of the worker's task; a dead worker is replaced."""
    try:
        return worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode
        worker.pipe.close()
        fresh = _start(threads)
        worker.process, worker.pipe = fresh.process, fresh.pipe
        return WorkerDied(f"the process of this cell ended with exit code {code}")


def _end(worker: _Worker) -> None:
    worker.process.terminate()
    worker.process.join()
    worker.pipe.close()


def _serve(pipe: Connection, threads: int) -> None:
    """Run tasks until the other side goes away; Ctrl-C is the parent's to handle."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        while True:
            pipe.send(_call(pipe.recv()))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return


def _end_with_parent() -> None:
    """End this process, in the middle of a cell, too, once its parent is gone: killed, nobody ends it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(task: Task) -> Any:
    function, arguments, keywords = task
    try:
        return function(*arguments, **keywords)
    except Exception as error:  # noqa: BLE001  the error is the task's result
        error.add_note(traceback.format_exc())
        return error
