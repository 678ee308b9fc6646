"""Worker processes that die, and signals that must not end them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from types import FrameType

import pytest

from interstack.data import SpeechDataModule
from interstack.data.skips import SkipCounter, Skips
from interstack.errors import DataError
from tests.data.corpora import (
    SPEECH,
    equal_batches,
    make_data_module,
    make_stream_module,
    shards_in,
)


@pytest.fixture(params=["folder", "shards"])
def module(request: pytest.FixtureRequest) -> SpeechDataModule:
    """A data module with two workers."""
    if request.param == "folder":
        return make_data_module(SPEECH, num_workers=2)
    return make_stream_module(shards_in(request.getfixturevalue("packed")), num_workers=2)


def _end(worker: BaseProcess, with_: signal.Signals) -> None:
    """Signals a worker and waits until it is gone."""
    assert worker.pid is not None
    os.kill(worker.pid, with_)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


def _tell(workers: list[BaseProcess], what: signal.Signals) -> None:
    """Signals workers from a process that is not their parent, as a shell or a cluster does."""
    subprocess.run(["kill", f"-{what.value}", *[str(worker.pid) for worker in workers]], check=True)


@pytest.mark.parametrize(
    ("cause", "fix"),
    [
        (signal.SIGKILL, r"memory has run out, lower data\.num_workers or data\.batch_seconds"),
        (signal.SIGBUS, r"shared memory \(/dev/shm\) has run out"),
        (signal.SIGSEGV, r"data\.num_workers to 0"),
    ],
)
def test_a_worker_that_dies_is_reported(
    module: SpeechDataModule, cause: signal.Signals, fix: str
) -> None:
    """With what killed it and what to do, and the others are ended."""
    batches = iter(module.train_dataloader())
    next(batches)
    _end(active_children()[0], cause)
    with pytest.raises(DataError, match=rf"killed by {cause.name}: .*{fix}"):
        next(batches)
    assert not active_children()


def test_a_worker_that_dies_while_a_batch_is_waited_for_is_reported(
    module: SpeechDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training process doesn't wait for what will never come."""
    training = os.getpid()
    take = type(module._feeds["train"].settings.skips).take

    def die(counter: object) -> object:
        if os.getpid() != training:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(counter)

    monkeypatch.setattr(type(module._feeds["train"].settings.skips), "take", die)
    with pytest.raises(DataError, match="killed by SIGKILL"):
        next(iter(module.train_dataloader()))
    assert not active_children()


def test_a_worker_that_exits_is_reported(
    module: SpeechDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a library that calls exit(), say."""

    def leave(_: object) -> None:
        os._exit(3)

    monkeypatch.setattr(type(module._feeds["train"].settings.skips), "take", leave)
    with pytest.raises(DataError, match="ended with status 3"):
        next(iter(module.train_dataloader()))


def test_news_of_a_death_waits_for_the_end_of_the_step(module: SpeechDataModule) -> None:
    """Torch would raise it wherever the training process is: in a step, or in a checkpoint."""
    batches = iter(module.train_dataloader())
    next(batches)
    _end(active_children()[0], signal.SIGKILL)
    assert sum(range(1000)) == 499_500  # torch's handler would have run by now
    with pytest.raises(DataError, match="killed by SIGKILL"):
        next(batches)


def test_news_of_a_death_in_training_may_come_in_validation(module: SpeechDataModule) -> None:
    """Both have workers; whichever is waited for, the message is the same."""
    batches = iter(module.train_dataloader())
    next(batches)
    victim = active_children()[0]
    validation = iter(module.val_dataloader())
    next(validation)
    _end(victim, signal.SIGKILL)
    with pytest.raises(DataError, match="killed by SIGKILL"):
        list(validation)
    with pytest.raises(DataError, match="killed by SIGKILL"):
        next(batches)
    assert not active_children()
    assert len(list(islice(module.train_dataloader(), 2))) == 2


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_outlive_the_signals_that_end_a_run(
    module: SpeechDataModule, what: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C and a cluster's notice reach them too; the step that is under way needs them."""
    undisturbed = list(module.train_dataloader())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    batches = iter(module.train_dataloader())
    first = next(batches)
    workers = active_children()
    assert len(workers) == 2
    _tell(workers, what)
    assert equal_batches(undisturbed, [first, *batches])
    assert not active_children()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert capfd.readouterr().err == ""


def test_workers_are_spared_from_their_first_moment(
    module: SpeechDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that comes while they start does no harm either."""
    start = BaseProcess.start

    def start_and_tell(process: BaseProcess) -> None:
        start(process)
        _tell([process], signal.SIGTERM)

    monkeypatch.setattr(BaseProcess, "start", start_and_tell)
    assert len(list(islice(module.train_dataloader(), 3))) == 3


def test_workers_obey_the_training_process() -> None:
    """It ends those that are stuck with SIGTERM, and would wait for ever if they ignored it."""
    module = make_data_module(SPEECH, num_workers=2)
    batches = iter(module.train_dataloader())
    next(batches)
    worker = active_children()[0]
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_who_listens_for_children_goes_on_hearing() -> None:
    """A handler of SIGCHLD that calls the one before it may come at any time."""
    module = make_data_module(SPEECH, num_workers=1)
    list(module.train_dataloader())
    heard = []
    before = signal.getsignal(signal.SIGCHLD)
    assert callable(before)

    def listen(signum: int, frame: FrameType | None) -> None:
        heard.append(signum)
        before(signum, frame)

    signal.signal(signal.SIGCHLD, listen)
    try:
        list(module.train_dataloader())
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert heard


def _leave_unfinished_garbage(module: SpeechDataModule) -> None:
    """Begins a pass and leaves it in a reference cycle, as exceptions and closures do."""
    batches = iter(module.train_dataloader())
    next(batches)
    cycle: list[object] = [batches]
    cycle.append(cycle)


def test_workers_leave_the_iterators_of_their_parent_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker that collects garbage would end the training process' other workers, and fail."""
    module = make_data_module(SPEECH, num_workers=1)
    counter = type(module._feeds["train"].settings.skips)
    take = counter.take

    def collect(counter: SkipCounter) -> Skips:
        sys.unraisablehook = sys.__unraisablehook__  # pytest's would keep it for itself
        gc.collect()
        return take(counter)

    gc.collect()
    gc.disable()
    try:
        _leave_unfinished_garbage(module)
        assert len(active_children()) == 1
        monkeypatch.setattr(counter, "take", collect)
        assert len(list(islice(module.train_dataloader(), 3))) == 3
    finally:
        gc.enable()
        gc.collect()
    assert capfd.readouterr().err == ""
    assert not active_children()


def test_the_last_batch_comes_after_the_end_of_its_workers(module: SpeechDataModule) -> None:
    """Lightning counts batches, and asks for nothing behind the last one."""
    loader = module.train_dataloader()
    batches = iter(loader)
    taken = list(islice(batches, len(loader) - 1))
    assert len(active_children()) == 2
    taken.append(next(batches))
    assert not active_children()
    assert equal_batches(list(module.train_dataloader()), taken)
    assert next(batches, None) is None


def test_a_pass_that_is_left_early_can_be_closed(module: SpeechDataModule) -> None:
    """As the sanity check and `limit_val_batches` leave one; the next pass is a whole one."""
    loader = module.val_dataloader()
    batches = iter(loader)
    next(batches)
    assert active_children()
    loader.close()
    assert not active_children()
    assert len(list(loader)) == len(list(module.val_dataloader())) > 1
