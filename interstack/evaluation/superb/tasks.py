"""SUPERB's ten tasks: s3prl's expert of each, its metrics, and its protocol."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import yaml

from interstack.errors import ConfigurationError

Config = dict[str, Any]
"""A task's settings in the layout of s3prl's YAML files."""
_OPTIONAL: Final = ("scheduler", "specaug")
"""Sections that a protocol may have."""


@dataclass(frozen=True)
class Metric:
    """A metric of a task.

    Attributes:
        key: Name in records and in ``published.yaml``.
        label: Name in tables.
        scalar: Name in the log of s3prl's expert, after the split.
        scale: Factor from the expert's number to a percentage.
        higher_better: Whether a higher value is better.
    """

    key: str
    label: str
    scalar: str
    scale: float
    higher_better: bool


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: Short name, as in SUPERB's tables.
        title: Full name.
        expert: Name of s3prl's module, in ``s3prl.downstream``.
        metrics: Metrics on the test split; none where s3prl has no scorer.
        select: Metric that the best step is selected by.
        dev: Split that the best step is selected on.
        test: Split that is reported.
        variants: Parts that are jobs of their own and averaged.
        note: Remark for tables.
    """

    name: str
    title: str
    expert: str
    metrics: tuple[Metric, ...]
    select: Metric | None
    dev: str = "dev"
    test: str = "test"
    variants: tuple[str, ...] = ("",)
    note: str = ""


def _accuracy(task: str) -> Metric:
    return Metric(f"{task}_acc", f"{task.upper()} acc", "acc", 100.0, True)


_PER: Final = Metric("pr_per", "PR PER", "per", 100.0, False)
_WER: Final = Metric("asr_wer", "ASR WER", "wer", 1.0, False)
_F1: Final = Metric("sf_f1", "SF F1", "slot_type_f1", 100.0, True)
_CER: Final = Metric("sf_cer", "SF CER", "slot_value_cer", 100.0, False)
_EER: Final = Metric("asv_eer", "ASV EER", "EER", 100.0, False)
_DER: Final = Metric("sd_der", "SD DER", "der", 100.0, False)
_FRAME: Final = Metric("sd_acc", "SD frame acc", "acc", 100.0, True)


def _classification(name: str, title: str, expert: str, variants: Sequence[str] = ("",)) -> Task:
    metric = _accuracy(name)
    return Task(name, title, expert, (metric,), metric, variants=tuple(variants))


TASKS: Final[Mapping[str, Task]] = {
    task.name: task
    for task in (
        Task("pr", "phoneme recognition", "ctc", (_PER,), _PER),
        Task(
            "asr",
            "speech recognition",
            "asr",
            (_WER,),
            _WER,
            dev="dev-clean",
            test="test-clean",
            note="without a language model",
        ),
        _classification("ks", "keyword spotting", "speech_commands"),
        _classification("ic", "intent classification", "fluent_commands"),
        _classification("sid", "speaker identification", "voxceleb1"),
        _classification(
            "er", "emotion recognition", "emotion", [f"fold{fold}" for fold in range(1, 6)]
        ),
        Task("sf", "slot filling", "ctc", (_F1, _CER), _F1),
        Task(
            "asv",
            "speaker verification",
            "sv_voxceleb1",
            (_EER,),
            _EER,
            dev="test",
            note="the best of the checkpoints on the test trials, as SUPERB has it",
        ),
        Task(
            "sd",
            "speaker diarization",
            "diarization",
            (_DER,),
            _FRAME,
            note="over frames, by s3prl; published figures are dscore's",
        ),
        Task(
            "qbe",
            "query by example",
            "quesst14_dtw",
            (),
            None,
            variants=("dev", "eval"),
            note="the detections for QUESST's own scorer; s3prl has none",
        ),
    )
}


def tasks_named(names: Sequence[str]) -> list[Task]:
    """Return tasks by their names, each once.

    Raises:
        ConfigurationError: If there is no such task.
    """
    unknown = [name for name in names if name.lower() not in TASKS]
    if unknown:
        raise ConfigurationError(
            f"there is no SUPERB task {', '.join(unknown)}: --tasks are {' '.join(TASKS)}"
        )
    return [TASKS[name] for name in dict.fromkeys(name.lower() for name in names)]


def presets() -> list[str]:
    """Return the names of the presets: ``superb``, the protocol as it is, and others' changes."""
    folder = files(__package__) / "presets"
    return ["superb", *sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())]


def protocol(task: Task, preset: str, changes: Mapping[str, Any]) -> Config:
    """Return a task's settings, with ``{data}`` and ``{job}`` for directories.

    Args:
        task: The task.
        preset: Preset that overrides SUPERB's protocol.
        changes: Dotted keys and values that override the preset; a key that starts with a task's
            name is of that task only.

    Raises:
        ConfigurationError: If there is no such preset, or a change names no setting.
    """
    if preset not in presets():
        raise ConfigurationError(f"--preset {preset} is unknown: {', '.join(presets())}")
    config: Config = _read(f"protocols/{task.name}.yaml")
    if preset != "superb":
        _lay_over(config, _read(f"presets/{preset}.yaml").get(task.name, {}))
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        if first in TASKS and first != task.name:
            continue
        _set(config, rest if first in TASKS else key, value)
    return config


def fill_placeholders(config: Config, **directories: str) -> Config:
    """Return settings with directories for the placeholders ``{data}`` and ``{job}``."""

    def fill(value: Any) -> Any:  # noqa: ANN401, whatever YAML holds
        if isinstance(value, str):
            for name, directory in directories.items():
                value = value.replace(f"{{{name}}}", directory)
            return value
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        return [fill(each) for each in value] if isinstance(value, list) else value

    return {key: fill(value) for key, value in config.items()}


def limit_workers(config: Config, most: int) -> None:
    """Limit every ``num_workers`` of settings, in place."""
    for key, value in config.items():
        if key == "num_workers":
            config[key] = min(value, most)
        elif isinstance(value, dict):
            limit_workers(value, most)


def _read(name: str) -> Config:
    text = (files(__package__) / name).read_text(encoding="utf-8")
    found: Config = yaml.safe_load(text)
    return found


def _lay_over(config: Config, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict):
            _lay_over(config[key], value)
        else:
            config[key] = copy.deepcopy(value)


def _set(config: Config, key: str, value: Any) -> None:  # noqa: ANN401, whatever YAML holds
    """Set what a dotted key, or a unique end of it, names in nested settings."""
    *path, last = key.split(".")
    matches = [
        branch
        for branch, found in _branches(config)
        if last in branch and found[len(found) - len(path) :] == path
    ]
    if not matches and key in _OPTIONAL:
        matches = [config]
    if len(matches) != 1:
        what = "several such settings" if matches else "no such setting"
        raise ConfigurationError(
            f"--set {key}: the protocol has {what}: give as much of its path as is needed, from "
            f"{', '.join(config)} on"
        )
    matches[0][last] = value


def _branches(config: Config, path: Sequence[str] = ()) -> list[tuple[Config, list[str]]]:
    """Return every dictionary of nested settings and the path to it."""
    branches = [(config, list(path))]
    for key, value in config.items():
        if isinstance(value, dict):
            branches += _branches(value, [*path, key])
    return branches
