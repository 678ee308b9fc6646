"""The queue with stand-ins for processes: signals, claims, what a job needs."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from interstack.errors import RunInterrupted
from interstack.sweep import queue
from interstack.sweep.queue import Queue
from interstack.sweep.records import Job, read_record


class StandIn:
    """A process that ends when it is asked to, or at once with the status in its words."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], log_file: Path, claim: int
    ) -> None:
        os.fstat(claim)  # it is held
        self.exit_status = int(words[0]) if words[0].isdigit() else None
        log_file.write_text(f"error: {environment['NAME']}\n")

    def poll(self) -> int | None:
        """Return the exit status."""
        return self.exit_status

    def terminate(self) -> None:
        """End as a run does that has saved."""
        self.exit_status = 75


def job(directory: Path, name: str, word: str, needs: str = "") -> Job:
    """Return a job whose only word says how it ends."""
    return Job(name, (word,), directory / name, {}, {"NAME": name}, needs)


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "launch", StandIn)
    monkeypatch.setattr(queue, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(queue, "_BUSY_SECONDS", 0.001)


def at_poll(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something when the queue sleeps for the given time."""
    calls: list[None] = []

    def sleep(_: float) -> None:
        calls.append(None)
        if len(calls) == number:
            act()

    monkeypatch.setattr(queue.time, "sleep", sleep)


def test_what_needs_a_failed_job_fails_and_the_others_are_run(tmp_path: Path) -> None:
    """Each with its reason."""
    jobs = [job(tmp_path, "cache", "2"), job(tmp_path, "a", "0", "cache"), job(tmp_path, "b", "0")]
    outcome = Queue(jobs, [{}, {}]).run()
    assert outcome.finished == {"b"}
    assert outcome.failed["cache"].startswith("cache (")
    assert outcome.failed["a"] == "needs cache, which is not finished"


def test_a_signal_stops_every_process_and_the_records_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit status is that of a run that can be resumed."""
    jobs = [job(tmp_path, "done", "0"), job(tmp_path, "a", "waits"), job(tmp_path, "b", "waits")]
    at_poll(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunInterrupted, match="SIGTERM with 1 of 3 jobs finished") as caught:
        Queue(jobs, [{}, {}]).run()
    assert caught.value.exit_status == 75
    records = [read_record(each.record) for each in jobs]
    assert [each and each.status for each in records] == ["finished", "interrupted", "interrupted"]


def test_a_job_of_another_process_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has outlived its sweep keeps its lock; it is not begun a second time."""
    lock = os.open(tmp_path / ".a.sweep.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    jobs = [job(tmp_path, "a", "0"), job(tmp_path, "b", "0")]

    def let_go() -> None:
        assert read_record(jobs[0].record) is None
        assert read_record(jobs[1].record) is not None
        os.close(lock)

    at_poll(monkeypatch, 20, let_go)
    assert Queue(jobs, [{}]).run().finished == {"a", "b"}
