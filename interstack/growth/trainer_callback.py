"""The callback that grows a model under the Trainer of Hugging Face transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from interstack.errors import ConfigurationError
from interstack.growth.operators import OperatorName
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
    RunLength,
    ScheduleKind,
    ScheduleRecord,
    check_unchanged,
)
from interstack.growth.stacking import Stacking
from interstack.growth.surgery import (
    FreshLayer,
    GrowPathOnLoad,
    check_resettable,
    find_layers,
    fresh_layer_of,
    grow_at,
    modules_on,
    register_load_hook,
)

if TYPE_CHECKING:
    from transformers import Trainer

_RECORD_KEY: Final = "interstack_growth"
"""Of the Trainer's saved state: the schedule that the run was started with."""


class StackingTrainerCallback(Stacking, TrainerCallback):
    """Grows the layers of a model under transformers' Trainer, as ``InterleavedStacking`` does.

    Runs at ``on_step_begin``: where the stage due at the step is deeper than the layers are, they
    grow. The optimizer is made again by ``trainer.create_optimizer``, the learning rate scheduler
    continues, and a DDP-wrapped model is wrapped again. ``config.num_hidden_layers`` and the
    layers' ``layer_idx`` follow, where there are such. A model, or a module on the path to its
    layers, may define ``on_layers_grown(plan)``. Checkpoints of any depth can be resumed, and with
    another schedule a run is refused.

    Args:
        trainer: The Trainer, which makes its optimizer by itself.
        layers: Dotted path of the ``ModuleList`` in the model, such as ``bert.encoder.layer``.
        depths: Layers of each stage, strictly increasing.
        operator: How the layers grow.
        schedule: ``eql``, ``prop`` or ``explicit``; see ``InterleavedStacking``.
        alpha: Exponent of ``prop``.
        lengths: Length of each stage in steps for ``explicit``.
        optimizer_state: What becomes of the optimizer's state: ``reset``, ``carry`` or ``clone``.
        learning_rate: ``continue`` or ``rewarm``. What the Trainer logs is the scheduler's rate,
            without the factor of ``rewarm``.
        rewarm_steps: Optimizer steps of ``rewarm``.
        fresh_layer: Makes the layers of operator ``random``; see ``grow_layers``.

    Raises:
        ConfigurationError: If the settings contradict each other, the model's layers are not those
            of the first depth, or the Trainer trains in a way that can't follow a growth step.

    Example:
        >>> trainer.add_callback(
        ...     StackingTrainerCallback(trainer, layers="bert.encoder.layer", depths=(3, 6, 12))
        ... )
    """

    def __init__(
        self,
        trainer: Trainer,
        layers: str,
        depths: tuple[int, ...] = (3, 6, 9, 12),
        operator: OperatorName = "interleave",
        schedule: ScheduleKind = "eql",
        alpha: float = 1.0,
        lengths: tuple[float, ...] | None = None,
        optimizer_state: OptimizerStatePolicy = "reset",
        learning_rate: LearningRatePolicy = "continue",
        rewarm_steps: int | None = None,
        fresh_layer: FreshLayer | None = None,
    ) -> None:
        super().__init__(
            layers,
            depths,
            operator,
            schedule,
            alpha,
            lengths,
            "epochs" if lengths is None else "steps",
            optimizer_state,
            learning_rate,
            rewarm_steps,
        )
        _check_trainer(trainer)
        self._trainer = trainer
        self._fresh_layer = fresh_layer
        self._schedule: GrowthSchedule | None = None
        self._factor = LearningRateFactor()
        stack = find_layers(self._model, layers)
        self.check_first_depth(len(stack))
        fresh_layers = any(plan.fresh_clones for plan in self.plans)
        if fresh_layers and (fresh_layer or fresh_layer_of(self._model, layers)) is None:
            check_resettable(stack[0])
        grow = GrowPathOnLoad(self.layers, self.depths, self.plans, follow_growth)
        register_load_hook(self._model, grow)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Check the run's length, its schedule and the present depth."""
        del control, kwargs
        _check_arguments(args, self.depths)
        record = self.record(RunLength(state.max_steps, "steps"))
        kept: Any = state  # what is in its stateful_callbacks goes into every checkpoint
        saved: dict[str, Any] = kept.stateful_callbacks
        if _RECORD_KEY in saved:
            check_unchanged(ScheduleRecord.from_primitives(saved[_RECORD_KEY]), record)
        kept.stateful_callbacks = saved | {_RECORD_KEY: record.to_primitives()}
        self._schedule = GrowthSchedule(record.stages)
        depth = len(find_layers(self._model, self.layers))
        if state.global_step == 0 or depth not in self.depths:
            self.check_first_depth(depth)
        self._attach()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Grow where growth is due."""
        del args, control, kwargs
        assert self._schedule is not None
        step, total = state.global_step, state.max_steps
        present = len(find_layers(self._model, self.layers))
        for plan in self.steps_to(present, self._schedule.depth_at(step / total)):
            self._grow(plan)
        self._factor.value = self.rate_factor(step, self._last_growth(step, total))

    def _last_growth(self, step: int, total: int) -> int | None:
        """Return the step before which the last growth came; it follows from the schedule."""
        assert self._schedule is not None
        stage = self._schedule.stage_at(step / total)
        for earlier in range(step, 0, -1) if stage else ():
            if self._schedule.stage_at((earlier - 1) / total) < stage:
                return earlier
        return None

    @property
    def _model(self) -> nn.Module:
        assert self._trainer.model is not None
        return self._trainer.model

    def _grow(self, plan: GrowthPlan) -> None:
        """Grow the model, and let everything that hangs on its parameters follow."""
        trainer: Any = self._trainer
        grow_at(self._model, self.layers, plan, fresh_layer=self._fresh_layer)
        follow_growth(self._model, self.layers, plan)
        _wrap_again(trainer)
        prepared, scheduler = trainer.optimizer, trainer.lr_scheduler
        trainer.optimizer = None
        created = trainer.create_optimizer()
        trainer.accelerator._optimizers.remove(prepared)
        trainer.optimizer = trainer.accelerator.prepare(created)
        trainer.lr_scheduler = None
        trainer.create_scheduler(trainer.state.max_steps, trainer.optimizer)
        old, new = prepared.optimizer, trainer.optimizer.optimizer
        layers = find_layers(self._model, self.layers)
        inherit_optimizer_state(old, new, layers, plan, self.optimizer_state)
        inherit_learning_rate(old, new, layers, plan, [(scheduler, trainer.lr_scheduler)])
        trainer.callback_handler.optimizer = trainer.optimizer
        trainer.callback_handler.lr_scheduler = trainer.lr_scheduler
        self._attach()

    def _attach(self) -> None:
        """Let the optimizer's steps go by the learning rate's factor, where there is one."""
        if self.rewarm_steps is not None:
            optimizer: Any = self._trainer.optimizer
            self._factor.attach(optimizer.optimizer)


def follow_growth(model: nn.Module, path: str, plan: GrowthPlan) -> None:
    """Bring a model's configuration and its layers' own indices to the grown depth.

    The configuration is the innermost on the path that counts as many layers as there were. It
    belongs to the model, and is saved with it.
    """
    for index, layer in enumerate(find_layers(model, path)):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]
    for owner in reversed(modules_on(model, path)):
        config: Any = getattr(owner, "config", None)
        if getattr(config, "num_hidden_layers", None) == plan.old_depth:
            kinds = getattr(config, "layer_types", None)
            config.num_hidden_layers = plan.depth
            if isinstance(kinds, list) and len(kinds) == plan.old_depth:
                config.layer_types = [kinds[parent] for parent in plan.parents]
            return


def _wrap_again(trainer: Any) -> None:  # noqa: ANN401, a Trainer with its accelerator
    """Give the DDP object, if there is one, a reducer over the present parameters.

    The Trainer's loop holds the object itself, which therefore has to stay the same one.
    """
    for wrapped in trainer.model_wrapped.modules():
        if isinstance(wrapped, DistributedDataParallel):
            handler = trainer.accelerator.ddp_handler
            again = DistributedDataParallel(
                wrapped.module,
                device_ids=wrapped.device_ids,
                output_device=wrapped.output_device,
                process_group=wrapped.process_group,
                **({} if handler is None else handler.to_kwargs()),
            )
            if handler is not None:
                handler.register_comm_hook(again)
            vars(wrapped).clear()
            vars(wrapped).update(vars(again))
            return


def _check_trainer(trainer: Trainer) -> None:
    """Refuse a Trainer that can't follow a growth step, or whose model is not there yet."""
    own: Any = trainer
    if own.model_init is not None:
        raise ConfigurationError(
            "the Trainer has model_init, which makes its model later: give it the model itself"
        )
    if own.optimizer is not None:
        raise ConfigurationError(
            "the Trainer was given an optimizer, which growth has to make again: give it "
            "optimizer_cls_and_kwargs, or TrainingArguments with optim, instead of optimizers"
        )
    if own.is_deepspeed_enabled or own.is_fsdp_enabled:
        raise ConfigurationError(
            "the Trainer runs FSDP or DeepSpeed, which divide the parameters among devices once, "
            "and growing layers get new ones: train with DDP, or on one device"
        )


def _check_arguments(args: TrainingArguments, depths: tuple[int, ...]) -> None:
    """Refuse arguments that contradict growth."""
    if args.load_best_model_at_end and len(depths) > 1:
        raise ConfigurationError(
            "load_best_model_at_end is True, but the best checkpoint may be of an earlier stage "
            "with fewer layers than the model has in the end: set it to False"
        )
