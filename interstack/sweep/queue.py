"""The queue of a sweep: several jobs at a time, each in its own process, always resumable."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from interstack.errors import RunInterrupted
from interstack.sweep.records import Job, Status, is_finished, write_record
from interstack.utils.disk import reason, write_errors
from interstack.utils.signals import StopRequest
from interstack.utils.units import format_duration

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.1
_BUSY_SECONDS: Final = 2.0
_STOPPED: Final = (75, 130)
_OF_ANOTHER_RUN: Final = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_NAME", "WANDB_RUN_GROUP")
"""Variables that would make all runs one in W&B."""


class Process(Protocol):
    """The part of ``subprocess.Popen`` that the queue uses."""

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""


@dataclass
class Outcome:
    """How jobs have ended, by their names.

    Attributes:
        finished: Jobs that are finished, now or earlier.
        failed: Jobs that have failed, and why.
        interrupted: Jobs that a signal has stopped while the sweep continued.
    """

    finished: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: set[str] = field(default_factory=set)


@dataclass
class _Running:
    job: Job
    process: Process
    slot: int
    began: float
    claim: int


def launch(
    words: Sequence[str], environment: Mapping[str, str], log_file: Path, claim: int
) -> Process:
    """Start a command of interstack.

    Args:
        words: The command line after ``interstack``.
        environment: All of its variables.
        log_file: The file to which its output is appended.
        claim: Descriptor of the job's lock, which the process inherits.
    """
    command = [sys.executable, "-m", "interstack.cli", *words]
    with log_file.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(claim,),
        )


def slot_environment(
    slot: int, num_slots: int, num_cores: int, gpus: Sequence[str], earlier: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that give a worker its threads and GPUs.

    Two trainings of two threads each on two cores are ten times slower than of one.

    Args:
        slot: Index of the worker.
        num_slots: Number of workers.
        num_cores: Cores of all workers.
        gpus: GPUs of all workers, named as in ``CUDA_VISIBLE_DEVICES``.
        earlier: The environment; if it sets fewer threads, these are kept.

    Example:
        >>> slot_environment(1, 2, 8, ["0", "1"], {})
        {'OMP_NUM_THREADS': '4', 'CUDA_VISIBLE_DEVICES': '1'}
    """
    if num_slots == 1:
        return {}
    threads = max(1, num_cores // num_slots)
    set_threads = earlier.get("OMP_NUM_THREADS", "")
    if set_threads.isdigit() and int(set_threads) > 0:
        threads = min(threads, int(set_threads))
    found = {"OMP_NUM_THREADS": str(threads)}
    if gpus:
        own = gpus[slot::num_slots] or [gpus[slot % len(gpus)]]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return found


def machine_environments(num_slots: int) -> list[dict[str, str]]:
    """Return `slot_environment` of all workers on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        slot_environment(slot, num_slots, cores or 1, _gpus(num_slots), os.environ)
        for slot in range(num_slots)
    ]


def _gpus(num_slots: int) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None or num_slots == 1:
        return [name for name in (visible or "").split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


class Queue:
    """Runs jobs in their order, each in the first free worker.

    A job is claimed by a lock that ends with its process, however that ends. A job of another
    process, such as a run that has outlived a killed sweep, is waited for.

    Args:
        jobs: In order.
        slots: The environment of each worker; see `machine_environments`.
    """

    def __init__(self, jobs: Sequence[Job], slots: Sequence[Mapping[str, str]]) -> None:
        self._waiting = list(jobs)
        self._slots = slots
        self._total = len(jobs)
        self._running: list[_Running] = []
        self._busy_until: dict[str, float] = {}
        self._known = {job.name for job in jobs}
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Run all jobs to their ends.

        Returns:
            How they have ended; a failed job does not keep the others from running.

        Raises:
            RunInterrupted: After a signal, when every process has saved and ended.
            InterstackError: If a record can't be written.
        """
        request = StopRequest("stopping the sweep's runs; the same command resumes them")
        request.install()
        try:
            while self._waiting or self._running:
                if request.received is not None:
                    self._stop(request.received)
                self._reap()
                self._start()
                time.sleep(_POLL_SECONDS)
        finally:
            self._end_processes()
            request.uninstall()
        return self.outcome

    def _start(self) -> None:
        free = sorted(set(range(len(self._slots))) - {each.slot for each in self._running})
        for job in list(self._waiting):
            if not free:
                return
            if self._is_settled(job):
                self._waiting.remove(job)
            elif self._is_due(job) and (claim := self._claim(job)) is not None:
                self._waiting.remove(job)
                self._begin(job, free.pop(0), claim)

    def _is_settled(self, job: Job) -> bool:
        """Return whether a job needs no process any more, and note its end."""
        if is_finished(job.record):
            self._busy_until.pop(job.name, None)
            self.outcome.finished.add(job.name)
            return True
        if job.needs in self.outcome.failed or job.needs in self.outcome.interrupted:
            self.outcome.failed[job.name] = f"needs {job.needs}, which is not finished"
            return True
        return False

    def _is_due(self, job: Job) -> bool:
        unfinished = job.needs in self._known and job.needs not in self.outcome.finished
        return not unfinished and time.monotonic() >= self._busy_until.get(job.name, 0.0)

    def _claim(self, job: Job) -> int | None:
        """Lock a job, and return the lock; None where another process has it.

        An flock, which the job's own process inherits: it holds until both have ended.
        """
        path = job.directory.with_name(f".{job.name}.sweep.lock")
        with write_errors(path, "free space, or give another --output"):
            path.parent.mkdir(parents=True, exist_ok=True)
            claim = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
            if job.name not in self._busy_until:
                log.info("%s runs in another process: waiting for it", job.name)
            self._busy_until[job.name] = time.monotonic() + _BUSY_SECONDS
            return None
        except OSError as error:  # a file system without locks
            log.warning("%s can't be locked against a second sweep (%s)", job.name, reason(error))
        return claim

    def _begin(self, job: Job, slot: int, claim: int) -> None:
        if self._is_settled(job):  # by another process, before the claim
            os.close(claim)
            return
        write_record(job, "running")
        kept = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_RUN}
        environment = {**kept, **self._slots[slot], **job.environment}
        log.info("%s starts or is resumed; it logs to %s", job.name, job.log)
        with write_errors(job.log, "free space, or give another --output"):
            process = launch(job.words, environment, job.log, claim)
        self._running.append(_Running(job, process, slot, time.monotonic(), claim))

    def _reap(self) -> None:
        for each in list(self._running):
            exit_status = each.process.poll()
            if exit_status is not None:
                self._running.remove(each)
                self._note(each, exit_status)

    def _note(self, each: _Running, exit_status: int, *, stopping: bool = False) -> None:
        job, status = each.job, _status(exit_status, stopping)
        try:
            write_record(job, status, exit_status)
        finally:
            os.close(each.claim)
        duration = format_duration(time.monotonic() - each.began)
        if status == "finished":
            self.outcome.finished.add(job.name)
            done = len(self.outcome.finished)
            log.info("%s is finished after %s (%d of %d)", job.name, duration, done, self._total)
        elif status == "interrupted":
            self.outcome.interrupted.add(job.name)
            log.info("%s is interrupted after %s", job.name, duration)
        else:
            self.outcome.failed[job.name] = f"{_last_line(job.log)} ({job.log})"
            log.warning("%s has failed: %s", job.name, self.outcome.failed[job.name])

    def _stop(self, received: signal.Signals) -> None:
        """Terminate all processes, wait until they have saved, and raise RunInterrupted."""
        for each in self._running:
            each.process.terminate()
        while self._running:
            each = self._running.pop()
            while (exit_status := each.process.poll()) is None:
                time.sleep(_POLL_SECONDS)
            self._note(each, exit_status, stopping=True)
        raise RunInterrupted(
            f"the sweep was stopped by {received.name} with {len(self.outcome.finished)} of "
            f"{self._total} jobs finished: the same command resumes it",
            received,
        )

    def _end_processes(self) -> None:
        """Terminate processes that still run after an error."""
        for each in self._running:
            if each.process.poll() is None:
                each.process.terminate()
            os.close(each.claim)


def _status(exit_status: int, stopping: bool) -> Status:
    if exit_status == 0:
        return "finished"
    return "interrupted" if stopping or exit_status in _STOPPED else "failed"


def _last_line(path: Path) -> str:
    """Return the last line of a log, or its last error."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "its log can't be read"
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it has printed nothing"])[-1].removeprefix("error: ")
