"""All contact with the Trainer's strategy: rebuilding what hangs on the module's parameters."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import nn

from interstack.errors import ConfigurationError
from interstack.growth.optimizer_state import (
    OptimizerStatePolicy,
    inherit_learning_rate,
    inherit_optimizer_state,
)
from interstack.growth.plan import GrowthPlan


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
