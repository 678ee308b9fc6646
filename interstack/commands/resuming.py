"""The checkpoint of a command, and whether it fits the command's settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning as L
from jsonargparse import Namespace

from interstack.checkpointing.inspect import SavedRun, newest_run, read_checkpoint
from interstack.commands.run_directory import checkpoint_directory
from interstack.distillation.objective import ObjectiveConfig
from interstack.distillation.optimizer import OptimizerConfig
from interstack.errors import CheckpointError, ConfigurationError
from interstack.growth.callback import InterleavedStacking
from interstack.growth.schedule import ScheduleRecord, check_unchanged, run_length
from interstack.models.config import StudentConfig
from interstack.settings import idle_options
from interstack.utils.disk import write_errors

log = logging.getLogger(__name__)

_MAY_MOVE = ("teacher.source", "teacher.revision", "teacher.cache_dir", "teacher.local_files_only")
"""Where the same teacher is found; the user knows that it is the same."""
_FRONT_END_SOURCE = "student.front_end_source"
"""May change too, but not to or from null."""
_MAY_CHANGE = (*_MAY_MOVE, "non_finite", "compile_layers")
_JUDGES = ("student.", "teacher.taps", "initial_depth")
"""Settings that a checkpoint's student must share with validation, test and prediction."""


def checkpoint_of(config: Namespace, command: str) -> SavedRun | None:
    """Return the checkpoint of a command; None for a run that starts from its first step.

    Args:
        config: The command's parsed configuration; ``ckpt_path`` becomes a file's path.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        CheckpointError: If it is missing or damaged, or none of those that are there can be read.
        ConfigurationError: If none is given where one is needed, or it does not fit the settings.
    """
    wanted = config.ckpt_path
    if wanted is None:
        if command == "fit":
            return None
        raise ConfigurationError(
            f"{command} needs a checkpoint: give --ckpt_path a file, or last for the newest one "
            "in the run's directory"
        )
    if str(wanted) == "last":
        run = _newest(config, command)
    elif str(wanted) in ("best", "hpc", "registry"):
        raise ConfigurationError(f"--ckpt_path {wanted} is unknown here: give a file, or last")
    else:
        run = read_checkpoint(Path(wanted))
    config.ckpt_path = None if run is None else str(run.path)
    if run is not None:
        if command == "fit":
            check_same_schedule(config, run)
        check_same_model(config.model.as_dict(), run, resumes=command == "fit")
    return run


def _newest(config: Namespace, command: str) -> SavedRun | None:
    directory = checkpoint_directory(config)
    run = newest_run(directory)
    if run is not None:
        return run
    if command == "fit":  # so that a job's script is the same for its first run and the others
        log.info("no checkpoint in %s yet: the run starts from its first step", directory)
        return None
    raise CheckpointError(f"there is no checkpoint in {directory}")


def check_same_schedule(config: Namespace, run: SavedRun) -> None:
    """Refuse a schedule other than that of the run's first step, before anything is changed.

    Raises:
        ConfigurationError: With both schedules.
    """
    if run.schedule is None:
        return
    stacking = InterleavedStacking(**config.growth.as_dict())
    length = run_length(cast("L.Trainer", config.trainer))  # the settings have the same names
    check_unchanged(ScheduleRecord.from_primitives(run.schedule), stacking.record(length))


def check_same_model(settings: Mapping[str, Any], run: SavedRun, *, resumes: bool) -> None:
    """Refuse settings of the model that contradict a checkpoint's.

    Args:
        settings: The model's settings now.
        run: The checkpoint.
        resumes: Whether training is resumed, for which all settings have to be the same; else only
            the student's.

    Raises:
        ConfigurationError: With every difference.
    """
    now, idle = _effective(settings), _idle(run.model)
    began = _effective(run.model)
    differences = [
        f"model.{name} was {then!r} and is {now[name]!r}"
        for name, then in began.items()
        if name in now and now[name] != then and name not in idle and _matters(name, resumes)
        if name != _FRONT_END_SOURCE or None in (then, now[name])
    ]
    if differences:
        fix = (
            "give the settings that it started with, or start a new run in another directory"
            if resumes
            else "leave the configuration out, the checkpoint has its own"
        )
        raise ConfigurationError(
            f"the run of {run.path} has other settings: {'; '.join(differences)}: {fix}"
        )


def _effective(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name, with defaults for those that an earlier version lacks."""
    optimizer = {f"optimizer.{name}": value for name, value in asdict(OptimizerConfig()).items()}
    lacking = {_FRONT_END_SOURCE: None, "teacher.pad_to_30s": False}
    lacking |= {"teacher.family": None, "objective.init_args": None}
    flat = optimizer | lacking | dict(_flat(model))
    for name in ("student.activation_dropout", "student.attention_dropout"):
        if flat.get(name) is None and "student.dropout" in flat:
            flat[name] = flat["student.dropout"]
    return flat


def _matters(name: str, resumes: bool) -> bool:
    return name not in _MAY_CHANGE if resumes else name.startswith(_JUDGES)


def _idle(model: Mapping[str, Any]) -> set[str]:
    """Return the options that had no effect on the run, which an older version did not refuse."""
    owners = {"student": StudentConfig.OWNERS, "objective": ObjectiveConfig.OWNERS}
    return {
        f"{section}.{name}"
        for section, belongs in owners.items()
        for name in idle_options(model[section], belongs)
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and name != "init_args":  # a user's own, as a whole
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def with_saved_config(words: Sequence[str], directory: Path) -> list[str]:
    """Return a command line with the configuration of its checkpoint, if it has none.

    Args:
        words: The command line, the subcommand first.
        directory: For a file that is needed as long as the command runs.

    Returns:
        The command line, with the checkpoint's own configuration before all options.
    """
    path = _option(words, "--ckpt_path")
    given = any(word.split("=")[0] in ("-c", "--config") for word in words)
    asks = {"--help", "-h", "--print_config"} & {word.split("=")[0] for word in words}
    if path is None or path == "last" or given or asks:
        return list(words)
    run = read_checkpoint(Path(path))
    if run.config is None:
        return list(words)
    file = directory / "config.yaml"
    with write_errors(file, "free space there, or set TMPDIR to another directory"):
        file.write_text(run.config)
    return [words[0], f"--config={file}", *words[1:]]


def _option(words: Sequence[str], name: str) -> str | None:
    """Return an option's value, written with or without an equals sign."""
    value = None
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            value = word.partition("=")[2]
        elif word == name and index + 1 < len(words):
            value = words[index + 1]
    return value
