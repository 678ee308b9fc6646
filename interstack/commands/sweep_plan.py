"""The plan of a sweep: every run's settings resolved, all mistakes found before the first run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interstack.errors import ConfigurationError, InterstackError
from interstack.sweep.caches import SHARED_FRONT_END, cache_job, cache_name, why_not_cached
from interstack.sweep.records import Job, check_same_settings
from interstack.sweep.study import PlannedRun, Study
from interstack.target_cache.format import CacheDtype

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepPlan:
    """The jobs of a sweep.

    Attributes:
        study: The study.
        runs: Its runs and their jobs.
        caches: Jobs that fill the caches that these need, by name.
    """

    study: Study
    runs: Sequence[tuple[PlannedRun, Job]]
    caches: Mapping[str, Job]


def plan_sweep(study: Study, output: Path) -> SweepPlan:
    """Resolve all runs as `fit` would, and find every mistake before one of them begins.

    Args:
        study: The study.
        output: Directory of the sweep.

    Raises:
        ConfigurationError: With one line for each mistake.
    """
    runs = study.runs()
    resolved: dict[str, dict[str, Any]] = {}
    mistakes: dict[str, None] = {}
    for run in runs:
        if run.group in resolved:
            continue
        try:
            resolved[run.group] = _resolve(run.words)
        except InterstackError as error:
            resolved[run.group] = {}
            mistakes[f"{run.group}: {error}"] = None
    _refuse(mistakes)
    mistakes |= dict.fromkeys(_equal_groups(resolved))
    caches = _caches(study, runs, resolved, output)
    found: list[tuple[PlannedRun, Job]] = []
    for run in runs:
        settings = resolved[run.group] | {"seed_everything": run.seed}
        job = _job(run, settings, output, None if study.cache is None else caches, study.cache)
        found.append((run, job))
        try:
            check_same_settings(job)
        except ConfigurationError as error:
            mistakes[str(error)] = None
    _refuse(mistakes)
    return SweepPlan(study, found, caches)


def _refuse(mistakes: Mapping[str, None]) -> None:
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


def _resolve(words: Sequence[str]) -> dict[str, Any]:
    """Return all settings of a run by dotted names.

    Raises:
        ConfigurationError: As `fit` would.
    """
    from interstack.commands.dry_run import describe_run

    logging.disable(logging.WARNING)  # each run logs this again when it starts
    try:
        config = describe_run("sweep", words, trains=True).config
    finally:
        logging.disable(logging.NOTSET)
    if config.checkpoint.dirpath is not None:
        raise ConfigurationError(
            f"checkpoint.dirpath is {config.checkpoint.dirpath}, which all runs would share: "
            "leave it out, each has its own directory"
        )
    for name in (word.removeprefix("--").partition("=")[0] for word in words):
        if name.removesuffix("+") not in config:  # the parser completes what is unique
            raise ConfigurationError(f"{name} is no setting: give its full dotted name")
    flat = {name: value for name, value in config.items() if name != "config"}
    settings: dict[str, Any] = json.loads(json.dumps(flat, default=_primitive))
    return settings


def _primitive(value: Any) -> Any:  # noqa: ANN401, of any setting
    return value.as_dict() if hasattr(value, "as_dict") else str(value)


def _equal_groups(resolved: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Yield a line for each group that repeats another one."""
    seen: dict[str, str] = {}
    for group, settings in resolved.items():
        text = json.dumps(settings, sort_keys=True)
        if text in seen:
            yield f"{seen[text]} and {group} have the same settings: leave one of them out"
        seen.setdefault(text, group)


def _caches(
    study: Study,
    runs: Sequence[PlannedRun],
    resolved: Mapping[str, Mapping[str, Any]],
    output: Path,
) -> dict[str, Job]:
    """Return jobs that fill the caches; runs that share the front end need its features too.

    Raises:
        ConfigurationError: If no arm can use one.
    """
    if study.cache is None:
        return {}
    shared = "model.student.front_end"
    in_order = sorted(runs, key=lambda run: resolved[run.group][shared] != SHARED_FRONT_END)
    caches: dict[str, Job] = {}
    reasons: dict[str, str] = {}
    for run in in_order:
        settings = resolved[run.group]
        reason = why_not_cached(settings)
        if reason is not None:
            reasons[run.group] = reason
            continue
        name = cache_name(settings, study.cache)
        if name not in caches:
            caches[name] = cache_job(output, name, run.words, study.cache)
    if not caches:
        group, reason = next(iter(reasons.items()))
        raise ConfigurationError(
            f"cache is {study.cache}, but no arm can use one: of {group} {reason}, or leave "
            "cache out"
        )
    for group, reason in reasons.items():
        log.warning("%s is trained without the sweep's cache: %s", group, reason)
    return caches


def _job(
    run: PlannedRun,
    settings: dict[str, Any],
    output: Path,
    caches: Mapping[str, Job] | None,
    dtype: CacheDtype | None,
) -> Job:
    """Return the job of a run."""
    directory = output / "runs" / run.name
    words, needs = ["fit", *run.words], ""
    if caches is not None and dtype is not None and why_not_cached(settings) is None:
        needs = cache_name(settings, dtype)
        words.append(f"--data.target_cache={caches[needs].directory}")
        settings = settings | {"data.target_cache": f"the sweep's, in {dtype}"}
    words += [f"--trainer.default_root_dir={directory}", "--ckpt_path=last"]
    environment = {"WANDB_RUN_GROUP": run.group, "WANDB_NAME": f"{run.group} seed {run.seed}"}
    return Job(run.name, tuple(words), directory, settings, environment, needs)
