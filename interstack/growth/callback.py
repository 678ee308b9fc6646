"""The Lightning callback that grows a module, and all contact with the Trainer's strategy."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import nn
from torch.utils.hooks import RemovableHandle

from interstack.errors import ConfigurationError
from interstack.growth.averages import averages_of, grow_averages
from interstack.growth.operators import OperatorChoice
from interstack.growth.optimizer_state import (
    LearningRateFactor,
    OptimizerStatePolicy,
    inherit_learning_rate,
    inherit_optimizer_state,
)
from interstack.growth.plan import GrowthPlan
from interstack.growth.schedule import (
    GrowthSchedule,
    LearningRatePolicy,
    LengthUnit,
    ScheduleKind,
    ScheduleRecord,
    check_unchanged,
    run_length,
    run_progress,
)
from interstack.growth.stacking import Stacking
from interstack.growth.surgery import (
    GrowPathOnLoad,
    check_resettable,
    find_layers,
    fresh_layer_of,
    grow_at,
    register_load_hook,
)


def check_strategy(trainer: L.Trainer) -> None:
    """Refuse strategies that can't follow a change of the module's parameters.

    Raises:
        ConfigurationError: As ``check_strategy_class``.
    """
    strategy = type(trainer.strategy)
    check_strategy_class(strategy, "popen", strategy.__name__)


def check_strategy_class(strategy: type, start_method: str, name: str) -> None:
    """Refuse a strategy before it is made.

    Args:
        strategy: Its class.
        start_method: How it starts its processes.
        name: What the user calls it.

    Raises:
        ConfigurationError: For anything but a single device or DDP. FSDP and DeepSpeed make their
            shards once, and load weights only after the optimizers exist. And for processes that
            are spawned: a run can't be pickled.
    """
    follows = issubclass(strategy, DDPStrategy | SingleDeviceStrategy)
    if not follows or issubclass(strategy, DeepSpeedStrategy):  # a DDPStrategy by its class
        raise ConfigurationError(
            f"trainer.strategy is {name}, which divides the parameters among devices once, and a "
            "growing student gets new ones: give ddp, or auto on one device"
        )
    if start_method in ("spawn", "forkserver"):
        raise ConfigurationError(
            f"trainer.strategy is {name}, which sends the run to new processes, and a run with its "
            "open files can't be sent: give ddp"
        )


def rebuild_after_growth(
    trainer: L.Trainer, plan: GrowthPlan, layers: nn.ModuleList, policy: OptimizerStatePolicy
) -> None:
    """Wrap the grown module again where it is wrapped, and make its optimizers again.

    DDP's reducer has the parameters it was built with: without a new one, the ranks' clones would
    drift apart. The loops use the new optimizers from the next step on; ``global_step`` and the
    learning rate schedulers continue.

    Args:
        trainer: The run's.
        plan: The growth step that the module has just gone through.
        layers: The layers that have grown.
        policy: What becomes of the optimizers' state.
    """
    strategy = trainer.strategy
    old_optimizers, old_schedulers = strategy.optimizers, strategy.lr_scheduler_configs
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        # Wrapping sends rank 0's weights to all (torch's default): layers that each rank has drawn
        # for itself, as operator random has them do, are equal before the optimizer is made.
        strategy.configure_ddp()
    strategy.setup_optimizers(trainer)
    schedulers = list(zip(old_schedulers, strategy.lr_scheduler_configs, strict=True))
    for old, new in zip(old_optimizers, strategy.optimizers, strict=True):
        inherit_optimizer_state(old, new, layers, plan, policy)
        pairs = [
            (before.scheduler, after.scheduler)
            for before, after in schedulers
            if getattr(after.scheduler, "optimizer", new) is new
        ]
        inherit_learning_rate(old, new, layers, plan, pairs)


@runtime_checkable
class GrowthListener(Protocol):
    """A callback or module that is called just before and just after a growth step."""

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before the layers grow."""

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Called when the grown layers and their new optimizer are in place."""


class InterleavedStacking(Stacking, L.Callback):
    """Grows the layers of a LightningModule by stages (arXiv 2606.11766).

    Runs at ``on_train_batch_start``, before each optimizer step: where the stage due at the run's
    progress is deeper than the layers are, they grow, and the optimizer is made again by
    ``configure_optimizers``. Learning rate schedulers continue. Any LightningModule with its layers
    in a ``ModuleList`` will do. Where something hangs on the layers, the module, or another one on
    the path to them, defines ``on_layers_grown(plan)``; it is called when the layers have grown,
    also before the weights of a grown checkpoint are loaded. To load one without this callback, see
    ``grow_on_load``.

    A resumed run continues as if it had never been cut; with another schedule it is refused.

    Args:
        depths: Layers of each stage, strictly increasing; with a single one nothing grows.
        operator: How the layers grow: ``interleave``, one of its rivals, or the dotted name of a
            function of yours, such as ``mymodule.my_operator``; see ``OwnOperator``.
        schedule: ``eql``: all stages equally long. ``prop``: stage b takes a share proportional to
            b^alpha. ``explicit``: given by ``lengths``.
        alpha: Exponent of ``prop``, and refused with another schedule.
        lengths: Length of each stage for ``explicit``; they sum to the run's.
        unit: Unit of ``lengths``, and refused without them: ``epochs`` (fractions allowed) or
            ``steps``.
        optimizer_state: The optimizer's moments and step counts at growth. ``reset``: all begin at
            zero. ``carry``: clones begin at zero, everything else continues. ``clone``: clones
            begin with copies of their parents'.
        learning_rate: ``continue``: one schedule over the whole run. ``rewarm``: after each growth
            it rises linearly from near 0 to what is due.
        rewarm_steps: Optimizer steps of that rise, such as 500. Belongs to ``rewarm``.
        layers: Dotted path of the ``ModuleList`` in the LightningModule, such as
            ``encoder.layers``; by default our ``Distillation``'s.

    Raises:
        ConfigurationError: If these contradict each other, one has no effect, or the operator can't
            serve the depths.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 6, 9, 12),
        operator: OperatorChoice = "interleave",
        schedule: ScheduleKind = "eql",
        alpha: float = 1.0,
        lengths: tuple[float, ...] | None = None,
        unit: LengthUnit = "epochs",
        optimizer_state: OptimizerStatePolicy = "reset",
        learning_rate: LearningRatePolicy = "continue",
        rewarm_steps: int | None = None,
        layers: str = "student.model.encoder.layers",
    ) -> None:
        super().__init__(
            layers,
            depths,
            operator,
            schedule,
            alpha,
            lengths,
            unit,
            optimizer_state,
            learning_rate,
            rewarm_steps,
        )
        self.schedule: GrowthSchedule | None = None
        self._fitting = False
        self._record: ScheduleRecord | None = None  # of the fit that is going on, or was
        self._last_growth: int | None = None  # the optimizer step that it came before
        self._factor = LearningRateFactor()
        self._hooks: list[RemovableHandle] = []

    @property
    def learning_rate_factor(self) -> float:
        """What the learning rate of the present step is multiplied by, while it re-warms."""
        return self._factor.value

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check strategy, run length and stages; let checkpoints of any depth be loaded."""
        self._remove_hooks()
        grow = GrowPathOnLoad(self.layers, self.depths, self.plans)
        for module in (pl_module, *(each.module for each in averages_of(trainer, pl_module))):
            self._hooks.append(register_load_hook(module, grow))
        self._fitting = stage == "fit"
        if self._fitting:
            check_strategy(trainer)
            trial = bool(getattr(trainer, "fast_dev_run", False))
            self._record = self.record(run_length(trainer), trial=trial)
            self.schedule = GrowthSchedule(self._record.stages)
            self._last_growth = None
            self._factor.value = 1.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the layers are there, are as deep as they have to be, and can grow."""
        layers = find_layers(pl_module, self.layers)
        if trainer.ckpt_path is None or len(layers) not in self.depths:
            self.check_first_depth(len(layers))
        fresh_layers = any(plan.fresh_clones for plan in self.plans)
        if fresh_layers and fresh_layer_of(pl_module, self.layers) is None:
            check_resettable(layers[0])
        self._attach(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Grow where growth is due, never inside a window of accumulated gradients."""
        del batch
        if batch_idx % trainer.accumulate_grad_batches == 0:
            assert self.schedule is not None
            self._grow_to(self.schedule.depth_at(run_progress(trainer)), trainer, pl_module)
        self._factor.value = self.rate_factor(trainer.global_step, self._last_growth)

    def _grow_to(self, depth: int, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Grow stage by stage up to the depth that is due."""
        present = len(find_layers(pl_module, self.layers))
        listeners = [
            each for each in (pl_module, *callbacks_of(trainer)) if isinstance(each, GrowthListener)
        ]
        # Several plans only where a stage has no step of its own, as in a short trial run.
        for plan in self.steps_to(present, depth):
            for listener in listeners:
                listener.on_growth_start(trainer, pl_module)
            # The module grows first: the new optimizer is made over what it has then.
            grow_at(pl_module, self.layers, plan)
            layers = find_layers(pl_module, self.layers)
            rebuild_after_growth(trainer, plan, layers, self.optimizer_state)
            # After the optimizer: under DDP, wrapping has made the ranks' fresh layers equal by
            # now.
            grow_averages(trainer, pl_module, self.layers, plan)
            self._last_growth = trainer.global_step
            self._attach(trainer)
            for listener in listeners:
                listener.on_growth_end(trainer, pl_module, plan)

    def _attach(self, trainer: L.Trainer) -> None:
        """Let the optimizers' steps go by the learning rate's factor, where there is one."""
        for optimizer in trainer.strategy.optimizers if self.rewarm_steps is not None else ():
            self._factor.attach(optimizer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was, but for its depth: there may be no teardown."""
        del trainer, pl_module, exception
        self._remove_hooks()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the module as it was, but for its depth."""
        del trainer, pl_module, stage
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @property
    def state_key(self) -> str:
        """Where checkpoints keep the state, whatever a subclass is called."""
        return "InterleavedStacking"

    def state_dict(self) -> dict[str, Any]:
        """Return the fit's schedule and the step of its last growth, as primitives.

        The lineage is not among them: it follows from the depth, the depths before and the
        operator.
        """
        if self._record is None:
            return {}
        return {"schedule": self._record.to_primitives(), "last_growth": self._last_growth}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a run was cut; validation, test and prediction go by no schedule.

        Raises:
            ConfigurationError: If the run was started with another schedule, with both.
        """
        if self._fitting and self._record is not None:
            check_unchanged(ScheduleRecord.from_primitives(state_dict["schedule"]), self._record)
            self._last_growth = state_dict["last_growth"]


def growth_of(trainer: L.Trainer) -> InterleavedStacking | None:
    """Return the callback that grows the layers, if there is one."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, InterleavedStacking):
            return callback
    return None


def lineage_of(trainer: L.Trainer, module: L.LightningModule) -> tuple[int, ...]:
    """Return for every layer of a module the index of its ancestor in the first stack.

    Its length is the depth. A module that nothing grows gives its own ``lineage``, or has none.
    """
    growth = growth_of(trainer)
    if growth is None:
        own: tuple[int, ...] = getattr(module, "lineage", ())
        return own
    depth = len(find_layers(module, growth.layers))
    return growth.lineages.get(depth, tuple(range(depth)))


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """Return the Trainer's callbacks, which its stubs leave untyped."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    return callbacks
