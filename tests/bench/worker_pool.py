"""Processes that each prepare something and then, at every call, all do their part at once."""

import os
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection

Part = Callable[[], float]


class WorkerPool:
    """One process for each of `members`, which is called there once and returns its part.

    Used as a context. Raises EOFError when a member fails; its traceback is printed.
    """

    def __init__(self, members: Sequence[Callable[[], Part]]) -> None:
        context = get_context("spawn")  # a forked process couldn't use a GPU
        self._pipes: list[Connection] = []
        for member in members:
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            context.Process(target=_work, args=(theirs, member), daemon=True).start()
            theirs.close()

    def __call__(self) -> list[float]:
        """What each part returns; all work at the same time."""
        for pipe in self._pipes:
            pipe.send(True)
        return [pipe.recv() for pipe in self._pipes]

    def __enter__(self) -> "WorkerPool":
        for pipe in self._pipes:
            pipe.recv()  # it is ready
        return self

    def __exit__(self, *exception: object) -> None:
        for pipe in self._pipes:
            pipe.close()


def _work(pipe: Connection, member: Callable[[], Part]) -> None:
    part = member()
    try:
        pipe.send(0.0)
        while True:
            pipe.recv()
            pipe.send(part())
    except (EOFError, ConnectionError):
        os._exit(0)  # the benchmark needs it no more; a thread that gathers mustn't hold it up
