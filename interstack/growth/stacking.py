"""What all callbacks that grow layers have in common: settings, growth steps, schedule."""

from __future__ import annotations

from typing import Any, Final, get_args

from interstack.errors import ConfigurationError
from interstack.growth.operators import GrowthOperator, OperatorName, get_operator, plan_growth
from interstack.growth.optimizer_state import OptimizerStatePolicy
from interstack.growth.plan import GrowthPlan, descend
from interstack.growth.schedule import (
    GrowthSchedule,
    LearningRatePolicy,
    LengthUnit,
    RunLength,
    ScheduleKind,
    ScheduleRecord,
    check_depths,
    explicit_shares,
    make_schedule,
    prop_shares,
)
from interstack.settings import Owners, check_effect, check_effects, defaults_of


def check_choice(option: str, value: str, choices: object) -> None:
    """Refuse a value that there is not.

    Args:
        option: Name in the growth section.
        value: What is given.
        choices: A ``Literal`` of what can be.

    Raises:
        ConfigurationError: In that case.
    """
    if value not in get_args(choices):
        raise ConfigurationError(
            f"there is no growth.{option} {value!r}: choose one of {', '.join(get_args(choices))}"
        )


def check_belongs(option: str, value: object, owner: str, choice: str, wanted: str) -> None:
    """Hold an option to the one choice of another that it serves.

    Args:
        option: Name of the option; None is left out.
        value: What is given for it.
        owner: Name of the option that it belongs to.
        choice: What is chosen there.
        wanted: The choice that needs the option. Under any other it would do nothing.

    Raises:
        ConfigurationError: If it is given elsewhere, or missing there.
    """
    if (choice == wanted) != (value is not None):
        raise ConfigurationError(
            f"growth.{option} belongs to growth.{owner}: {wanted}, and is needed there; "
            f"growth.{owner} is {choice!r} and growth.{option} is {value}"
        )


_OWNERS: Final[Owners] = {"alpha": ("schedule", ("prop",)), "unit": ("schedule", ("explicit",))}
_OF_GROWTH_STEPS: Final = ("operator", "schedule", "optimizer_state", "learning_rate")
"""Options that have no effect on a run of a single depth."""


class Stacking:
    """When and how layers grow, whatever trains them; see ``InterleavedStacking`` for the settings.

    Attributes:
        plans: The run's growth steps, in order.
        lineages: For each depth, for each layer the index of its ancestor in the first stack.

    Raises:
        ConfigurationError: If the settings contradict each other, one has no effect, or the
            operator can't serve the depths.
    """

    def __init__(
        self,
        layers: str,
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
        self.layers = layers
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
        check_choice("schedule", schedule, ScheduleKind)
        check_choice("optimizer_state", optimizer_state, OptimizerStatePolicy)
        check_choice("learning_rate", learning_rate, LearningRatePolicy)
        check_belongs("lengths", lengths, "schedule", schedule, "explicit")
        check_belongs("rewarm_steps", rewarm_steps, "learning_rate", learning_rate, "rewarm")
        if rewarm_steps is not None and rewarm_steps < 1:
            raise ConfigurationError(f"growth.rewarm_steps {rewarm_steps} must be 1 or more")
        settings: dict[str, Any] = {
            "operator": operator,
            "schedule": schedule,
            "alpha": alpha,
            "unit": unit,
        }
        settings |= {"optimizer_state": optimizer_state, "learning_rate": learning_rate}
        defaults = defaults_of(Stacking)
        check_effects("growth", settings, defaults, _OWNERS)
        for name in _OF_GROWTH_STEPS if len(depths) == 1 else ():
            where = f"with the single depth of growth.depths {list(depths)}"
            check_effect(
                f"growth.{name}", settings[name], defaults[name], where, "give more depths"
            )
        self.plans: tuple[GrowthPlan, ...] = ()
        lineage = tuple(range(self.depths[0]))
        self.lineages = {self.depths[0]: lineage}
        # now, so that an impossible step shows before hours are spent
        for depth in self.depths[1:]:
            plan = plan_growth(self.operator, lineage, depth)
            self.plans += (plan,)
            lineage = self.lineages[depth] = descend(lineage, plan)

    def make_schedule(
        self, total: float, unit: LengthUnit, *, trial: bool = False
    ) -> GrowthSchedule:
        """Lay the stages over a run.

        Args:
            total: The run's length.
            unit: What it is counted in.
            trial: Whether it only tries some steps of a longer run, as ``fast_dev_run`` does: the
                stages then keep their shares, and those without a step of their own are passed
                over.

        Raises:
            ConfigurationError: If the stages don't fit the run.
        """
        if self.lengths is None:
            shares = prop_shares(len(self.depths), self.alpha if self.kind == "prop" else 0.0)
        elif trial:
            shares = explicit_shares(self.lengths, sum(self.lengths), self.unit)
        elif self.unit != unit:
            raise ConfigurationError(
                f"growth.unit is {self.unit!r}, but trainer.max_{unit} measures the run in {unit}: "
                "use the same for both"
            )
        else:
            shares = explicit_shares(self.lengths, total, unit)
        if unit == "steps" and min(shares) * total < 1 and not trial:
            raise ConfigurationError(
                f"a run of {total:g} steps has no room for {len(self.depths)} stages: the shortest "
                f"would have {min(shares) * total:.2f} steps"
            )
        return make_schedule(self.depths, shares)

    def record(self, run: RunLength, *, trial: bool = False) -> ScheduleRecord:
        """Return all that growth does in a run of this length; raises as ``make_schedule``."""
        stages = self.make_schedule(*run, trial=trial).stages
        policies = (self.optimizer_state, self.learning_rate, self.rewarm_steps)
        return ScheduleRecord(run, stages, self.operator_name, *policies)

    def steps_to(self, present: int, depth: int) -> list[GrowthPlan]:
        """Return the growth steps from a present depth to the one that is due."""
        return [plan for plan in self.plans if present <= plan.old_depth and plan.depth <= depth]

    def check_first_depth(self, depth: int) -> None:
        """Refuse to start a run at another depth than its first.

        Raises:
            ConfigurationError: In that case.
        """
        if depth != self.depths[0]:
            raise ConfigurationError(
                f"growth.depths {list(self.depths)} begin with {self.depths[0]} layers, but "
                f"{self.layers} has {depth} when the run starts: build the model with "
                f"{self.depths[0]} layers"
            )

    def rate_factor(self, step: int, last_growth: int | None) -> float:
        """Return the learning rate's factor at an optimizer step, counted from 0.

        Args:
            step: The step.
            last_growth: The step before which the last growth came; None if there was none.
        """
        if self.rewarm_steps is None or last_growth is None:
            return 1.0
        return min(1.0, (step - last_growth + 1) / self.rewarm_steps)
