"""Which checkpoint a command takes up, and whether it fits what the command is told."""

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
"""Where the same teacher is found; that it is the same one is the user's to know."""
_FRONT_END_SOURCE = "student.front_end_source"
"""May move too, from one place to another."""
_MAY_CHANGE = (*_MAY_MOVE, "non_finite", "compile_layers")
_JUDGES = ("student.", "teacher.taps", "initial_depth")
"""What a student is, whatever it is judged by."""


def checkpoint_of(config: Namespace, command: str) -> SavedRun | None:
    """Return the checkpoint that a command is to take up; None for a run that begins anew.

    Args:
        config: The command's parsed configuration; ``ckpt_path`` becomes a file's path.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        CheckpointError: If it is missing or damaged, or none of those that are there can be read.
        ConfigurationError: If none is named where one is needed, or it does not fit the settings.
    """
    wanted = config.ckpt_path
    if wanted is None:
        if command == "fit":
            return None
        raise ConfigurationError(
            f"{command} judges a checkpoint: give --ckpt_path a file, or last for the newest one "
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
        log.info("no checkpoint in %s yet: the run begins anew", directory)
        return None
    raise CheckpointError(f"there is no checkpoint in {directory}")


def check_same_schedule(config: Namespace, run: SavedRun) -> None:
    """Refuse a schedule other than the one that the run began with, before anything is touched.

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
        resumes: A run that goes on has to go on as it began; else only the student has to be the
            same.

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
        mend = (
            "give the settings that it began with, or begin a new run in another directory"
            if resumes
            else "leave the configuration away, the checkpoint knows its own"
        )
        raise ConfigurationError(
            f"the run of {run.path} has other settings: {'; '.join(differences)}: {mend}"
        )


def _effective(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name, with what stands for those that an earlier version lacks."""
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
    """Return the options that had no effect on the run, whose values an older version let be."""
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
    """Let a checkpoint's path stand for the configuration of its run, where none is given.

    Args:
        words: The command line, the subcommand first.
        directory: A directory for a file that lives as long as the command.

    Returns:
        The command line, with the checkpoint's own configuration put before everything else.
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
    for place, word in enumerate(words):
        if word.startswith(f"{name}="):
            value = word.partition("=")[2]
        elif word == name and place + 1 < len(words):
            value = words[place + 1]
    return value
