"""docs/library.md: its blocks run as written, and what it promises of its three ways holds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import pytest
import torch

from tests import REPOSITORY
from tests.library import killed_text_runs, text_ranks
from tests.library.library_page import Losses, fingerprint

KILLED = (5, 9, 19)
"""Steps after which runs are killed: the last checkpoint is of the step before, 8 just grown."""


def run_module(module: ModuleType, *arguments: object, ranks: int = 0) -> None:
    """Run a module of this folder, on so many ranks."""
    # a command line run by another test leaves its seed there, and Lightning's DDP obeys it
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(torchrun if ranks else []), "-m", module.__name__]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=REPOSITORY,
        env=inherited | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_page_runs_as_it_is_written(page: dict[str, Any]) -> None:
    """All three ways grow to the last depth, and what they have resumed has passed its asserts."""
    assert len(page["grown"].model.encoder.layers) == 6
    assert len(page["resumed"].model.encoder.layers) == 6
    assert page["rest"] == page["losses"][9:]


@pytest.fixture(scope="module")
def whole_run(page: dict[str, Any], directory: Path) -> tuple[L.LightningModule, list[float]]:
    """The run under Lightning that nobody cuts."""
    losses = Losses()
    L.seed_everything(0)
    module = page["TextModule"]()
    with contextlib.chdir(directory):
        page["fit"](module, losses)
    return module, losses.losses


@pytest.fixture(scope="module")
def killed_runs(directory: Path) -> Path:
    """Where the killed runs have left what they had done."""
    runs = directory / "killed"
    runs.mkdir()
    for step in KILLED:
        (runs / f"{step}").mkdir()
        (runs / f"{step}" / "README.md").symlink_to(directory / "README.md")
    run_module(killed_text_runs, runs, *KILLED)
    return runs


@pytest.mark.parametrize("step", KILLED)
def test_a_killed_run_resumes_bitwise(
    step: int,
    page: dict[str, Any],
    whole_run: tuple[L.LightningModule, list[float]],
    killed_runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL in the middle of an epoch, with dropout and a scheduler: losses and weights."""
    monkeypatch.chdir(killed_runs / str(step))
    torch.manual_seed(99)
    module, losses = page["TextModule"](), Losses()
    page["fit"](module, losses, ckpt_path="checkpoints/last.ckpt")
    whole, all_losses = whole_run
    assert losses.losses == all_losses[step - 1 :]
    assert fingerprint(module) == fingerprint(whole)


@pytest.mark.parametrize("stop", [6, 12, 23])
def test_a_stopped_loop_resumes_bitwise(
    stop: int, page: dict[str, Any], in_directory: Path
) -> None:
    """Where a growth step is due, just after one, and at the end."""
    del in_directory
    torch.manual_seed(0)
    page["train"](stop=stop)
    torch.manual_seed(99)
    _, rest = page["train"](resume=True)
    assert rest == page["losses"][stop:]


def test_the_trainer_resumes_where_a_growth_step_is_due(
    page: dict[str, Any], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page resumes just after one."""
    monkeypatch.chdir(directory)
    resumed = page["make_trainer"]()
    resumed.train(resume_from_checkpoint="trainer/checkpoint-8")
    assert fingerprint(resumed.model) == fingerprint(page["whole"].model)
    assert rates(resumed)[8:] == rates(page["whole"])[8:]


def rates(trainer: Any) -> list[float]:  # noqa: ANN401, a Trainer
    """The learning rates that a Trainer has logged."""
    return [each["learning_rate"] for each in trainer.state.log_history if "loss" in each]


def test_the_trainers_learning_rate_goes_on_through_growth(page: dict[str, Any]) -> None:
    """Three steps of warm-up and a linear fall over the whole run, as without growth."""
    rise, fall = [0, 1 / 3, 2 / 3], [left / 21 for left in range(21, 0, -1)]
    assert rates(page["whole"]) == pytest.approx([1e-3 * each for each in rise + fall])


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[dict[str, Any]]:
    """What two ranks saw of their runs."""
    run_module(text_ranks, directory, ranks=2)
    return [json.loads((directory / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("run", ["interleave", "trainer"])
def test_two_ranks_train_as_one_process(
    run: str, page: dict[str, Any], ranks: list[dict[str, Any]], in_directory: Path
) -> None:
    """On the same global batches, through two growth steps."""
    del in_directory
    if run == "trainer":
        one = text_ranks.trainer_run(page, None)
        losses = ranks[0][run]["losses"]  # which the Trainer averages
    else:
        one = text_ranks.lightning_run(page, None, run)
        halves = [each[run]["losses"] for each in ranks]
        losses = [sum(pair) / 2 for pair in zip(*halves, strict=True)]
    assert losses == pytest.approx(one["losses"], rel=1e-3)
    for name, weights in one["weights"].items():
        assert ranks[0][run]["weights"][name] == pytest.approx(weights, abs=2e-3), name


@pytest.mark.parametrize("run", ["interleave", "random", "trainer"])
def test_ranks_hold_the_same_weights(run: str, ranks: list[dict[str, Any]]) -> None:
    """Also where each has drawn fresh layers of its own."""
    first, second = (each[run]["weights"] for each in ranks)
    assert first == second
    assert sum(name.endswith("linear1.weight") for name in first) == 6
