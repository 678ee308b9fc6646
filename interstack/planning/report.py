"""A plan as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from interstack.data.global_batch import BatchSplit
from interstack.models.flops import ForwardMacs
from interstack.planning.costs import DepthCosts
from interstack.planning.measure import Measurement
from interstack.planning.predict import Prediction, StepSplit
from interstack.utils.console import make_table
from interstack.utils.units import format_duration


@dataclass(frozen=True)
class Plan:
    """The cost of a run, before it starts.

    Attributes:
        costs: Of the student at each stage's depth.
        teacher_macs: Of the teacher; None where its targets are cached.
        measurement: Times of its steps.
        prediction: Times of the run.
        world_size: Ranks of the run; one of them was measured.
        splits: Division of an optimizer step's audio over ranks and micro-batches, by the epoch
            from which it holds.
        remarks: Lines below the tables.
        surroundings: Machine and versions.
    """

    costs: tuple[DepthCosts, ...]
    teacher_macs: ForwardMacs | None
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
            "teacher_gigamacs_per_second": None
            if self.teacher_macs is None
            else [macs / 1e9 for macs in self.teacher_macs],
            "measured": measured,
            "predicted": self.prediction.to_primitives(),
        }


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan as tables."""
    console.print(_stage_table(plan))
    console.print(_split_table(plan.measurement.splits))
    console.print(_speedup_table(plan.prediction))
    prediction = plan.prediction
    total, training, validation = map(
        format_duration,
        (prediction.wall_clock, prediction.training_seconds, prediction.validation_seconds),
    )
    console.print(
        f"predicted: {total} in all, {training} training and {validation} validation; growing "
        f"would be at most {prediction.ceiling:.2f}× faster, if only encoder layers took time"
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
        console: The console.
    """
    rows: list[tuple[Any, Any, Any, float, float]] = [
        (number, stage.depth, real["steps"], stage.seconds, float(real["training_seconds"]))
        for number, (stage, real) in enumerate(zip(prediction.stages, stages, strict=True), start=1)
    ]
    rows.append(("all", "", "", sum(row[3] for row in rows), sum(row[4] for row in rows)))
    console.print(
        make_table(
            ("stage", "depth", "steps", "predicted", "real", "error"),
            (
                (
                    *map(str, row[:3]),
                    format_duration(predicted),
                    format_duration(real),
                    f"{predicted / real - 1:+.0%}" if real > 0 else "–",
                )
                for *row, predicted, real in rows
            ),
        )
    )


def _primitives(split: BatchSplit) -> dict[str, float]:
    return asdict(split) | {"seconds": split.seconds}


def _stage_table(plan: Plan) -> Table:
    table = make_table(
        ("stage", "depth", "parameters", "trained", "GMACs/s", "optimizer", "weights + gradients",
         "share", "steps", "predicted"),
        (
            (
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
            for number, (stage, costs) in enumerate(
                zip(plan.prediction.stages, plan.costs, strict=True), start=1
            )
        ),
        title="stages",
    )  # fmt: skip
    if plan.teacher_macs is not None:
        table.add_row("", "", "teacher", "", f"{plan.teacher_macs.gigamacs:.2f}")
    return table


def _split_table(splits: Mapping[int, StepSplit]) -> Table:
    names = [name.replace("_", " ") for name in StepSplit._fields]
    return make_table(
        ("depth", *names, "step"),
        (
            (
                str(depth),
                *(f"{1e3 * part:.0f} ({part / split.step:.0%})" for part in split),
                f"{1e3 * split.step:.0f}",
            )
            for depth, split in splits.items()
        ),
        title="milliseconds of a step, and its share",
    )


def _speedup_table(prediction: Prediction) -> Table:
    return make_table(
        ("", "growing", "full depth", "speedup of growing", "against now"),
        (
            (
                name,
                format_duration(each.seconds),
                format_duration(each.full_depth_seconds),
                f"{each.speedup:.2f}×",
                f"{prediction.configured.seconds / each.seconds:.2f}×",
            )
            for name, each in prediction.speedups.items()
        ),
        title="what would be faster (training)",
    )
