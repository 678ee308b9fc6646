"""One SUPERB job: an upstream, a task, a variant and a seed; from its data to its result."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from interstack.data.skips import OnCorrupt, report_skipped
from interstack.errors import ConfigurationError, InterstackError, RunInterrupted
from interstack.evaluation.superb.compatibility import s3prl_supplied
from interstack.evaluation.superb.layouts import check_layout
from interstack.evaluation.superb.preparation import prepare
from interstack.evaluation.superb.progress import JobProgress
from interstack.evaluation.superb.tasks import Config, Task, fill_placeholders
from interstack.evaluation.superb.training import STATES_FILE, DownstreamTraining
from interstack.evaluation.superb.upstream import FBANK, Upstream
from interstack.evaluation.upstreams import check_at_first_batch
from interstack.models.precision import PrecisionReport
from interstack.tracking.events import append_event
from interstack.utils.atomic import write_whole
from interstack.utils.disk import is_there, reason, unread
from interstack.utils.environment import describe_environment
from interstack.utils.lock import run_lock
from interstack.utils.progress import job_display
from interstack.utils.signals import StopRequest

log = logging.getLogger(__name__)

RESULT_FILE: Final = "result.json"
_CONFIG_FILE: Final = "config.yaml"
_LOG_FILE: Final = "s3prl.log"


@dataclass(frozen=True)
class Job:
    """A training and evaluation on one task.

    Attributes:
        upstream: The upstream that is evaluated.
        task: The task.
        variant: Variant of the task; empty where it has none.
        seed: Seed of weights and data.
        config: The task's settings, with ``{data}`` and ``{job}`` as placeholders.
        data_root: Directory that replaces ``{data}``.
        output: Directory of all jobs.
        on_corrupt: What to do at audio that can't be decoded.
    """

    upstream: Upstream
    task: Task
    variant: str
    seed: int
    config: Config
    data_root: Path
    output: Path
    on_corrupt: OnCorrupt = "raise"

    @property
    def directory(self) -> Path:
        """Directory of the job's files, which replaces ``{job}``."""
        name = "-".join(filter(None, (self.variant, f"seed{self.seed}")))
        return self.output / self.upstream.folder / self.task.name / name

    @property
    def name(self) -> str:
        """Name in progress and log."""
        parts = (self.upstream.name, self.task.name, self.variant, f"seed {self.seed}")
        return " ".join(filter(None, parts))

    @property
    def test_split(self) -> str:
        """Split that is reported; QUESST's two sets of queries are jobs of their own."""
        return self.variant if self.task.name == "qbe" else self.task.test

    def settings(self) -> Config:
        """Return the task's settings with this job's variant and directories."""
        found = fill_placeholders(self.config, data=str(self.data_root), job=str(self.directory))
        if self.task.name == "er":
            found["downstream_expert"]["datarc"]["test_fold"] = self.variant
        return found

    def result(self) -> dict[str, Any] | None:
        """Return the record of a finished job; None before that.

        Raises:
            ConfigurationError: If the record is damaged.
        """
        path = self.directory / RESULT_FILE
        try:
            if not is_there(path):
                return None
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found["metrics"], found["step"]
        except OSError as error:
            raise ConfigurationError(unread(path, error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is no record of a finished job ({type(error).__name__}): remove it, and "
                "the job is evaluated again at its best step"
            ) from error
        return found


def check_job(job: Job) -> None:
    """Raise where a job can't start or resume; to be called before any job runs.

    Raises:
        DataError: If its data is not complete.
        ConfigurationError: If it was started with other settings.
    """
    job.result()
    check_layout(job.task, job.settings())
    path = job.directory / _CONFIG_FILE
    try:
        done = any(is_there(job.directory / name) for name in (RESULT_FILE, STATES_FILE))
        text = path.read_text(encoding="utf-8") if done and is_there(path) else ""
        recorded = yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(unread(path, error)) from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"{path}, which holds the settings of its job, is damaged: remove {job.directory}, "
            "and the job restarts, or give another --output"
        ) from error
    if recorded is not None and recorded != _record(job):
        raise ConfigurationError(
            f"{job.directory} was started with the other settings of its {_CONFIG_FILE}: give "
            "those, or another --output"
        )


