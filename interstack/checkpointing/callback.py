"""Lightning's question, at each step of each rank, whether rank 0 has received SIGTERM."""

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


def spare_stop_broadcast(trainer: L.Trainer) -> None:
    """Let a Trainer not ask, because the ranks agree on signals over their processors.

    It asks by a broadcast between the devices, and waits at once for the answer: for all that each
    device has still to do. Its answer would always be no: while a run trains, the signal is
    noted by `StopRequest`, and Lightning's handler, which sets what is asked for, is replaced.

    Args:
        trainer: One whose ranks agree by `Agreement` at every step.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = _nothing


def _nothing() -> None:
    """Nothing to ask."""


log = logging.getLogger(__name__)

RUN_KEY = "interstack_run"
"""Of what is added to a checkpoint: ``position``, ``world_size``, ``split`` (of a global batch) and
``random_states``."""


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` now and then, and ``stage-N.ckpt`` at the end of every stage.

    A checkpoint is written between two optimizer steps only, in one form whichever hook it comes
    from, and with the random states of all ranks, so a run that goes on from it ends bit by bit as
    one that was never cut. It is there whole or not at all; when the disk is full, the last good
    one stays and training goes on.

    SIGTERM, SIGUSR1 (a SLURM job's warning of its end) and Ctrl-C end the run after the step that
    is going on, on all ranks alike, with a checkpoint. So does data that can't be read.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; null: as ``every_minutes`` says.
        every_minutes: Minutes between two checkpoints; null: as ``every_n_steps`` says.
        stage_ends: Keep a checkpoint of the end of every stage.
        dirpath: Where they go; null: ``checkpoints`` in the run's directory.

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
                raise ConfigurationError(f"checkpoint.{name} {value} has to be above 0, or null")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.stage_ends = stage_ends
        self.dirpath = dirpath
        self._stop = StopRequest()
        self._agreement = Agreement()
        self._writer: CheckpointWriter | None = None
        self._saved_step = 0
        self._saved_at = 0.0
        self._restarted: list[dict[str, Any]] | None = None
        self._align = False
        self._training = False
        self._between_steps = False
        self._window_random_state: dict[str, Any] | None = None
        self._loader_states: list[Any] = []

    # The run's beginning ------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the directory, and let checkpoints be written whole."""
        del pl_module
        if stage != "fit":
            return
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # nobody chose another one
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        directory = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        self._writer = CheckpointWriter(directory, self._agreement)
        if trainer.is_global_zero:
            with write_errors(
                directory, "free space on its disk, or give another checkpoint.dirpath"
            ):
                directory.mkdir(parents=True, exist_ok=True)
                remove_parts(directory)
                try_writing(directory)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up random states, and the place in the epoch if batches are others now."""
        del pl_module
        run = checkpoint.get(RUN_KEY)
        if run is None or trainer.state.fn != "fit":
            return
        self._restarted = run["random_states"]
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
            "so does the order of the data, and dropout alone draws other numbers"
            if datamodule.same_epochs(run["world_size"], saved_split)
            else "the order of the data does not"
        )
        log.warning(
            "the run was saved on %d ranks and goes on on %d: weights, optimizer and schedule go "
            "on as they were; %s; the present epoch goes on at batch %d of %d",
            *(run["world_size"], trainer.world_size, order, done, now),
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the random states, now that nothing before the first batch draws from them."""
        self._stop.install()
        spare_stop_broadcast(trainer)
        self._training = True
        self._between_steps = False
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        self._align = self._restarted is not None
        self._loader_states = [] if self._restarted is None else loader_states(trainer)
        if self._restarted is not None:
            # a scheduler sets it when an epoch starts, which a resumed epoch does not
            window = accumulated_batches(trainer, trainer.current_epoch)
            trainer.accumulate_grad_batches = window
            states, self._restarted = self._restarted, None
            restore_random_state(states[trainer.global_rank % len(states)], pl_module.device)

    @property
    def writer(self) -> CheckpointWriter:
        """What writes; there after ``setup`` for a fit."""
        assert self._writer is not None
        return self._writer

    # When ---------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Save, or save and stop, where one of the ranks has reason to."""
        del batch
        self._between_steps = False
        in_window = batch_idx % trainer.accumulate_grad_batches != 0
        if self._align and not in_window:
            align_logging_step(trainer)
            self._align = False
        # At every batch, for a rank whose data fails in a window of accumulated gradients waits.
        stop, failed, due = self._agreement.any(
            [self._stop.received is not None, False, not in_window and self._is_due(trainer)]
        )
        if failed:
            self._save(trainer)
            raise InterstackError("another rank could not go on, and says why")
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
        """Nothing: what has just grown has learnt nothing yet."""

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Remember that a step is done, and where loaders that are not ours stand then."""
        del pl_module, outputs, batch
        self._between_steps = True
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._loader_states = loader_states(trainer)

    def on_train_epoch_start(self, *_args: object) -> None:
        """Forget where loaders stood: they begin again."""
        self._loader_states = []

    def on_validation_start(self, *_args: object) -> None:
        """Remember that the run is in a validation."""
        self._between_steps = False

    def on_validation_end(self, *_args: object) -> None:
        """Remember that it is over."""
        self._between_steps = self._training

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of the run, which is that of its last stage."""
        self._between_steps = False
        if self.stage_ends:
            self.writer.save_surely(trainer, _stage_name(trainer, pl_module))
        else:
            self.writer.save_surely(trainer)
        self._training = False
        self._stop.uninstall()
        self.writer.finish_records()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save what is done where the run broke off between two steps, as bad data makes it."""
        del pl_module
        self._stop.uninstall()
        saves = self._training and self._between_steps and isinstance(exception, Exception)
        self._training = False
        if not saves:
            return
        if trainer.world_size > 1:
            if not isinstance(exception, DataError):
                return
            # The other ranks have their batch, and ask at its start whether all can go on.
            self._agreement.any([False, True, False])
        self._save(trainer)
        if self._stop.received is not None:
            self._interrupt(trainer)  # the signal has reached the decoding workers too

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
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
        number = self._stop.received or signal.SIGTERM  # another rank has got it
        self._training = False
        raise RunInterrupted(
            f"stopped by {number.name} after step {trainer.global_step}: all of it is in "
            f"{self.writer.last}; the same command with --ckpt_path last goes on from there",
            number,
        )

    # How ----------------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring the loops to the start of the next step, and add all ranks' random states."""
        loops, window = checkpoint["loops"], trainer.accumulate_grad_batches
        own_state = random_state(pl_module.device)
        if batches_of_cut_window(loops, trainer.num_training_batches, window):
            own_state = self._window_random_state or own_state
        set_loader_states(loops, self._loader_states)
        position = settle_position(loops, trainer.num_training_batches, window)
        states: list[Any] = [own_state]
        if trainer.world_size > 1:
            own, states = states[0], [None] * trainer.world_size
            distributed.all_gather_object(states, own)
        checkpoint[RUN_KEY] = {
            "position": position._asdict(),
            "world_size": trainer.world_size,
            "split": _split_of(getattr(trainer, "datamodule", None)),
            "random_states": states,
        }

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
