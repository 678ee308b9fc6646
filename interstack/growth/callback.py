"""The Lightning callback that grows the student. Plumbing only: plan and schedule are elsewhere."""

from __future__ import annotations

from typing import Any, Protocol, get_args, runtime_checkable

import lightning as L

from interstack.errors import ConfigurationError
from interstack.growth.operators import GrowthOperator, OperatorName, get_operator, plan_growth
from interstack.growth.plan import GrowthPlan, descend
from interstack.growth.progress import run_length, run_progress
from interstack.growth.schedule import (
    GrowthSchedule,
    LengthUnit,
    ScheduleKind,
    check_depths,
    explicit_shares,
    make_schedule,
    prop_shares,
)
from interstack.growth.strategy import check_strategy, rebuild_after_growth


class Growable(Protocol):
    """What a LightningModule offers to be grown."""

    @property
    def depth(self) -> int:
        """Layers at present."""

    @property
    def lineage(self) -> tuple[int, ...]:
        """For every present layer, the index of its ancestor in the first stack."""

    def grow(self, plan: GrowthPlan) -> None:
        """Grow in place."""


@runtime_checkable
class GrowthListener(Protocol):
    """A callback that wants to look at the student just before and just after a growth."""

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before the student grows."""

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Called when the grown student and its new optimizer are in place."""


class InterleavedStacking(L.Callback):
    """Grows the student by stages and resets the optimizer's state (arXiv 2606.11766).

    Runs at ``on_train_batch_start``, before each optimizer step: where the stage due at the run's
    progress is deeper than the student, it grows. It holds no state, so a resumed run, whose depth
    the LightningModule restores, goes on as if it had never been cut.

    Args:
        depths: Encoder layers of each stage, strictly increasing. A single one is training at full
            depth throughout, without growth.
        operator: How the student grows: ``interleave`` or one of its rivals.
        schedule: ``eql``: all stages equally long. ``prop``: stage b takes a share proportional to
            b^alpha. ``explicit``: as ``lengths`` says.
        alpha: Exponent of ``prop``.
        lengths: Length of each stage for ``explicit``; they sum to the run's.
        unit: Unit of ``lengths``: ``epochs`` (fractions allowed) or ``steps``.

    Raises:
        ConfigurationError: If these contradict each other, or the operator can't serve the depths.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 6, 9, 12),
        operator: OperatorName = "interleave",
        schedule: ScheduleKind = "eql",
        alpha: float = 1.0,
        lengths: tuple[float, ...] | None = None,
        unit: LengthUnit = "epochs",
    ) -> None:
        check_depths(depths)
        self.depths = tuple(depths)
        self.operator: GrowthOperator = get_operator(operator)
        self.operator_name = operator
        self.kind = schedule
        self.alpha = alpha
        self.lengths = lengths
        self.unit: LengthUnit = unit
        self.schedule: GrowthSchedule | None = None
        if schedule not in get_args(ScheduleKind):
            raise ConfigurationError(
                f"there is no growth.schedule {schedule!r}: choose one of "
                f"{', '.join(get_args(ScheduleKind))}"
            )
        if (schedule == "explicit") != (lengths is not None):
            raise ConfigurationError(
                "growth.lengths belongs to growth.schedule: explicit, and is needed there; growth."
                f"schedule is {schedule!r} and growth.lengths is {lengths}"
            )
        self._rehearse()

    def _rehearse(self) -> None:
        """Plan every growth once, so that an impossible one shows before hours are spent."""
        lineage = tuple(range(self.depths[0]))
        for depth in self.depths[1:]:
            lineage = descend(lineage, plan_growth(self.operator, lineage, depth))

    def make_schedule(self, total: float, unit: LengthUnit) -> GrowthSchedule:
        """Lay the stages over a run.

        Args:
            total: The run's length.
            unit: What it is counted in.

        Raises:
            ConfigurationError: If the stages don't fit the run.
        """
        if self.lengths is None:
            shares = prop_shares(len(self.depths), self.alpha if self.kind == "prop" else 0.0)
        elif self.unit != unit:
            raise ConfigurationError(
                f"growth.unit is {self.unit!r}, but trainer.max_{unit} measures the run in {unit}: "
                "use the same for both"
            )
        else:
            shares = explicit_shares(self.lengths, total, unit)
        if unit == "steps" and min(shares) * total < 1:
            raise ConfigurationError(
                f"a run of {total:g} steps has no room for {len(self.depths)} stages: the shortest "
                f"would have {min(shares) * total:.2f} steps"
            )
        return make_schedule(self.depths, shares)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check strategy, run length and stages before anything is computed."""
        del pl_module
        if stage == "fit":
            check_strategy(trainer)
            self.schedule = self.make_schedule(*run_length(trainer))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Grow where growth is due, never inside a window of accumulated gradients."""
        del batch
        if batch_idx % trainer.accumulate_grad_batches == 0:
            assert self.schedule is not None
            self._grow_to(self.schedule.depth_at(run_progress(trainer)), trainer, pl_module)

    def _grow_to(self, depth: int, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Grow stage by stage up to the depth that is due."""
        student = growable(pl_module)
        listeners = [each for each in callbacks_of(trainer) if isinstance(each, GrowthListener)]
        for next_depth in self.depths:
            if not student.depth < next_depth <= depth:
                continue
            for listener in listeners:
                listener.on_growth_start(trainer, pl_module)
            plan = plan_growth(self.operator, student.lineage, next_depth)
            student.grow(plan)
            rebuild_after_growth(trainer)
            for listener in listeners:
                listener.on_growth_end(trainer, pl_module, plan)


def growable(pl_module: L.LightningModule) -> Growable:
    """Return the module as what it has to be.

    Raises:
        TypeError: If the module has no depth, lineage or ``grow``.
    """
    if not all(hasattr(pl_module, name) for name in ("depth", "lineage", "grow")):
        raise TypeError(f"{type(pl_module).__name__} has no depth, lineage and grow(plan)")
    module: Any = pl_module
    student: Growable = module
    return student


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """Return the Trainer's callbacks, which its stubs leave untyped."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    return callbacks
