"""A training step between two intervals of the loggers never makes the processor wait for a GPU.

There is none here, so what would make it wait is counted where it is asked for: reading a value out
of a tensor, operations whose result's size depends on values, and making a tensor on the device
from a number, which is a copy that waits.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interstack.checkpointing.callback import Checkpoints
from interstack.distillation.module import Distillation
from interstack.distillation.objective import ObjectiveConfig, ObjectiveKind
from interstack.models.config import FrontEnd, TeacherConfig
from interstack.tracking.dashboard import Dashboard
from interstack.tracking.progress_bar import StageProgressBar
from interstack.tracking.stages import StageRecorder
from tests.distillation.small_runs import SMALL, make_trainer, small_student, training_batches
from tests.distillation.spoilt_runs import train

WAITING: Final = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}
"""Operations of torch that have to know values."""
READING: Final = ("tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "item")
MAKING: Final = ("tensor", "as_tensor")
OWN_CLOCK: Final = ("progress_bar.py", "agreement.py")
"""Read when something is shown, twice a second at most; talk between processors alone."""


class Waits(TorchDispatchMode):
    """Notes who asks for what would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def note(self, what: str) -> None:
        """Add the innermost place outside torch that asks for it."""
        frames = traceback.extract_stack()[:-2]
        if any(Path(frame.filename).name in OWN_CLOCK for frame in frames):
            return
        asks = [frame for frame in frames if "/torch/" not in frame.filename]
        self.seen.append(f"{what} in {asks[-1].filename}:{asks[-1].lineno}")

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Note an operation, and do it."""
        if func.overloadpacket.__name__ in WAITING:
            self.note(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@contextmanager
def waits() -> Iterator[Waits]:
    """Watch what is asked of tensors."""

    def watched(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, torch's
            if name not in MAKING or kwargs.get("device") is not None:
                seen.note(name)
            return ask(*args, **kwargs)

        return asked

    with pytest.MonkeyPatch.context() as patch, Waits() as seen:
        for name in READING:
            patch.setattr(Tensor, name, watched(name, getattr(Tensor, name)))
        for name in MAKING:
            patch.setattr(torch, name, watched(name, getattr(torch, name)))
        yield seen


class Watch(L.Callback):
    """Watches whole steps, from the start of one batch to that of the next one."""

    def __init__(self) -> None:
        self.by_step: dict[int, list[str]] = {}
        self._watching = ExitStack()
        self._step = 0
        self._seen: list[str] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        """End with the batch before, and begin."""
        self._end()
        self._seen = self._watching.enter_context(waits()).seen
        self._step = trainer.global_step

    def on_train_end(self, *_: object) -> None:
        """End."""
        self._end()

    def _end(self) -> None:
        self._watching.close()
        self.by_step.setdefault(self._step, []).extend(self._seen)


def run(
    module: Distillation, directory: Path, every: int = 4, accumulate: int = 1
) -> dict[int, list[str]]:
    """Train for 8 steps with all that a run has; return what would wait at each step."""
    module.non_finite.patience = 32  # as on a GPU
    watch = Watch()
    trainer = make_trainer(
        watch,
        StageProgressBar(),
        StageRecorder(),
        Dashboard(),
        Checkpoints(dirpath=str(directory / "checkpoints")),
        depths=(2,),
        max_steps=8,
        logger=CSVLogger(directory, name="", version=""),
        log_every_n_steps=every,
        enable_progress_bar=True,
        enable_checkpointing=True,
        default_root_dir=directory,
        gradient_clip_val=1.0,
        accumulate_grad_batches=accumulate,
    )
    train(trainer, module, training_batches(8 * accumulate))
    return watch.by_step


@pytest.mark.parametrize(
    ("kind", "front_end", "accumulate"),
    [
        ("mse", "own", 2),
        ("distilhubert", "own", 1),
        ("mse", "shared", 1),
        ("distilhubert", "shared", 1),
    ],
)
def test_no_step_waits_for_the_device(
    kind: ObjectiveKind,
    front_end: FrontEnd,
    accumulate: int,
    teacher_directory: Path,
    tmp_path: Path,
) -> None:
    """But those whose losses are logged: there they are looked at."""
    student = small_student(front_end=front_end)
    objective = ObjectiveConfig(kind=kind, target_norm="layer_norm")
    teacher = TeacherConfig(str(teacher_directory), (2, 4))
    module = Distillation(teacher, student, objective, initial_depth=2)
    seen = run(module, tmp_path, accumulate=accumulate)
    assert list(seen) == list(range(8))
    assert [step for step, asked in seen.items() if asked] == [3, 7], seen


def test_skipping_has_to_wait(teacher_directory: Path, tmp_path: Path) -> None:
    """As is said in its documentation; and the counting here counts."""
    teacher = TeacherConfig(str(teacher_directory), (2, 4))
    module = Distillation(teacher, SMALL, initial_depth=2, non_finite="skip")
    assert all(run(module, tmp_path).values())
