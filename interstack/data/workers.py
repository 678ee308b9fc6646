"""Worker processes: signals that they ignore, and the error when one of them dies."""

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

_EXIT_SECONDS: Final = 5.0
"""How long a worker may take to exit once its connection has broken."""

ItemT = TypeVar("ItemT")

_SIGNALS_OF_THE_RUN: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""Ctrl-C and a cluster's notice reach every process of a run; the training process answers them."""


def load(loader: DataLoader[ItemT], num_items: int | None = None) -> Generator[ItemT]:
    """Yield a loader's items; end its workers before the last one, or when it is closed.

    Args:
        loader: The loader.
        num_items: The number of its items; None if it is not known. A consumer that counts the
            items, as Lightning does, requests none after the last one, so that the workers would
            wait for ever.

    Raises:
        DataError: If a worker died; the others have been ended. It is raised where an item is
            requested and nowhere else, so never in the middle of a step.
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
        raise DataError(_death_message(dead[0]))
    yield item


def prepare_worker(_worker: int) -> None:
    """Set up a loader's worker; its `worker_init_fn`.

    It doesn't compete with the training process for its cores. And it survives the signals that
    end a run: the training process continues to the end of its step and writes a checkpoint, and
    needs its batches for that. SIGTERM from the training process itself is obeyed, as torch and
    multiprocessing end workers that are stuck by it, and would wait for ever for one that ignores
    it. Torch's own handler makes this distinction too, but exits at anyone else's SIGTERM. If the
    training process is killed, torch's watchdog ends its workers within seconds.
    """
    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_THE_RUN)
    threading.Thread(target=_exit_at_parents_signal, daemon=True).start()


def _exit_at_parents_signal() -> None:
    """Wait for the signals, which is the only way to learn who sent them."""
    while True:
        received = signal.sigwaitinfo(_SIGNALS_OF_THE_RUN)
        if received.si_signo == signal.SIGTERM and received.si_pid == os.getppid():
            os._exit(0)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block the signals of the run, in this thread, until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_THE_RUN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _FrozenHeap:
    """Keeps workers from garbage-collecting what they inherit from the training process.

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
    """Lets torch's error of a worker's death through only while a batch is waited for.

    Torch raises it from a handler of SIGCHLD, wherever the training process happens to be: in an
    optimizer's step, in a growth step, in the writing of a checkpoint. But it must be let through
    while a batch is waited for, or that could be for ever: a worker can die holding the queue.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._installed: object = None

    def __enter__(self) -> None:
        self._is_open = True

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Suppress the error from now on."""
        self._is_open = False

    def install(self) -> None:
        """Wrap the present handler of SIGCHLD, which is torch's once there are workers."""
        wrapped = signal.getsignal(signal.SIGCHLD)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not callable(wrapped) or wrapped is self._installed or not in_main_thread:
            return

        def handle(signum: int, frame: FrameType | None) -> None:
            try:
                wrapped(signum, frame)
            except RuntimeError:
                if self._is_open:
                    raise

        self._installed = handle
        signal.signal(signal.SIGCHLD, handle)


_gate: Final = _Gate()

_workers: Final[set[BaseProcess]] = set()
"""Those of all loaders: validation's may be waited for while one of training's dies."""


def _dead() -> list[BaseProcess]:
    """Return the workers that died; those that finished have status 0."""
    return [worker for worker in _workers if worker.exitcode]


def _dead_soon() -> list[BaseProcess]:
    """Return the dead workers, after a while: a connection breaks before its worker has exited."""
    deadline = time.monotonic() + _EXIT_SECONDS
    while not (dead := _dead()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return dead


def _death_message(worker: BaseProcess) -> str:
    """Return how a worker ended, and what to do about it."""
    assert worker.exitcode is not None
    if worker.exitcode > 0:
        return (
            f"a worker that decodes audio ended with status {worker.exitcode}: see what it printed "
            "before, or set data.num_workers to 0, which shows the cause in full"
        )
    cause = signal.Signals(-worker.exitcode)
    fix = "set data.num_workers to 0, which shows the cause"
    if cause == signal.SIGKILL:
        fix = "if memory has run out, lower data.num_workers or data.batch_seconds"
    elif cause == signal.SIGBUS:
        fix = (
            "if shared memory (/dev/shm) has run out, enlarge it, or lower data.num_workers or "
            "data.batch_seconds"
        )
    return f"a worker that decodes audio was killed by {cause.name}: {fix}"
