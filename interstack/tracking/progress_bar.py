"""When a growing run will end: from the pace of the depths that it has had, to those to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.growth.callback import growth_of, lineage_of
from interstack.growth.plan import GrowthPlan
from interstack.growth.schedule import Stage
from interstack.tracking.meters import AudioMeter, Clock, Throughput
from interstack.tracking.metrics import step_flops
from interstack.tracking.position import run_position, stage_number, stages_left
from interstack.utils.progress import Display, Reading, RunPosition, open_display
from interstack.utils.units import format_duration

Cost = Callable[[int], float]


class TimeLeft(NamedTuple):
    """Seconds until the stage ends, and until the run does."""

    stage: float
    run: float


class Outlook:
    """Learns each depth's pace while it trains, and foretells the rest of the run.

    Depths that have not been yet are taken to lie on the line through the two deepest that have; as
    long as there is only one, their pace is taken to go with their arithmetic. A pace includes the
    validations of its stage.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._paces: dict[int, float] = {}  # seconds for a whole run, by depth
        self._begin: tuple[float, float] | None = None  # time, and share of the run that was done

    def interrupt(self) -> None:
        """Begin a stretch: what comes now is no training, or training at another depth."""
        self._begin = None

    def look(self, depth: int, done: float) -> None:
        """Note where the run is; to be called after each step.

        Args:
            depth: The student's.
            done: Share of the run that is done.
        """
        now = self._clock()
        if self._begin is None:
            self._begin = now, done
            return
        begun_at, done_then = self._begin
        if done > done_then:
            self._paces[depth] = (now - begun_at) / (done - done_then)

    def time_left(self, done: float, stages: Sequence[Stage], cost: Cost) -> TimeLeft | None:
        """Return how long the stage and the whole run will still take.

        Args:
            done: Share of the run that is done.
            stages: The one that goes on, and those to come.
            cost: Returns the arithmetic of a step at a depth.

        Returns:
            Seconds; None as long as nothing is known.
        """
        if not self._paces:
            return None
        shares = [max(0.0, stage.end - max(done, stage.start)) for stage in stages]
        seconds = [
            share * self._pace(stage.depth, cost)
            for share, stage in zip(shares, stages, strict=True)
        ]
        return TimeLeft(seconds[0], sum(seconds))

    def _pace(self, depth: int, cost: Cost) -> float:
        if depth in self._paces:
            return self._paces[depth]
        deepest = max(self._paces)
        known = self._paces[deepest]
        if len(self._paces) == 1:
            return known * cost(depth) / cost(deepest)
        shallower = sorted(self._paces)[-2]
        slope = (known - self._paces[shallower]) / (deepest - shallower)
        return known + max(0.0, slope) * (depth - deepest)


