"""The loss with a cache is the loss without, on real speech."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal

import pytest
import torch

from interstack.cli import main
from interstack.data import LibriSpeechFolder, SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.distillation.objective import ObjectiveConfig
from interstack.models.config import StudentConfig, TeacherConfig
from interstack.models.teacher import Teacher
from tests.target_cache.cached_runs import MAX_SECONDS, SPEECH, cache, fit, losses

STUDENT: Final = StudentConfig(
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    dropout=0.0,
)
OWN_SHAPE: Final[dict[str, Any]] = {"conv_dim": (8,) * 7}


def losses_by_tap(
    teacher: Path, front_end: Literal["own", "copy", "shared"], target_cache: Path | None
) -> list[torch.Tensor]:
    """The sums of the loss of three training batches, by tap."""
    datamodule = SpeechDataModule(
        LibriSpeechFolder(SPEECH),
        batch_seconds=8.0,
        max_seconds=MAX_SECONDS,
        crop="fixed",
        num_workers=0,
        target_cache=None if target_cache is None else str(target_cache),
    )
    datamodule.setup("fit")
    torch.manual_seed(0)
    module = Distillation(
        TeacherConfig(str(teacher), (2, 4)),
        replace(STUDENT, front_end=front_end, **OWN_SHAPE if front_end == "own" else {}),
        ObjectiveConfig(target_norm="layer_norm"),
        initial_depth=2,
    )
    trainer: Any = SimpleNamespace(precision="32-true", datamodule=datamodule)
    module._trainer = trainer
    module.setup("fit")
    module.eval()
    with torch.no_grad():
        batches = [batch for batch, _ in zip(datamodule.train_dataloader(), range(3), strict=False)]
        return [module.batch_loss(batch).sums.by_tap for batch in batches]


@pytest.mark.parametrize("front_end", ["own", "copy", "shared"])
def test_a_float32_cache_gives_the_same_loss(
    front_end: Literal["own", "copy", "shared"], exact_cache: Path, teacher_directory: Path
) -> None:
    """Up to the rounding with which batches of other make-up are summed."""
    live = losses_by_tap(teacher_directory, front_end, None)
    cached = losses_by_tap(teacher_directory, front_end, exact_cache)
    torch.testing.assert_close(cached, live, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float16", 1e-4), ("bfloat16", 2e-3), ("int8", 2e-2)]
)
def test_smaller_formats_give_the_loss_within_their_bound(
    dtype: str, bound: float, tmp_path: Path, teacher_directory: Path
) -> None:
    """The bounds that the README states, on a teacher with random weights."""
    assert cache(tmp_path / dtype, teacher_directory, f"--dtype={dtype}") == 0
    live = losses_by_tap(teacher_directory, "shared", None)
    cached = losses_by_tap(teacher_directory, "shared", tmp_path / dtype)
    torch.testing.assert_close(cached, live, rtol=bound, atol=0)


def test_a_run_with_a_cache_is_the_run_without_and_loads_no_teacher(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps, a growth among them, and validations; then the checkpoint is validated."""
    assert fit(tmp_path / "live", teacher_directory) == 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr(Teacher, "__init__", refuse)
    cached = tmp_path / "cached"
    assert fit(cached, teacher_directory, f"--data.target_cache={exact_cache}") == 0
    live, recalled = losses(tmp_path / "live"), losses(cached)
    assert len(live["train/loss"]) == 4
    assert live.keys() == recalled.keys()
    for name, values in live.items():
        assert recalled[name] == pytest.approx(values, rel=1e-5), name
    assert main(["validate", "--ckpt_path", str(cached / "checkpoints" / "last.ckpt")]) == 0


def test_without_the_teachers_files_its_name_has_to_be_the_caches(
    exact_cache: Path,
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A cluster that only has the cache can train; another teacher's name is refused."""
    target_cache = f"--data.target_cache={exact_cache}"
    gone = tmp_path / "another"
    assert fit(tmp_path / "run", gone, target_cache) == 2
    assert "another" in capsys.readouterr().err
    moved = teacher_directory.rename(teacher_directory.with_name("moved"))
    try:
        assert fit(tmp_path / "run", teacher_directory, target_cache) == 0
    finally:
        moved.rename(teacher_directory)
