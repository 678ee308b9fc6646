"""The callback that saves checkpoints at exact points of a run, and stops it on a signal."""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed

from interstack.checkpointing.loop_state import (
    Position,
    align_logging_step,
    batches_of_cut_window,
    loader_states,
    rescale_position,
    set_loader_states,
    settle_position,
)
from interstack.checkpointing.writer import LAST, CheckpointWriter
from interstack.errors import ConfigurationError, DataError, InterstackError, RunInterrupted
from interstack.growth.callback import lineage_of
from interstack.growth.plan import GrowthPlan
from interstack.growth.schedule import accumulated_batches
from interstack.tracking.position import stage_number
from interstack.utils.atomic import AtomicCheckpointIO, remove_parts
from interstack.utils.disk import try_writing, write_errors
from interstack.utils.random_state import random_state, restore_random_state
from interstack.utils.ranks import Agreement
from interstack.utils.signals import StopRequest

log = logging.getLogger(__name__)

RUN_KEY = "interstack_run"
"""Key in a checkpoint of ``position``, ``world_size``, ``split`` (of a global batch) and
``random_states``."""


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` at an interval, and ``stage-N.ckpt`` at the end of every stage.

    A checkpoint is written between two optimizer steps only, in one form whichever hook it comes
    from, and with the random states of all ranks, so a run resumed from it ends bit by bit as one
    that was never interrupted. It is written atomically; when the disk is full, the last good
    checkpoint stays and training continues.

    SIGTERM, SIGUSR1 (a SLURM job's warning of its end) and Ctrl-C end the run after the current
    step, on all ranks alike, with a checkpoint. So does data that can't be read.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; null: as ``every_minutes`` says.
        every_minutes: Minutes between two checkpoints; null: as ``every_n_steps`` says.
        stage_ends: Keep a checkpoint of the end of every stage.
        dirpath: Directory of the checkpoints; null: ``checkpoints`` in the run's directory.

    Raises:
        ConfigurationError: If an interval is not above 0.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_minutes: float | None = 30.0,
        stage_ends: bool = True,
        dirpath: str | None = None,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_minutes", every_minutes)):
            if value is not None and value <= 0:
                raise ConfigurationError(
                    f"checkpoint.{name} is {value}: give a value above 0, or null"
                )
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.stage_ends = stage_ends
        self.dirpath = dirpath
        self._stop = StopRequest()
        self._agreement = Agreement()
        self._writer: CheckpointWriter | None = None
        self._saved_step = 0
        self._saved_at = 0.0
        self._resumed_states: list[dict[str, Any]] | None = None
        self._align_logging = False
        self._training = False
        self._between_steps = False
        self._window_random_state: dict[str, Any] | None = None
        self._loader_states: list[Any] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Prepare the directory and write checkpoints atomically."""
        del pl_module
        if stage != "fit":
            return
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # nobody chose another one
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        directory = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        self._writer = CheckpointWriter(directory, self._agreement)
        if trainer.is_global_zero:
            fix = "free space on its disk, or give another checkpoint.dirpath"
            with write_errors(directory, fix):
                directory.mkdir(parents=True, exist_ok=True)
                remove_parts(directory)
                try_writing(directory)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read random states, and rescale the position in the epoch if the batches differ now."""
        del pl_module
        run = checkpoint.get(RUN_KEY)
        if run is None or trainer.state.fn != "fit":
            return
        self._resumed_states = run["random_states"]
        datamodule: Any = getattr(trainer, "datamodule", None)
        position = Position(**run["position"])
        saved_split = run.get("split")
        same_ranks = run["world_size"] == trainer.world_size
        if datamodule is None or (same_ranks and saved_split == _split_of(datamodule)):
            return
        now = datamodule.num_training_batches(trainer.world_size)
        limit = trainer.limit_train_batches
        now = min(now, limit) if isinstance(limit, int) else int(now * limit)
        done = position.batch
        if done:
            window = accumulated_batches(trainer, position.epoch)
            done = rescale_position(checkpoint["loops"], position, now, window)
        order = (
            "so does the order of the data, and only dropout draws other numbers"
            if datamodule.same_epochs(run["world_size"], saved_split)
            else "the order of the data does not"
        )
        log.warning(
            "the run was saved on %d ranks and continues on %d: weights, optimizer and schedule "
            "continue as they were; %s; the present epoch continues at batch %d of %d",
            *(run["world_size"], trainer.world_size, order, done, now),
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the random states: nothing draws from them between here and the first batch."""
        self._stop.install()
        _disable_stop_broadcast(trainer)
        self._training = True
        self._between_steps = False
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        self._align_logging = self._resumed_states is not None
        self._loader_states = []
        if self._resumed_states is not None:
            self._loader_states = loader_states(trainer)
            # A scheduler sets it at the start of an epoch, a hook that a resumed epoch lacks.
            window = accumulated_batches(trainer, trainer.current_epoch)
            trainer.accumulate_grad_batches = window
            states, self._resumed_states = self._resumed_states, None
            restore_random_state(states[trainer.global_rank % len(states)], pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Save, or save and stop, if any rank needs to."""
        del batch
        self._between_steps = False
        in_window = batch_idx % trainer.accumulate_grad_batches != 0
        if self._align_logging and not in_window:
            align_logging_step(trainer)
            self._align_logging = False
        # At every batch: a rank whose data fails within an accumulation window waits here.
        stop, failed, due = self._agreement.any(
            [self._stop.received is not None, False, not in_window and self._is_due(trainer)]
        )
        if failed:
            self._save(trainer)
            raise InterstackError("another rank has failed: its own message says why")
        if in_window:
            return
        if trainer.accumulate_grad_batches > 1:
            self._window_random_state = random_state(pl_module.device)
        if stop:
            self.writer.save_surely(trainer)
            self._interrupt(trainer)
        if due:
            self._save(trainer)

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of a stage, before the student grows."""
        if self.stage_ends:
            self._save(trainer, _stage_name(trainer, pl_module))

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Save nothing: the new layers have not been trained yet."""

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Note that a step is done, and the states of loaders that are not ours."""
        del pl_module, outputs, batch
        self._between_steps = True
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._loader_states = loader_states(trainer)

    def on_train_epoch_start(self, *_args: object) -> None:
        """Discard the states of loaders: they restart."""
        self._loader_states = []

    def on_validation_start(self, *_args: object) -> None:
        """Note that the run is in a validation, not between steps."""
        self._between_steps = False

    def on_validation_end(self, *_args: object) -> None:
        """Note that the validation is over."""
        self._between_steps = self._training

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of the run, which is the end of its last stage."""
        self._between_steps = False
        name = _stage_name(trainer, pl_module) if self.stage_ends else LAST
        self.writer.save_surely(trainer, name)
        self._training = False
        self._stop.uninstall()
        self.writer.finish_records()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save if the run failed between two steps, as it does on data that can't be read."""
        del pl_module
        self._stop.uninstall()
        saves = self._training and self._between_steps and isinstance(exception, Exception)
        self._training = False
        if not saves:
            return
        if trainer.world_size > 1:
            if not isinstance(exception, DataError):
                return
            # The other ranks have their batch, and vote at its start.
            self._agreement.any([False, True, False])
        self._save(trainer)
        if self._stop.received is not None:
            self._interrupt(trainer)  # the signal ended the decoding workers too

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the earlier signal handlers."""
        del trainer, pl_module, stage
        self._stop.uninstall()

    def _is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        if step == self._saved_step:
            return False
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            return True
        minutes = (time.monotonic() - self._saved_at) / 60
        return self.every_minutes is not None and minutes >= self.every_minutes

    def _interrupt(self, trainer: L.Trainer) -> None:
        number = self._stop.received or signal.SIGTERM  # another rank has received it
        self._training = False
        raise RunInterrupted(
            f"stopped by {number.name} after step {trainer.global_step}: all of it is in "
            f"{self.writer.last}; the same command with --ckpt_path last continues from there",
            number,
        )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Settle the loops at the start of the next step, and add all ranks' random states."""
        loops, window = checkpoint["loops"], trainer.accumulate_grad_batches
        own_state = random_state(pl_module.device)
        if batches_of_cut_window(loops, trainer.num_training_batches, window):
            own_state = self._window_random_state or own_state
        set_loader_states(loops, self._loader_states)
        position = settle_position(loops, trainer.num_training_batches, window)
        states: list[Any] = [own_state] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(states, own_state)
        checkpoint[RUN_KEY] = {
            "position": position._asdict(),
            "world_size": trainer.world_size,
            "split": _split_of(getattr(trainer, "datamodule", None)),
            "random_states": states,
        }

    @property
    def writer(self) -> CheckpointWriter:
        """Writer of the run's checkpoints; set by ``setup`` for a fit."""
        assert self._writer is not None
        return self._writer

    def _save(self, trainer: L.Trainer, name: str = LAST) -> None:
        self.writer.save(trainer, name)
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()


def _split_of(datamodule: object) -> dict[str, float] | None:
    """Return how a data module divides a global batch, as primitives; None if it has none."""
    split = getattr(datamodule, "split", None)
    return None if split is None else asdict(split)


def _stage_name(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    return f"stage-{stage_number(trainer, len(lineage_of(trainer, pl_module))).number}.ckpt"


def _disable_stop_broadcast(trainer: L.Trainer) -> None:
    """Disable Lightning's broadcast, at each step of each rank, of whether rank 0 has got SIGTERM.

    It waits for all queued work of the devices, and its answer would always be no: `StopRequest`
    replaces the handler whose flag it reads, and the ranks agree by `Agreement` on the processors.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None
