"""A tiny teacher, a little real speech, and what makes runs of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import HubertConfig, HubertModel

from interstack.data.datamodule import SpeechDataModule
from interstack.data.folder import LibriSpeechFolder
from interstack.distillation.module import Distillation
from interstack.growth.callback import InterleavedStacking
from interstack.models.config import StudentConfig, TeacherConfig
from tests.target_cache.cached_runs import fit
from tests.tracking.logged_runs import LOGGED
from tests.tracking.tracked_runs import (
    CONV_DIM,
    DEPTHS,
    EPOCH_BATCHES,
    NUM_STEPS,
    SPEECH,
    MakeRun,
    Run,
)


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random HuBERT of 4 layers × 16 in Hugging Face's format."""
    directory = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=CONV_DIM,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def logged_run(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """A finished run of the command line with all loggers."""
    directory = tmp_path_factory.mktemp("runs") / "logged"
    assert fit(directory, teacher_directory, *LOGGED) == 0
    return directory


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the shortest clips of the embedded speech, in LibriSpeech layout."""
    root = tmp_path_factory.mktemp("corpus")
    for split, num_clips in (("train-clean-100", 8), ("dev-clean", 4)):
        clips = sorted((SPEECH / split).rglob("*.flac"), key=lambda clip: clip.stat().st_size)
        for clip in clips[:num_clips]:
            copy = root / "LibriSpeech" / clip.relative_to(SPEECH)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, copy)
    return root


@pytest.fixture
def make_run(tmp_path: Path, teacher_dir: Path, corpus_dir: Path) -> MakeRun:
    """Make a run of 9 steps that grows from 2 to 3 and 4 layers; its directory is ``tmp_path``."""

    def make(
        callbacks: Sequence[L.Callback] = (),
        *,
        data_class: type[SpeechDataModule] = SpeechDataModule,
        dropout: float = 0.1,
        **trainer_settings: Any,  # noqa: ANN401, whatever the Trainer takes
    ) -> Run:
        L.seed_everything(1, verbose=False)
        student = StudentConfig(
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
            conv_dim=CONV_DIM,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            dropout=dropout,
        )
        module = Distillation(
            TeacherConfig(str(teacher_dir), taps=(2, 4)), student, initial_depth=DEPTHS[0]
        )
        data = data_class(LibriSpeechFolder(corpus_dir), batch_seconds=4.0, num_workers=0)
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": NUM_STEPS,
            "limit_train_batches": EPOCH_BATCHES,
            "check_val_every_n_epoch": 1,
            "num_sanity_val_steps": 0,
            "reload_dataloaders_every_n_epochs": 1,
            "use_distributed_sampler": False,
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        if not any(isinstance(callback, L.pytorch.callbacks.ProgressBar) for callback in callbacks):
            settings["enable_progress_bar"] = False
        settings |= trainer_settings
        trainer = L.Trainer(callbacks=[*callbacks, InterleavedStacking(DEPTHS)], **settings)
        return Run(trainer, module, data)

    return make
