"""Records of runs: raw figures, and everything that they depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from benchmarks.growth_event import GrowthEvent
from benchmarks.memory import Memory
from interstack.errors import ConfigurationError
from interstack.utils.atomic import write_whole


class Spread(NamedTuple):
    """A figure over the repetitions."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class StepTimes:
    """What a step took.

    Attributes:
        setting: How it is computed, a `Setting` as a mapping.
        depth: Layers of the student.
        seconds: Of every repetition.
        flops: Floating-point operations of one; 0 where they can't be counted.
    """

    setting: Mapping[str, Any]
    depth: int
    seconds: list[float]
    flops: int


@dataclass(frozen=True)
class BenchRecord:
    """A run of the bench.

    Attributes:
        command: The command line.
        surroundings: Machine, versions, commit.
        audio_seconds: Audio of a step.
        peak_tflops: Of the chip in bfloat16, where it is known.
        steps: Every step that was timed.
        variants: For each variant its steps, as places in `steps`.
        growth: Growth events.
        memory: Peaks, cache on.
    """

    command: str
    surroundings: Mapping[str, str]
    audio_seconds: float
    peak_tflops: float | None
    steps: list[StepTimes]
    variants: Mapping[str, list[int]]
    growth: list[GrowthEvent]
    memory: list[Memory]

    def seconds(self, variant: str) -> list[float]:
        """Return a variant's mean step over its stages, in every repetition."""
        steps = [self.steps[place].seconds for place in self.variants[variant]]
        return [mean(row) for row in zip(*steps, strict=True)]

    def flops(self, variant: str) -> float:
        """Return the operations of a variant's mean step; 0 if they aren't known."""
        counts = [self.steps[place].flops for place in self.variants[variant]]
        return mean(counts) if all(counts) else 0.0

    def dropout(self, variant: str) -> float | None:
        """Return a variant's dropout; None in records of before it was recorded, when it was 0.1.

        Args:
            variant: Its name.
        """
        dropout: float | None = self.steps[self.variants[variant][0]].setting.get("dropout")
        return dropout

    def ratio(self, slow: str, fast: str) -> Spread:
        """Return how many times faster one variant is than another, repetition by repetition."""
        pairs = zip(self.seconds(slow), self.seconds(fast), strict=True)
        return Spread.of([one / other for one, other in pairs])

    def to_primitives(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        events = {"growth": self.growth, "memory": self.memory}
        return asdict(self) | {name: [each._asdict() for each in of] for name, of in events.items()}

    @classmethod
    def from_primitives(cls, values: Mapping[str, Any]) -> BenchRecord:
        """Undo `to_primitives`."""
        parts: dict[str, Any] = dict(values)
        parts["steps"] = [StepTimes(**each) for each in parts["steps"]]
        parts["growth"] = [GrowthEvent(**each) for each in parts["growth"]]
        parts["memory"] = [Memory(**each) for each in parts["memory"]]
        return cls(**parts)


def write_record(directory: Path, kind: str, record: Mapping[str, Any]) -> Path:
    """Write a record under a new name and return its path.

    Args:
        directory: It is made if need be.
        kind: ``bench`` or ``quality``, which the name begins with.
        record: Everything.
    """
    directory.mkdir(parents=True, exist_ok=True)
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    path = directory / f"{kind}-{moment}.json"
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


def read_records(directory: Path, kind: str) -> list[dict[str, Any]]:
    """Return all records of a kind, oldest first; raises as ``record_files``."""
    return [record for _, record in record_files(directory, kind)]


def record_files(directory: Path, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return all records of a kind with their files, oldest first.

    Raises:
        ConfigurationError: If a file is no JSON.
    """
    records = []
    for path in sorted(directory.glob(f"{kind}-*.json")):
        try:
            records.append((path, json.loads(path.read_text(encoding="utf-8"))))
        except ValueError as error:
            raise ConfigurationError(f"{path} is no record: {error}; remove it") from error
    return records
