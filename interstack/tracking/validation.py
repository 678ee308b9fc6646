"""The validation loss at any moment of a fit, which is left as it is."""

from __future__ import annotations

from functools import partial

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng

from interstack.distillation.averaging import averaged_weights
from interstack.distillation.metrics import DistillationLoss
from interstack.distillation.module import Distillation
from interstack.models.precision import evaluating


@torch.no_grad()
def validation_loss(trainer: L.Trainer, module: Distillation) -> float | None:
    """Return the loss over the Trainer's validation batches, those of all ranks.

    It is what ``val/loss`` would be now: same batches, limits, precision and sums, and the averaged
    student where a callback averages its weights. Random states, train mode and loggers stay as
    they are. Every rank has to call it.

    Args:
        trainer: During ``fit``, between two steps.
        module: Its module.

    Returns:
        The loss, or None where the Trainer has nothing to validate on.
    """
    if not trainer.enable_validation:
        return None
    precision, strategy = trainer.precision_plugin, trainer.strategy
    taps = len(module.student.teacher_taps)
    metric = DistillationLoss(module.objective, taps).to(module.device)
    with (
        isolate_rng(),
        averaged_weights(trainer, module),
        evaluating(module),
        precision.val_step_context(),
    ):
        trainer.fit_loop.epoch_loop.val_loop.setup_data()  # loads them once, as validation does
        batches = CombinedLoader(trainer.val_dataloaders, "sequential")
        batches.limits = trainer.num_val_batches
        for raw_batch, batch_idx, dataloader_idx in batches:
            batch = precision.convert_input(raw_batch)
            batch = strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)
            batch_loss = module.batch_loss(batch)
            metric.update(
                batch_loss.sums, partial(batch_loss.fault, f"validation batch {batch_idx}")
            )
        loss, _ = metric.compute()
    return float(loss)
