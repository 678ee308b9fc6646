"""How long a run takes on a quiet machine: its steps × the step of each depth, measured alone.

Runs side by side disturb each other, so a study's own clocks say little about its recipes.
`benchmarks.study.step_times` measures the steps.

Example:
    >>> book = StepTimeBook.read(RECORDS)
    >>> key = step_key(yaml.safe_load((run / "config.yaml").read_text()), threads=1)
    >>> modelled = book.model(key, [(3, 400), (6, 400), (9, 400), (12, 400)])
    >>> modelled.seconds, modelled.flops, modelled.seconds_at(1000)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from benchmarks.records import read_records
from interstack.errors import ConfigurationError
from interstack.models.config import StudentConfig

KIND: Final = "step-times"
_STUDENT: Final = [f"model.student.{each.name}" for each in fields(StudentConfig)]
_DROPOUT: Final = "model.student.dropout"
_FOLLOW_DROPOUT: Final = ("model.student.activation_dropout", "model.student.attention_dropout")
_MODELS: Final = ("model.teacher.source", "model.student.front_end_source")
_OTHERS: Final = (
    "model.teacher.source",
    "model.teacher.taps",
    "model.teacher.dtype",
    "model.teacher.pad_to_30s",
    "model.optimizer.kind",
    "model.compile_layers",
    "data.batch_seconds",
    "data.max_seconds",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
)

StepKey = dict[str, Any]
"""What a step's time depends on but for depth and machine, by dotted names."""


def step_key(config: Mapping[str, Any], threads: int, *, is_cached: bool | None = None) -> StepKey:
    """Return what a step's time depends on.

    Args:
        config: A run's resolved settings, nested or by dotted names.
        threads: Of the process.
        is_cached: Whether targets are read from a cache; None: as ``data.target_cache`` says.
    """
    flat = dict(flat_settings(config))
    key: StepKey = {name: _plain(flat.get(name)) for name in (*_STUDENT, *_OTHERS)}
    for name in _FOLLOW_DROPOUT:
        key[name] = key[_DROPOUT] if key[name] is None else key[name]
    for name in _MODELS:  # where they lie is this machine's affair
        key[name] = None if key[name] is None else _model_name(key[name])
    if is_cached is None:
        is_cached = flat.get("data.target_cache") is not None
    return key | {"targets": "cache" if is_cached else "live", "threads": threads}


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings by dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


def _model_name(source: str) -> str:
    return Path(source).name if Path(source).expanduser().is_dir() else source


@dataclass(frozen=True)
class StepCost:
    """What a step costs at some depth.

    Attributes:
        seconds: Of the step, its batch at hand.
        data_seconds: Of making the batch, where no other processor does it meanwhile.
        flops: Floating-point operations.
    """

    seconds: float
    data_seconds: float
    flops: float


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps of a configuration at the depths of its stages.

    Attributes:
        key: Its `step_key`.
        audio_seconds: Audio of a step, padding included.
        seconds: Of every step that was timed, by depth.
        data_seconds: Of every batch.
        flops: Of a step, by depth.
        growth_seconds: What each growth step took, by the depths before and after it.
    """

    key: StepKey
    audio_seconds: float
    seconds: Mapping[int, Sequence[float]]
    data_seconds: Sequence[float]
    flops: Mapping[int, float]
    growth_seconds: Mapping[tuple[int, int], Sequence[float]]

    def cost(self, depth: int) -> StepCost:
        """Return the medians at a depth."""
        return StepCost(median(self.seconds[depth]), median(self.data_seconds), self.flops[depth])

    def to_primitives(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        growth = [[*depths, seconds] for depths, seconds in self.growth_seconds.items()]
        return asdict(self) | {"growth_seconds": growth}

    @classmethod
    def from_primitives(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_primitives`."""
        growth = {(before, after): seconds for before, after, seconds in values["growth_seconds"]}
        by_depth = {
            name: {int(depth): value for depth, value in values[name].items()}
            for name in ("seconds", "flops")
        }
        return cls(**dict(values) | by_depth | {"growth_seconds": growth})


