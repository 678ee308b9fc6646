"""All contact with the Trainer's strategy: rebuilding what hangs on the module's parameters."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
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
        ConfigurationError: For anything but a single device or DDP. FSDP and DeepSpeed make their
            shards once, and load weights only after the optimizers exist.
    """
    strategy = trainer.strategy
    follows = isinstance(strategy, DDPStrategy | SingleDeviceStrategy)
    if not follows or isinstance(strategy, DeepSpeedStrategy):  # a DDPStrategy by its class
        raise ConfigurationError(
            f"a growing student can't train under {type(strategy).__name__}, which shards "
            "parameters once and for all: use trainer.strategy ddp, or auto on one device"
        )


def check_accumulation(trainer: L.Trainer) -> None:
    """Refuse a window of accumulated gradients that changes its length within a run.

    Raises:
        ConfigurationError: For Lightning's GradientAccumulationScheduler: it sets the length when
            an epoch begins, which a run that is resumed within an epoch does not come past.
    """
    callbacks: list[L.Callback] = vars(trainer).get("callbacks", [])
    if any(isinstance(each, GradientAccumulationScheduler) for each in callbacks):
        raise ConfigurationError(
            "trainer.callbacks holds a GradientAccumulationScheduler, whose batches a run that is "
            "resumed within an epoch can't repeat: remove it, and set data.global_batch_seconds or "
            "trainer.accumulate_grad_batches"
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
