"""A plan for people, as tables, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from interstack.data.global_batch import BatchSplit
from interstack.planning.costs import DepthCosts
from interstack.planning.measure import Measurement
from interstack.planning.predict import Prediction, StepSplit, Worth
from interstack.utils.units import format_duration


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a run before it begins.

    Attributes:
        costs: Of the student at each stage's depth.
        teacher_gigamacs: The teacher's front end and the rest of it, 10⁹ a second of audio; None
            where its targets are cached.
        measurement: What was measured.
        prediction: What follows from it.
        world_size: Ranks of the run; one of them was measured.
        splits: How the audio of an optimizer step is divided over ranks and micro-batches, by the
            epoch from which on it is divided so.
        remarks: What a reader has to know.
        surroundings: Machine and versions.
    """

    costs: tuple[DepthCosts, ...]
    teacher_gigamacs: tuple[float, float] | None
    measurement: Measurement
    prediction: Prediction
    world_size: int
    splits: Mapping[int, BatchSplit]
    remarks: tuple[str, ...]
    surroundings: Mapping[str, str]

    def to_primitives(self) -> dict[str, Any]:
        """Return everything as JSON has it; times in seconds."""
        measured = asdict(self.measurement)
        measured["splits"] = {
            depth: split._asdict() | {"step": split.step}
            for depth, split in self.measurement.splits.items()
        }
        return {
            "surroundings": dict(self.surroundings),
            "world_size": self.world_size,
            "global_batch": _primitives(self.splits[0]),
            "later_global_batches": {
                epoch: _primitives(split) for epoch, split in self.splits.items() if epoch
            },
            "remarks": list(self.remarks),
            "costs": [asdict(each) for each in self.costs],
            "teacher_gigamacs_per_second": self.teacher_gigamacs,
            "measured": measured,
            "predicted": self.prediction.to_primitives(),
        }


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan as tables."""
    console.print(_stage_table(plan))
    console.print(_split_table(plan.measurement.splits))
    console.print(_worth_table(plan.prediction))
    prediction = plan.prediction
    console.print(
        f"predicted: {format_duration(prediction.wall_clock)} in all, "
        f"{format_duration(prediction.training_seconds)} training and "
        f"{format_duration(prediction.validation_seconds)} validation; growth could be worth "
        f"{prediction.ceiling:.2f}× if only encoder layers took time"
    )
    for epoch, split in plan.splits.items():
        begin = f"from epoch {epoch} on " if epoch else ""  # epochs count from 0
        console.print(f"{begin}an optimizer step holds up to {split}")
    for remark in plan.remarks:
        console.print(remark)


def print_comparison(
    prediction: Prediction, stages: Sequence[Mapping[str, Any]], console: Console
) -> None:
    """Print predicted and real training times side by side.

    Args:
        prediction: The prediction.
        stages: Of the run's ``stages.json``.
        console: Where to.
    """
    table = Table("stage", "depth", "steps", "predicted", "real", "error", box=None)
    rows = [
        (number, stage.depth, real["steps"], stage.seconds, float(real["training_seconds"]))
        for number, (stage, real) in enumerate(zip(prediction.stages, stages, strict=True), start=1)
    ]
    for number, depth, steps, predicted, real in rows:
        table.add_row(
            *map(str, (number, depth, steps)),
            format_duration(predicted),
            format_duration(real),
            _error(predicted, real),
        )
    predicted, real = sum(row[3] for row in rows), sum(row[4] for row in rows)
    table.add_row(
        "all", "", "", format_duration(predicted), format_duration(real), _error(predicted, real)
    )
    console.print(table)


def _primitives(split: BatchSplit) -> dict[str, float]:
    return asdict(split) | {"seconds": split.seconds}


def _error(predicted: float, real: float) -> str:
    return f"{predicted / real - 1:+.0%}" if real > 0 else "–"


def _stage_table(plan: Plan) -> Table:
    table = Table(
        "stage", "depth", "parameters", "trained", "GMACs/s", "optimizer", "weights + gradients",
        "share", "steps", "predicted", box=None, title="stages",
    )  # fmt: skip
    for number, (stage, costs) in enumerate(
        zip(plan.prediction.stages, plan.costs, strict=True), start=1
    ):
        table.add_row(
            str(number),
            str(stage.depth),
            f"{costs.num_parameters / 1e6:.2f} M",
            f"{costs.num_trained / 1e6:.2f} M",
            f"{costs.gigamacs_per_second:.2f}",
            f"{costs.optimizer_mebibytes:.0f} MiB",
            f"{costs.weights_mebibytes:.0f} MiB",
            f"{stage.share:.0%}",
            str(stage.steps),
            format_duration(stage.seconds),
        )
    if plan.teacher_gigamacs is not None:
        front_end, rest = plan.teacher_gigamacs
        macs = f"{front_end + rest:.2f}"
        table.add_row("", "", "teacher", "", macs, *[""] * 5)
    return table


def _split_table(splits: Mapping[int, StepSplit]) -> Table:
    names = [name.replace("_", " ") for name in StepSplit._fields]
    table = Table("depth", *names, "step", box=None, title="milliseconds of a step, and its share")
    for depth, split in splits.items():
        cells = [f"{1e3 * part:.0f} ({part / split.step:.0%})" for part in split]
        table.add_row(str(depth), *cells, f"{1e3 * split.step:.0f}")
    return table


def _worth_table(prediction: Prediction) -> Table:
    table = Table(
        "", "growing", "full depth", "growth is worth", "against now",
        box=None, title="what would be faster (training)",
    )  # fmt: skip
    worths: dict[str, Worth] = {"as configured": prediction.worth, **prediction.levers}
    for name, worth in worths.items():
        table.add_row(
            name,
            format_duration(worth.seconds),
            format_duration(worth.full_depth_seconds),
            f"{worth.growth:.2f}×",
            f"{prediction.worth.seconds / worth.seconds:.2f}×",
        )
    return table
