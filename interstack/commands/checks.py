"""What a whole run is held against before its directory, data or teacher is touched."""

from __future__ import annotations

import lightning as L

from interstack.commands.monitors import check_monitors
from interstack.data.datamodule import SpeechDataModule
from interstack.data.global_batch import check_accumulation
from interstack.distillation.averaging import check_callbacks
from interstack.distillation.module import Distillation
from interstack.distillation.precision import check_precision_option
from interstack.growth.callback import InterleavedStacking
from interstack.growth.progress import run_length


def check_run(
    trainer: L.Trainer,
    module: Distillation,
    datamodule: SpeechDataModule,
    growth: InterleavedStacking,
) -> None:
    """Refuse a fit that would be refused later, when an earlier run has been moved aside for it.

    Args:
        trainer: With the callbacks of the run.
        module: Not set up.
        datamodule: Not set up.
        growth: The callback that will grow the student.

    Raises:
        ConfigurationError: If callbacks, accumulation, stages or options contradict each other, or
            have no effect.
    """
    check_callbacks(trainer)
    check_monitors(trainer, module.teacher_config.taps)
    check_accumulation(trainer, datamodule.global_batch_seconds)
    growth.record(run_length(trainer), trial=bool(vars(trainer).get("fast_dev_run")))
    check_precision_option(trainer, module, cached=datamodule.target_cache is not None)
