"""Worker processes: the signals that they leave to the run, and how the death of one is told."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final, TypeVar

import torch
from torch.utils.data import DataLoader

from interstack.errors import DataError

_BURIAL_SECONDS: Final = 5.0

ItemT = TypeVar("ItemT")

_SIGNALS_OF_THE_RUN: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""Ctrl-C and a cluster's notice reach every process of a run; the training process answers them."""


def load(loader: DataLoader[ItemT], num_items: int | None = None) -> Generator[ItemT]:
    """Yield a loader's items; end its workers before the last one, or when it is closed.

    Args:
        loader: The loader.
        num_items: The number of its items; None if it is not known. A consumer that counts the
            items, as Lightning does, asks for none after the last one, so that the workers would
            wait for ever.

    Raises:
        DataError: a worker died; the others have been ended. It is raised where an item is asked
            for and nowhere else, so never in the middle of a step.
    """
    if not loader.num_workers:
        yield from loader
        return
    with _blocked_signals(), _frozen_heap.in_children():  # in the workers from their first moment
        others = active_children()
        items = iter(loader)
        workers = [process for process in active_children() if process not in others]
    _gate.install()
    _workers.update(workers)
    num_taken = 0
    try:
        while True:
            try:
                with _gate:
                    dead = _dead()
                    if dead:
                        break
                    item = next(items)
            except StopIteration:
                return
            except (OSError, EOFError):
                dead = _dead_soon()
                if not dead:
                    raise
                break
            except Exception:
                dead = _dead()
                if not dead:
                    raise
                break
            num_taken += 1
            if num_taken == num_items:
                break
            yield item
    finally:
        _gate.close()
        _workers.difference_update(workers)
        del items  # ends the workers; a traceback that held it would make that take seconds
    if dead:
        raise DataError(_obituary(dead[0]))
    yield item


def prepare_worker(_worker: int) -> None:
    """Makes a loader's worker a good subordinate; its `worker_init_fn`.

    It doesn't compete with the training process for its cores. And it outlives the signals that
    end a run: the training process goes on to the end of its step and writes a checkpoint, and
    needs its batches for that. SIGTERM from the training process itself is obeyed: so torch and
    multiprocessing end workers that are stuck, and would wait for ever for one that ignores it.
    Torch's own handler makes this distinction too, but dies of everybody else's SIGTERM. If the
    training process is killed, torch's watchdog ends its workers within seconds.
    """
    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_THE_RUN)
    threading.Thread(target=_obey_the_parent_alone, daemon=True).start()


def _obey_the_parent_alone() -> None:
    """Takes the signals in; only waiting for them tells who sent them."""
    while True:
        received = signal.sigwaitinfo(_SIGNALS_OF_THE_RUN)
        if received.si_signo == signal.SIGTERM and received.si_pid == os.getppid():
            os._exit(0)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Holds the signals of the run back, in this thread, until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_THE_RUN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _FrozenHeap:
    """Keeps workers from collecting what they inherit from the training process.

    A forked worker has a copy of its parent's heap. An iterator of an earlier loader may be garbage
    there, or become it; collected in the worker, it would try to end the parent's workers, which
    prints a traceback. Nothing that is frozen is collected. `prepare_worker` would freeze too late:
    the worker allocates, and so may collect, before torch calls it.
    """

    def __init__(self) -> None:
        self._is_starting = False
        os.register_at_fork(after_in_child=self._freeze)

    @contextmanager
    def in_children(self) -> Iterator[None]:
        """Freeze the heap of every process that is forked within the block."""
        self._is_starting = True
        try:
            yield
        finally:
            self._is_starting = False

    def _freeze(self) -> None:
        if self._is_starting:
            gc.freeze()


_frozen_heap: Final = _FrozenHeap()


class _Gate:
    """Lets news of a worker's death through only while a batch is waited for.

    Torch raises it from a handler of SIGCHLD, wherever the training process happens to be: in an
    optimizer's step, in a growth, in the writing of a checkpoint. But it must be let through while
    a batch is waited for, or that could be for ever: a worker can die holding the queue.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._installed: object = None

    def __enter__(self) -> None:
        self._is_open = True

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Holds the news back from now on."""
        self._is_open = False

    def install(self) -> None:
        """Stands before the present handler of SIGCHLD, which is torch's once there are workers."""
        behind = signal.getsignal(signal.SIGCHLD)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not callable(behind) or behind is self._installed or not in_main_thread:
            return

        def handle(signum: int, frame: FrameType | None) -> None:
            try:
                behind(signum, frame)
            except RuntimeError:
                if self._is_open:
                    raise

        self._installed = handle
        signal.signal(signal.SIGCHLD, handle)


_gate: Final = _Gate()

_workers: Final[set[BaseProcess]] = set()
"""Those of all loaders: validation's may be waited for while one of training's dies."""


def _dead() -> list[BaseProcess]:
    """Lists the workers that came to a bad end; those that finished their share have status 0."""
    return [worker for worker in _workers if worker.exitcode]


def _dead_soon() -> list[BaseProcess]:
    """Waits a little for a death: a connection breaks while its worker is still being buried."""
    deadline = time.monotonic() + _BURIAL_SECONDS
    while not (dead := _dead()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return dead


def _obituary(worker: BaseProcess) -> str:
    """Says how a worker ended, and what to do about it."""
    assert worker.exitcode is not None
    if worker.exitcode > 0:
        return (
            f"A worker that decodes audio ended with status {worker.exitcode}; what it printed "
            "before may say why, and data.num_workers=0 shows it in full."
        )
    cause = signal.Signals(-worker.exitcode)
    mend = "with data.num_workers=0 the training process decodes and shows the cause."
    if cause == signal.SIGKILL:
        mend = "most often memory has run out: lower data.num_workers or data.batch_seconds."
    elif cause == signal.SIGBUS:
        mend = "most often shared memory (/dev/shm) has run out: enlarge it or lower "
        mend += "data.num_workers or data.batch_seconds."
    return f"A worker that decodes audio was killed by {cause.name}; {mend}"
