"""All contact with the Trainer's strategy: rebuilding what hangs on the module's parameters."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from interstack.errors import ConfigurationError
from interstack.growth.optimizer_state import (
    OptimizerStatePolicy,
    inherit_state,
    named_parameters,
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


def check_optimizers(trainer: L.Trainer, policy: OptimizerStatePolicy) -> None:
    """Refuse, before any training, optimizers whose state could not be matched at a growth.

    Raises:
        ConfigurationError: If the policy needs their parameters' names and they have none.
    """
    for optimizer in trainer.strategy.optimizers if policy != "reset" else ():
        named_parameters(optimizer)


def rebuild_after_growth(
    trainer: L.Trainer, plan: GrowthPlan, layer_prefix: str, policy: OptimizerStatePolicy
) -> None:
    """Wrap the grown module anew where it is wrapped, and make its optimizer anew.

    DDP's reducer knows the parameters it was built with: without a new one, the ranks' clones would
    drift apart. The loops take the new optimizer up at the next step; ``global_step`` goes on.

    Args:
        trainer: The run's.
        plan: The growth that the module has just gone through.
        layer_prefix: What the names of layers' parameters begin with, before the layer's number.
        policy: What becomes of the optimizer's state.
    """
    strategy = trainer.strategy
    old_optimizers = strategy.optimizers
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        # Wrapping sends rank 0's weights to all (torch's default): layers that each rank has drawn
        # for itself, as operator random has them do, are equal before the optimizer is made.
        strategy.configure_ddp()
    strategy.setup_optimizers(trainer)
    for old, new in zip(old_optimizers, strategy.optimizers, strict=True):
        inherit_state(old, new, plan, layer_prefix, policy)