def run_job(
    job: Job, device: torch.device, show_progress: bool = True, *, precision_check: bool = True
) -> Mapping[str, Any]:
    """Train a job to its end, resuming it if it was interrupted, and evaluate the test split.

    Args:
        job: The job.
        device: The device.
        show_progress: Draw a bar where there is a terminal.
        precision_check: Compare the upstream's first batch with float32, where it computes in
            another number format.

    Returns:
        The content of its ``result.json``.

    Raises:
        ConfigurationError: If another process runs it, or its directory can't be written.
        DataError: If its data can't be used.
        TeacherError: If the upstream can't be loaded.
        PrecisionError: If it is computed wrongly in its number format.
        RunInterrupted: After a signal; the same command resumes it.
    """
    directory, config = job.directory, job.settings()
    with _explaining(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with run_lock(directory, "give this one another --output"):
        finished = job.result()
        if finished is not None:
            return finished
        with (
            _explaining(directory),
            job_display(draws=show_progress) as display,
            _s3prl_supplied(directory),
        ):
            progress = JobProgress(job.name, display)
            write_whole(directory / _CONFIG_FILE, yaml.safe_dump(_record(job)).encode())
            unprepared = prepare(job.task, config, directory, job.on_corrupt)
            upstream = job.upstream.load(device)
            training = DownstreamTraining(
                job.task, config, upstream, directory, job.seed, device, job.on_corrupt
            )
            training.skipped.update(dict.fromkeys(unprepared))
            if precision_check and job.upstream.name != FBANK:
                report = partial(_report_precision, directory)
                check_at_first_batch(upstream, job.upstream.name, device, report)
            training.resume()
            _train(training, progress, directory)
            progress.pause("evaluating")
            step = training.load_best()
            scalars = training.evaluate(job.test_split)
            result = _result(job, step, scalars, device, list(training.skipped))
            write_whole(directory / RESULT_FILE, json.dumps(result, indent=1).encode())
    report_skipped(len(training.skipped), next(iter(training.skipped), ""), f"files of {job.name}")
    return result


def _report_precision(directory: Path, found: PrecisionReport) -> None:
    log.info("%s", found)
    append_event(directory, {"kind": "precision", "step": 0, **found.to_primitives()})


def _train(training: DownstreamTraining, progress: JobProgress, directory: Path) -> None:
    """Train, and stop after a step if a signal was received."""
    request = StopRequest("stopping after this step; the same command continues")
    request.install()

    def after_step(loss: float) -> None:
        progress.advance(training.step, training.total_steps, loss, training.best)
        if request.received is not None and training.step < training.total_steps:
            training.save()
            raise RunInterrupted(
                f"stopped after step {training.step}; the same command continues from there "
                f"({directory})",
                request.received,
            )

    try:
        training.train(after_step)
    finally:
        request.uninstall()


def _result(
    job: Job,
    step: int,
    scalars: Mapping[str, float],
    device: torch.device,
    skipped: Sequence[str],
) -> dict[str, Any]:
    metrics = {metric.key: metric.scale * scalars[metric.scalar] for metric in job.task.metrics}
    return {
        "upstream": job.upstream.name,
        "digest": job.upstream.digest,
        "task": job.task.name,
        "variant": job.variant,
        "seed": job.seed,
        "metrics": metrics,
        "step": step,
        "steps": job.config["runner"]["total_steps"],
        "scalars": dict(scalars),
        "skipped": list(skipped),
        "data_root": str(job.data_root),
        "surroundings": describe_environment(device, "32-true"),
    }


def _record(job: Job) -> dict[str, Any]:
    """Return the settings that a resumed job has to have."""
    return {
        "upstream": job.upstream.digest,
        "task": job.task.name,
        "variant": job.variant,
        "seed": job.seed,
        "config": job.config,
    }


@contextmanager
def _explaining(directory: Path) -> Iterator[None]:
    """Turn a full disk, or a decoding worker's traceback, into one line."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or directory} can't be read or written ({reason(error)}): "
            "fix that (free space on a full disk) and give the same command again; finished jobs "
            "are kept"
        ) from error
    except InterstackError as error:
        message = str(error).rpartition(f"{type(error).__name__}: ")[2]
        if message == str(error):
            raise
        raise type(error)(message.strip()) from error


@contextmanager
def _s3prl_supplied(directory: Path) -> Iterator[None]:
    """Supply s3prl, and redirect its output to a file of the job."""
    scratch = directory / "s3prl"
    scratch.mkdir(exist_ok=True)
    with (
        (directory / _LOG_FILE).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(_Silent(log)),
        s3prl_supplied(scratch),
    ):
        yield


class _Silent(io.TextIOBase):
    """Writes to a file and is no terminal, so that no bar is drawn into it."""

    def __init__(self, file: io.TextIOBase | Any) -> None:  # noqa: ANN401, an open text file
        self._file = file

    def write(self, text: str) -> int:
        return int(self._file.write(text))
