"""The Lightning callback that grows the student. Plumbing only: plan and schedule are elsewhere."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import lightning as L

from interstack.errors import ConfigurationError
from interstack.growth.averages import grow_averages
from interstack.growth.operators import GrowthOperator, OperatorName, get_operator, plan_growth
from interstack.growth.optimizer_state import OptimizerStatePolicy
from interstack.growth.plan import GrowthPlan, descend
from interstack.growth.progress import RunLength, run_length, run_progress
from interstack.growth.record import LearningRatePolicy, ScheduleRecord, check_unchanged
from interstack.growth.schedule import (
    GrowthSchedule,
    LengthUnit,
    ScheduleKind,
    check_depths,
    explicit_shares,
    make_schedule,
    prop_shares,
)
from interstack.growth.settings import check_belongs, check_choice
from interstack.growth.strategy import check_optimizers, check_strategy, rebuild_after_growth


class Growable(Protocol):
    """What a LightningModule offers to be grown."""

    @property
    def depth(self) -> int:
        """Layers at present."""

    @property
    def lineage(self) -> tuple[int, ...]:
        """For every present layer, the index of its ancestor in the first stack."""

    @property
    def layer_prefix(self) -> str:
        """What the names of layers' parameters begin with, before the layer's number."""

    learning_rate_scale: float
    """Factor of the learning rate that is due; set before every training batch."""

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
    """Grows the student by stages and makes its optimizer anew (arXiv 2606.11766).

    Runs at ``on_train_batch_start``, before each optimizer step: where the stage due at the run's
    progress is deeper than the student, it grows. The depth belongs to the LightningModule. What
    checkpoints get from here is the schedule that the run began with and the step of its last
    growth: a resumed run goes on as if it had never been cut, and with another schedule not at all.

    Args:
        depths: Encoder layers of each stage, strictly increasing; with a single one nothing grows.
        operator: How the student grows: ``interleave`` or one of its rivals.
        schedule: ``eql``: all stages equally long. ``prop``: stage b takes a share proportional to
            b^alpha. ``explicit``: as ``lengths`` says.
        alpha: Exponent of ``prop``.
        lengths: Length of each stage for ``explicit``; they sum to the run's.
        unit: Unit of ``lengths``: ``epochs`` (fractions allowed) or ``steps``.
        optimizer_state: The optimizer's moments and step counts at growth. ``reset``: all begin at
            zero. ``carry``: clones begin at zero, everything else goes on. ``clone``: clones begin
            with copies of their parents'.
        learning_rate: ``continue``: one schedule over the whole run. ``rewarm``: after each growth
            it rises linearly from near 0 to what is due.
        rewarm_steps: Optimizer steps of that rise, such as 500. Belongs to ``rewarm``.

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
        optimizer_state: OptimizerStatePolicy = "reset",
        learning_rate: LearningRatePolicy = "continue",
        rewarm_steps: int | None = None,
    ) -> None:
        check_depths(depths)
        self.depths = tuple(depths)
        self.operator: GrowthOperator = get_operator(operator)
        self.operator_name = operator
        self.kind = schedule
        self.alpha = alpha
        self.lengths = lengths
        self.unit: LengthUnit = unit
        self.optimizer_state: OptimizerStatePolicy = optimizer_state
        self.learning_rate: LearningRatePolicy = learning_rate
        self.rewarm_steps = rewarm_steps
        self.schedule: GrowthSchedule | None = None
        self._fitting = False
        self._record: ScheduleRecord | None = None  # of the fit that is going on, or was
        self._last_growth: int | None = None  # the optimizer step that it came before
        check_choice("schedule", schedule, ScheduleKind)
        check_choice("optimizer_state", optimizer_state, OptimizerStatePolicy)
        check_choice("learning_rate", learning_rate, LearningRatePolicy)
        check_belongs("lengths", lengths, "schedule", schedule, "explicit")
        check_belongs("rewarm_steps", rewarm_steps, "learning_rate", learning_rate, "rewarm")
        if rewarm_steps is not None and rewarm_steps < 1:
            raise ConfigurationError(f"growth.rewarm_steps {rewarm_steps} must be 1 or more")
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

    def record(self, run: RunLength) -> ScheduleRecord:
        """Put down all that growth does in a run of this length; raises as ``make_schedule``."""
        stages = self.make_schedule(*run).stages
        policies = (self.optimizer_state, self.learning_rate, self.rewarm_steps)
        return ScheduleRecord(run, stages, self.operator_name, *policies)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check strategy, run length and stages before anything is computed."""
        del pl_module
        self._fitting = stage == "fit"
        if self._fitting:
            check_strategy(trainer)
            self._record = self.record(run_length(trainer))
            self.schedule = GrowthSchedule(self._record.stages)
            self._last_growth = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the optimizer can be carried through a growth."""
        del pl_module
        check_optimizers(trainer, self.optimizer_state)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Grow where growth is due, never inside a window of accumulated gradients."""
        del batch
        if batch_idx % trainer.accumulate_grad_batches == 0:
            assert self.schedule is not None
            self._grow_to(self.schedule.depth_at(run_progress(trainer)), trainer, pl_module)
        growable(pl_module).learning_rate_scale = self._rate_scale(trainer.global_step)

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
            rebuild_after_growth(trainer, plan, student.layer_prefix, self.optimizer_state)
            grow_averages(trainer, pl_module, plan, student.layer_prefix)
            self._last_growth = trainer.global_step
            for listener in listeners:
                listener.on_growth_end(trainer, pl_module, plan)

    def _rate_scale(self, step: int) -> float:
        """Return the learning rate's factor at an optimizer step, counted from 0."""
        if self.rewarm_steps is None or self._last_growth is None:
            return 1.0
        return min(1.0, (step - self._last_growth + 1) / self.rewarm_steps)

    @property
    def state_key(self) -> str:
        """Where checkpoints keep the state, whatever a subclass is called."""
        return "InterleavedStacking"

    def state_dict(self) -> dict[str, Any]:
        """Return the fit's schedule and the step of its last growth, as primitives."""
        if self._record is None:
            return {}
        return {"schedule": self._record.to_primitives(), "last_growth": self._last_growth}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run was cut; validation, test and prediction go by no schedule.

        Raises:
            ConfigurationError: If the run began with another schedule, with both.
        """
        if self._fitting and self._record is not None:
            check_unchanged(ScheduleRecord.from_primitives(state_dict["schedule"]), self._record)
            self._last_growth = state_dict["last_growth"]


def growable(pl_module: L.LightningModule) -> Growable:
    """Return the module as what it has to be.

    Raises:
        TypeError: If it lacks some of that.
    """
    parts = ("depth", "lineage", "layer_prefix", "learning_rate_scale", "grow")
    missing = [part for part in parts if not hasattr(pl_module, part)]
    if missing:
        raise TypeError(f"{type(pl_module).__name__} can't be grown without {', '.join(missing)}")
    return cast(Growable, pl_module)


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """Return the Trainer's callbacks, which its stubs leave untyped."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    return callbacks