class StageProgressBar(ProgressBar):
    """Shows stage, depth, loss and seconds of audio a second, and announces growth.

    On a terminal it is a bar; elsewhere a line without control codes, now and then. It is built on
    Lightning's base class, since ``RichProgressBar`` and ``TQDMProgressBar`` begin anew every
    epoch. The device is waited for only when something is shown.

    Args:
        refresh_seconds: Seconds between two looks of the bar on a terminal.
        line_seconds: Seconds between two lines elsewhere.
    """

    def __init__(self, refresh_seconds: float = 0.5, line_seconds: float = 60.0) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self.line_seconds = line_seconds
        self._enabled = True
        self._display: Display | None = None
        self._audio = AudioMeter()
        self._throughput = Throughput()
        self._outlook = Outlook()
        self._rate: float | None = None
        self._done = 0

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: object, **kwargs: object) -> None:
        """Print a line without breaking the bar."""
        if self._display is None:
            super().print(*args, **kwargs)
        else:
            self._display.print(" ".join(str(arg) for arg in args))

    # Training -----------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show where the run begins."""
        self._outlook = Outlook()
        self._throughput.interrupt()
        self._show(self._training_reading(trainer, pl_module))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count the audio, and show how things stand if it is time to."""
        del outputs, batch_idx
        self._audio.add(batch, trainer.world_size)
        done = run_position(trainer).share
        if done is not None:
            self._outlook.look(len(lineage_of(trainer, pl_module)), done)
        is_due = self._is_due()
        if self._enabled and (is_due or self._throughput.is_idle):
            self._rate = self._throughput.update(self._audio.take().seconds) or self._rate
        if is_due:
            self._show(self._training_reading(trainer, pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say why the bar stands still."""
        self._done = 0
        self._throughput.interrupt()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._pause(trainer, pl_module, "validating")

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say why the bar stands still."""
        self._outlook.interrupt()
        self._throughput.interrupt()
        self._pause(trainer, pl_module, "growing")

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Announce the growth, with the first ancestor of every layer."""
        self._rate = None
        growth = growth_of(trainer)
        by = "" if growth is None else f" by {growth.operator_name}"
        lineage = " ".join(str(ancestor + 1) for ancestor in lineage_of(trainer, pl_module))
        if self._enabled:
            self._open().print(
                f"step {trainer.global_step}: grown from {plan.old_depth} to {plan.depth} layers"
                f"{by}, {lineage}"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show where the run ended."""
        self._show(self._training_reading(trainer, pl_module))
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        del trainer, pl_module, exception
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        del trainer, pl_module, stage
        self._close()

    def _pause(self, trainer: L.Trainer, pl_module: L.LightningModule, reason: str) -> None:
        if self._enabled and self._open().is_live:
            reading = self._training_reading(trainer, pl_module)
            self._show(reading._replace(figures=(reason,), left=()))

    def _training_reading(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Reading:
        depth = len(lineage_of(trainer, pl_module))
        number, total = stage_number(trainer, depth)
        figures = []
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            figures.append(f"loss {float(loss):.4f}")
        if self._rate is not None:
            digits = 0 if self._rate >= 10 else 1
            figures.append(f"{self._rate:,.{digits}f} s of audio/s")
        title = (f"stage {number}/{total}", f"depth {depth}")
        left = self._time_left(trainer, pl_module, grows=number < total)
        return Reading(title, run_position(trainer), tuple(figures), left)

    def _time_left(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, grows: bool
    ) -> tuple[str, ...]:
        """Say when the stage and the run will end; nothing at either end of the run."""
        done = run_position(trainer).share
        if done is None or done >= 1:
            return ()
        stages = stages_left(trainer, len(lineage_of(trainer, pl_module)))
        cost = partial(step_flops, pl_module) if isinstance(pl_module, Distillation) else _alike
        left = self._outlook.time_left(done, stages, cost)
        if left is None:
            return ()
        ends = f"ends in {format_duration(left.run, compact=True)}"
        return (f"grows in {format_duration(left.stage, compact=True)}", ends) if grows else (ends,)

    # Validation, test and prediction on their own -----------------------------------------------

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        del trainer, pl_module
        self._done = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        del trainer, pl_module
        self._done = 0

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far the validation is, unless it is only a part of training."""
        del pl_module, outputs, batch, batch_idx, dataloader_idx
        if trainer.state.fn != "fit":
            self._count("validation", trainer.num_val_batches)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far the test is."""
        del pl_module, outputs, batch, batch_idx, dataloader_idx
        self._count("test", trainer.num_test_batches)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far the prediction is."""
        del pl_module, outputs, batch, batch_idx, dataloader_idx
        self._count("prediction", trainer.num_predict_batches)

    def _count(self, title: str, batches: Sequence[int | float]) -> None:
        self._done += 1
        total = sum(batches)
        known = total != float("inf")
        if self._enabled:
            position = RunPosition(self._done, int(total) if known else None, "batch")
            self._open().update(Reading((title,), position))

    # Display ------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        return self._enabled and self._open().is_due

    def _show(self, reading: Reading) -> None:
        if self._enabled:
            self._open().show(reading)

    def _open(self) -> Display:
        if self._display is None:
            self._display = open_display(self.refresh_seconds, self.line_seconds)
        return self._display

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None


def _alike(depth: int) -> float:
    """Take all depths to cost the same, where nothing is known of them."""
    del depth
    return 1.0
