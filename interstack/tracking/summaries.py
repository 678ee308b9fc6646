"""What is told of a stage's end and of a growth, as primitives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from interstack.growth.plan import GrowthPlan
from interstack.tracking.lineage import layer_rows
from interstack.tracking.record import StageRecord
from interstack.tracking.spike import SpikeMeter

STAGE_COLUMNS: Final = (
    "stage",
    "depth",
    "num_parameters",
    "steps",
    "audio_seconds",
    "training_seconds",
    "validation_before",
    "validation_after",
    "loss_before_growth",
    "loss_peak",
    "recovered_after_steps",
)
"""What a stage's summary holds, in the order of its table."""


def stage_summary(stage: StageRecord, spike: SpikeMeter) -> dict[str, Any]:
    """Return what a stage took and brought.

    Args:
        stage: The stage, at its end.
        spike: Of the growth that began it.
    """
    values = (
        stage.stage,
        stage.depth,
        stage.num_parameters,
        stage.steps,
        stage.audio_seconds,
        stage.training_seconds,
        stage.validation_loss_before,
        stage.validation_loss_after,
        spike.before,
        spike.peak,
        spike.recovered_after,
    )
    return dict(zip(STAGE_COLUMNS, values, strict=True))


def growth_summary(
    plan: GrowthPlan,
    operator: str | None,
    lineage: Sequence[int],
    tap_layers: Sequence[int],
    stages: Sequence[StageRecord],
) -> dict[str, Any]:
    """Return what a growth made, and the validation loss on both of its sides.

    Args:
        plan: The growth.
        operator: Its operator's name.
        lineage: Of the grown stack.
        tap_layers: Of the grown stack.
        stages: The run's, the one that begins now the last.
    """
    return {
        "from_depth": plan.old_depth,
        "to_depth": plan.depth,
        "operator": operator,
        "layers": layer_rows(lineage, plan, tap_layers),
        "validation_before": stages[-2].validation_loss_after if len(stages) > 1 else None,
        "validation_after": stages[-1].validation_loss_before if stages else None,
    }
