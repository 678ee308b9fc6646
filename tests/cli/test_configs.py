"""Every shipped configuration is parsed and instantiated, alone and under every overlay."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from interstack.commands.lightning import InterstackCLI, run_lightning
from tests import REPOSITORY

CONFIGS = REPOSITORY / "configs"
DEBUG = CONFIGS / "debug.yaml"
BASES = sorted({*CONFIGS.glob("*.yaml")} - {DEBUG})
FOLDERS = ("experiment", "logger", "rivals", "scales")
"""Of overlays; files of ``sweeps`` are none."""
OVERLAYS = [DEBUG, *(path for name in FOLDERS for path in sorted((CONFIGS / name).glob("*.yaml")))]


def instantiate(*configs: Path) -> InterstackCLI:
    """Parse and instantiate as the command line does, without running anything."""
    return run_lightning([f"--config={config}" for config in configs], run=False)


@pytest.mark.parametrize("base", BASES, ids=lambda path: path.stem)
def test_a_base_configuration_stands_alone(base: Path) -> None:
    """Trainer, model, growth and data are made without a download."""
    cli = instantiate(base)
    assert cli.model.initial_depth == cli.config.growth.depths[0]
    assert cli.datamodule.source is not None


@pytest.mark.parametrize(
    ("base", "overlay"),
    list(product(BASES, OVERLAYS)),
    ids=lambda path: path.stem,
)
def test_an_overlay_changes_its_own_keys_and_no_other(base: Path, overlay: Path) -> None:
    """What an overlay says holds; all else is the base's."""
    plain, laid_over = instantiate(base).config, instantiate(base, overlay).config
    take_over(plain, laid_over, yaml.safe_load(overlay.read_text()))
    del plain["config"], laid_over["config"]
    plain.model.initial_depth = laid_over.model.initial_depth
    assert laid_over == plain


def take_over(plain: Namespace, laid_over: Namespace, changes: dict[str, Any]) -> None:
    """Hold an overlay's keys to what it says, and set them in the base's configuration."""
    for key, value in changes.items():
        if isinstance(value, dict):
            take_over(plain[key], laid_over[key], value)
        else:
            assert_says(laid_over[key], value)
            plain[key] = laid_over[key]


def assert_says(got: Any, value: Any) -> None:  # noqa: ANN401, values of configurations
    """Compare a parsed value with a file's; classes have their module and defaults beside it."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "class_path":
                assert got[key].rpartition(".")[2] == each
            else:
                assert_says(got[key], each)
    elif isinstance(value, list):
        for one, each in zip(got, value, strict=True):
            assert_says(one, each)
    else:
        assert got == value


def test_every_configuration_is_among_those_that_are_tested() -> None:
    """A folder of overlays that nobody names here would rot."""
    folders = {path.parent.name for path in CONFIGS.glob("*/*.yaml")}
    assert folders == {*FOLDERS, "sweeps"}  # sweeps are tested with the command of that name


def test_debugging_leaves_nothing_to_loggers_and_workers() -> None:
    """Over the paper's recipe, whose epochs and global batch give way to a few steps."""
    cli = instantiate(CONFIGS / "hubert_base_ls960.yaml", DEBUG)
    assert (cli.trainer.max_steps, cli.trainer.max_epochs) == (12, None)
    assert cli.trainer.loggers == []
    assert cli.trainer._detect_anomaly
    assert (cli.datamodule.num_workers, cli.datamodule.split) == (0, None)


@pytest.mark.parametrize("name", ["hubert_base_ls100", "hubert_base_ls960"])
def test_the_paper_s_batch_is_the_same_on_any_number_of_gpus(name: str) -> None:
    """64 utterances of LibriSpeech's mean length: on 1, 2, 4 and 8 the same batches, too."""
    data = instantiate(CONFIGS / f"{name}.yaml").datamodule
    assert data.global_batch_seconds == 787
    for world_size in (1, 2, 4, 8):
        data.planned_world_size = world_size
        assert data.split is not None
        assert data.split.slots == 8
        assert data.split.seconds >= data.max_seconds


def test_the_paper_s_recipe_is_what_the_paper_says() -> None:
    """Published values: student, optimizer, loss and stages (arXiv 2606.11766)."""
    config = instantiate(CONFIGS / "hubert_base_ls960.yaml").config
    student = config.model.student
    assert (student.hidden_size, student.intermediate_size) == (384, 1536)
    assert student.num_attention_heads == 8
    assert (student.num_conv_pos_embeddings, student.num_conv_pos_embedding_groups) == (128, 16)
    optimizer = config.model.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (5e-4, 1e-4)
    assert (optimizer.warmup, optimizer.decay) == (0.07, "linear")
    assert config.model.objective.intermediate_weight == 0.5
    assert config.trainer.max_epochs == 75
    assert (config.growth.operator, list(config.growth.depths)) == ("interleave", [3, 6, 9, 12])
    hours_960 = ["train-clean-100", "train-clean-360", "train-other-500"]
    assert config.data.source.init_args.train == hours_960
