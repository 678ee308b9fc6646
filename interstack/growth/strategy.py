"""All contact with the Trainer's strategy: rebuilding what hangs on the module's parameters."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from interstack.errors import ConfigurationError


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


def rebuild_after_growth(trainer: L.Trainer) -> None:
    """Wrap the grown module anew where it is wrapped, and make its optimizer anew.

    DDP's reducer knows the parameters it was built with: without a new one, the ranks' clones would
    drift apart. The loops take the new optimizer up at the next step; ``global_step`` goes on.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
    strategy.setup_optimizers(trainer)
