"""What is kept of a run of the study: its raw curve, its growth steps, and how it is judged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from interstack.errors import ConfigurationError
from interstack.utils.atomic import write_whole

RECORDS: Final = Path(__file__).with_name("records")
_DIGITS: Final = 5


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Attributes:
        name: Of the run, unique in the study.
        study: Name of its study file.
        group: Arm and values: what differs from the other runs of the group is the seed.
        arm: Its arm.
        seed: ``seed_everything``.
        words: Options of `fit` that made it.
        environment: Machine, versions and commit.
        points: By name a list over the logged steps: ``step``, ``depth``, ``loss``, and
            ``loss_tap_N``, means over the steps since the point before.
        validations: For each validation its step, depth and losses.
        growth: For each growth step: step, depths, validation loss before and after, training loss
            before, peak, and steps until it was below again.
        similarity: Linear CKA of the student's hidden states at the end of each stage, by depth.
        judged: Losses on the validation split against the live teacher, by name.
        phone_accuracy: Share of test frames that a linear probe on the student finds.
        training_seconds: Wall-clock of its training, on a machine that had other work beside.
    """

    name: str
    study: str
    group: str
    arm: str
    seed: int
    words: Sequence[str]
    environment: Mapping[str, str]
    points: Mapping[str, Sequence[float]]
    validations: Sequence[Mapping[str, float]]
    growth: Sequence[Mapping[str, Any]]
    similarity: Mapping[str, Sequence[Sequence[float]]]
    judged: Mapping[str, float]
    phone_accuracy: float
    training_seconds: float

    def write(self, directory: Path = RECORDS) -> Path:
        """Write the record as JSON, a line a field, and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        fields = [f" {json.dumps(key)}: {_dense(value)}" for key, value in asdict(self).items()]
        write_whole(path, ("{\n" + ",\n".join(fields) + "\n}\n").encode())
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            ConfigurationError: If the file is no record.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} is no record ({error}): remove it") from error


def read_all(directory: Path = RECORDS) -> list[RunRecord]:
    """Return all records, by name.

    Raises:
        ConfigurationError: If a file is no record.
    """
    return [RunRecord.read(path) for path in sorted(directory.glob("*.json"))]


def curves_of(events: Path) -> dict[str, Any]:
    """Return `RunRecord`'s points, validations, growth and similarity from a run's events.

    Args:
        events: Its ``events.jsonl``.
    """
    points: dict[str, list[float]] = {"step": [], "depth": []}
    validations: list[dict[str, float]] = []
    growth: list[dict[str, Any]] = []
    similarity: dict[str, Any] = {}
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        match event["kind"]:
            case "point" if "train/loss" in event:
                points["step"].append(event["step"])
                points["depth"].append(int(event["train/depth"]))
                for name, value in event.items():
                    if name.startswith("train/loss"):
                        points.setdefault(name.removeprefix("train/"), []).append(_short(value))
            case "validation":
                losses = {
                    name.removeprefix("val/"): _short(value)
                    for name, value in event["losses"].items()
                }
                validations.append({"step": event["step"], "depth": event["depth"]} | losses)
            case "growth":
                growth.append(
                    {
                        "step": event["step"],
                        "from_depth": event["from_depth"],
                        "to_depth": event["to_depth"],
                        # None where a run has no validation
                        **{
                            name: event[name] and _short(event[name])
                            for name in ("validation_before", "validation_after")
                        },
                    }
                )
            case "recovery":
                growth[-1] |= {
                    "training_before": _short(event["before"]),
                    "training_peak": _short(event["peak"]),
                    "recovered_after_steps": event["after_steps"],
                }
            case "similarity":
                similarity[str(event["depth"])] = event["student"]
    return {
        "points": points,
        "validations": validations,
        "growth": growth,
        "similarity": similarity,
    }


def _short(value: float) -> float:
    return round(value, _DIGITS)


def _dense(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