@dataclass(frozen=True)
class ModelledStage:
    """A stage of a run.

    Attributes:
        depth: Encoder layers.
        steps: Optimizer steps.
        cost: Of each.
        growth_seconds: Of the growth step that it begins with; 0 in the first stage.
    """

    depth: int
    steps: int
    cost: StepCost
    growth_seconds: float = 0.0


@dataclass(frozen=True)
class ModelledRun:
    """What a run takes.

    Attributes:
        stages: Its stages.
    """

    stages: tuple[ModelledStage, ...]

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return sum(stage.steps for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of training in all, growth steps included."""
        return self.seconds_at(self.num_steps)

    @property
    def data_seconds(self) -> float:
        """Of making all batches, where no other processor does it meanwhile."""
        return sum(stage.steps * stage.cost.data_seconds for stage in self.stages)

    @property
    def flops(self) -> float:
        """Floating-point operations in all."""
        return self.flops_at(self.num_steps)

    def seconds_at(self, step: float) -> float:
        """Return the seconds until so many steps are done.

        Args:
            step: Optimizer steps; the growth step before the next one is not done yet.
        """
        return sum(
            done * stage.cost.seconds + stage.growth_seconds for stage, done in self._done(step)
        )

    def flops_at(self, step: float) -> float:
        """Return the floating-point operations until so many steps are done."""
        return sum(done * stage.cost.flops for stage, done in self._done(step))

    def _done(self, step: float) -> Iterator[tuple[ModelledStage, float]]:
        """Yield the stages that have begun, and the steps done in each."""
        for stage in self.stages:
            if step <= 0:
                return
            yield stage, min(step, stage.steps)
            step -= stage.steps


class StepTimeBook:
    """Looks up measured steps.

    Args:
        measured: Later ones overrule earlier ones.
    """

    def __init__(self, measured: Iterable[MeasuredSteps]) -> None:
        self._measured = list(measured)[::-1]

    @classmethod
    def read(cls, directory: Path, device: str | None = None) -> Self:
        """Read all records of a directory.

        Args:
            directory: Where they are.
            device: Only those of this machine, as ``surroundings`` names it; None: all.

        Raises:
            ConfigurationError: If a file is no JSON.
        """
        return cls(
            MeasuredSteps.from_primitives(values)
            for record in read_records(directory, KIND)
            if device in (None, record["surroundings"]["device"])
            for values in record["measured"]
        )

    def cost(self, key: StepKey, depth: int) -> StepCost:
        """Return what a step costs.

        Raises:
            ConfigurationError: If it was never measured; with what differs from what was.
        """
        for each in self._measured:
            if each.key == key and depth in each.seconds:
                return each.cost(depth)
        raise ConfigurationError(self._lacks(f"a step at depth {depth}", key))

    def growth_seconds(self, key: StepKey, before: int, after: int) -> float:
        """Return what a growth step takes.

        Raises:
            ConfigurationError: As `cost`.
        """
        for each in self._measured:
            if each.key == key and (before, after) in each.growth_seconds:
                return median(each.growth_seconds[before, after])
        raise ConfigurationError(self._lacks(f"growth from depth {before} to {after}", key))

    def model(self, key: StepKey, stages: Sequence[tuple[int, int]]) -> ModelledRun:
        """Return what a run takes.

        Args:
            key: Its `step_key`.
            stages: Depth and optimizer steps of each.

        Raises:
            ConfigurationError: If a step or growth step of it was never measured.
        """
        modelled: list[ModelledStage] = []
        for depth, steps in stages:
            growth = self.growth_seconds(key, modelled[-1].depth, depth) if modelled else 0.0
            modelled.append(ModelledStage(depth, steps, self.cost(key, depth), growth))
        return ModelledRun(tuple(modelled))

    def _lacks(self, what: str, key: StepKey) -> str:
        """Return a message that names the nearest measurement's differences."""
        differences = [
            [
                f"{name} {each.key.get(name)} for {value}"
                for name, value in key.items()
                if each.key.get(name) != value
            ]
            for each in self._measured
        ]
        nearest = min(differences, key=len, default=["nothing at all"])
        others = ", ".join(nearest) or "these settings at other depths"
        return (
            f"no record has {what} of this configuration, the nearest has {others}: measure it by "
            "python -m benchmarks.study.step_times"
        )
