"""The progress bar of a growing run, and the estimate of when the run will end."""

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
from interstack.tracking.flops import training_flops
from interstack.tracking.meters import AudioMeter, Clock, Throughput
from interstack.tracking.position import run_position, stage_number, stages_left
from interstack.utils.progress import Display, Reading, RunPosition, open_display
from interstack.utils.units import format_duration

Cost = Callable[[int], float]
"""Returns the arithmetic of training at a depth, in any unit."""


class Eta(NamedTuple):
    """Seconds until the stage ends, and until the run does."""

    stage: float
    run: float


class EtaEstimator:
    """Measures each depth's pace while it trains, and predicts when a growing run will end.

    Depths still to come are taken to lie on the line through the two deepest so far; as long as
    there is only one, their pace is taken to be proportional to their arithmetic. A pace includes
    the validations of its stage.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._paces: dict[int, float] = {}  # seconds for a whole run, by depth
        self._begin: tuple[float, float] | None = None  # time, and share of the run that was done

    def interrupt(self) -> None:
        """Start a new stretch, at another depth."""
        self._begin = None

    def update(self, depth: int, done: float) -> None:
        """Note where the run is after a step.

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

    def estimate(self, done: float, stages: Sequence[Stage], cost: Cost) -> Eta | None:
        """Return how long the stage and the whole run will still take; None before a first pace.

        Args:
            done: Share of the run that is done.
            stages: The present one, and those to come.
            cost: Returns the arithmetic at a depth.
        """
        if not self._paces:
            return None
        seconds = [
            max(0.0, stage.end - max(done, stage.start)) * self._pace(stage.depth, cost)
            for stage in stages
        ]
        return Eta(seconds[0], sum(seconds))

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
    Lightning's base class, since ``RichProgressBar`` and ``TQDMProgressBar`` restart every epoch.
    The device is waited for only when something is shown.

    Args:
        refresh_seconds: Seconds between two updates of the bar on a terminal.
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
        self._eta = EtaEstimator()
        self._rate: float | None = None
        self._done = 0  # batches of a validation, test or prediction

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
        """Show the position at which the run starts."""
        self._eta = EtaEstimator()
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
        """Count the audio, and show the position if that is due."""
        del outputs, batch_idx
        self._audio.add(batch)  # this rank's: the stages count all of it, by a collective
        done = run_position(trainer).share
        if done is not None:
            self._eta.update(len(lineage_of(trainer, pl_module)), done)
        is_due = self._is_due()
        if self._enabled and (is_due or self._throughput.is_idle):
            seconds = self._audio.take().seconds * trainer.world_size  # ranks get equal shares
            self._rate = self._throughput.update(seconds) or self._rate
        if is_due:
            self._show(self._training_reading(trainer, pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show why the bar stands still."""
        self._done = 0
        self._throughput.interrupt()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._pause(trainer, pl_module, "validating")

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show why the bar stands still."""
        self._eta.interrupt()
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
        """Show the position at which the run has ended."""
        self._show(self._training_reading(trainer, pl_module))
        self._close()

    def on_exception(self, *_: object, **__: object) -> None:
        """Give the terminal back."""
        self._close()

    def teardown(self, *_: object, **__: object) -> None:
        """Give the terminal back."""
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
        """Return in words when stage and run will end; nothing at either end of the run."""
        done = run_position(trainer).share
        if done is None or done >= 1:
            return ()
        stages = stages_left(trainer, len(lineage_of(trainer, pl_module)))
        left = self._eta.estimate(done, stages, _cost_of(pl_module))
        if left is None:
            return ()
        ends = f"ends in {format_duration(left.run, compact=True)}"
        return (f"grows in {format_duration(left.stage, compact=True)}", ends) if grows else (ends,)

    # Validation, test and prediction on their own -----------------------------------------------

    def on_test_start(self, *_: object, **__: object) -> None:
        """Restart the count."""
        self._done = 0

    def on_predict_start(self, *_: object, **__: object) -> None:
        """Restart the count."""
        self._done = 0

    def on_validation_batch_end(self, trainer: L.Trainer, *_: object, **__: object) -> None:
        """Show how far the validation is, unless it is only a part of training."""
        if trainer.state.fn != "fit":
            self._count("validation", trainer.num_val_batches)

    def on_test_batch_end(self, trainer: L.Trainer, *_: object, **__: object) -> None:
        """Show how far the test is."""
        self._count("test", trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: L.Trainer, *_: object, **__: object) -> None:
        """Show how far the prediction is."""
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


def _cost_of(module: L.LightningModule) -> Cost:
    """Return what training costs by depth; the same at all where nothing is known of it."""
    return partial(training_flops, module) if isinstance(module, Distillation) else lambda _: 1.0
