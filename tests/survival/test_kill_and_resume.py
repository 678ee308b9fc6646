"""A run that is killed and taken up again through the command line ends as one never cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interstack.cli import main
from tests.survival.killed_runs import GROWN_AT, SPEECH, Run, assert_same_end, small_words

LAST = "--ckpt_path=last"
BATCHES = "--trainer.limit_train_batches=10"


def callback(name: str, **settings: object) -> str:
    """Return the option that gives the Trainer one of Lightning's callbacks."""
    return f"--trainer.callbacks+={json.dumps({'class_path': name, 'init_args': settings})}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Run:
    """The run that was never cut."""
    run = Run(tmp_path_factory.mktemp("whole") / "run", small_words(teacher_directory))
    run.finish()
    return run


@pytest.mark.parametrize(
    ("step", "where"),
    [
        (0, "step"),
        (2, "step"),
        (5, "step"),
        (GROWN_AT - 1, "step"),
        (GROWN_AT, "before_growth"),
        (GROWN_AT, "after_growth"),
        (GROWN_AT, "step"),
        (GROWN_AT + 1, "step"),
        (10, "step"),
        (11, "step"),
    ],
)
def test_a_run_killed_anywhere_goes_on_as_if_nothing_had_been(
    step: int, where: str, whole: Run, tmp_path: Path
) -> None:
    """In and at the end of an epoch, one step before growth, in the midst of it, one step after."""
    run = Run(tmp_path / "run", whole.words)
    run.kill_at(step, where)
    run.finish(LAST)
    assert_same_end(whole, run)


def test_a_run_may_be_killed_twice(whole: Run, tmp_path: Path) -> None:
    """Before growth and after it; each time the same command goes on."""
    run = Run(tmp_path / "run", whole.words)
    run.kill_at(3, "step", LAST)  # which begins anew where there is nothing yet
    run.kill_at(8, "step", LAST)
    run.finish(LAST)
    assert_same_end(whole, run)


def test_the_end_of_a_stage_can_be_gone_back_to(whole: Run, tmp_path: Path) -> None:
    """A run goes on from an older checkpoint too, and the later ones are moved aside."""
    run = Run(tmp_path / "run", whole.words)
    run.finish()
    run.finish(f"--ckpt_path={run.directory / 'checkpoints' / 'stage-1.ckpt'}")
    assert_same_end(whole, run)
    kept = {path.name for path in (run.directory / "checkpoints").iterdir()}
    assert {"stage-1.ckpt", "stage-2.ckpt", "stage-2.ckpt.1", "last.ckpt"} <= kept


def assert_survives_two_kills(words: tuple[str, ...], directory: Path) -> None:
    """A run that is killed before growth and after it ends as one that is not."""
    whole, run = Run(directory / "whole", words), Run(directory / "run", words)
    whole.finish()
    run.kill_at(3, "step")
    run.kill_at(8, "step", LAST)
    run.finish(LAST)
    assert_same_end(whole, run)


@pytest.mark.parametrize("policy", ["reset", "carry", "clone"])
@pytest.mark.parametrize(
    ("operator", "optimizer"),
    [
        ("interleave", ()),
        ("append", ()),
        ("gradual", ("--model.optimizer.kind=muon", "--model.optimizer.decay=wsd")),
        ("midas", ()),
        ("lidas", ()),
        ("random", ()),
    ],
    ids=str,
)
def test_whatever_the_operator_the_optimizer_and_its_state(
    operator: str, optimizer: tuple[str, ...], policy: str, teacher_directory: Path, tmp_path: Path
) -> None:
    """Layers that move, layers that are drawn anew, moments that are kept; all of it averaged."""
    growth = (f"--growth.operator={operator}", f"--growth.optimizer_state={policy}")
    average = callback("EMAWeightAveraging", decay=0.9)
    words = small_words(teacher_directory, *growth, *optimizer, average)
    assert_survives_two_kills(words, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        ("--growth.depths=[2,3,4]", "--growth.schedule=prop"),
        ("--growth.learning_rate=rewarm", "--growth.rewarm_steps=4", "--model.optimizer.decay=wsd"),
        ("--trainer.accumulate_grad_batches=2", BATCHES),
        (callback("GradientAccumulationScheduler", scheduling={0: 2, 1: 1}), BATCHES),
        ("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=2"),
        ("--trainer.max_steps=-1", "--trainer.max_epochs=3"),
        ("--data.num_workers=2", "--trainer.precision=bf16-mixed"),
    ],
    ids=" ".join,
)
def test_whatever_the_settings_are(
    settings: tuple[str, ...], teacher_directory: Path, tmp_path: Path
) -> None:
    """Stages, learning rate, windows of gradients, validation, length, workers, precision."""
    assert_survives_two_kills(small_words(teacher_directory, *settings), tmp_path)


def test_streamed_data_goes_on_where_it_was(teacher_directory: Path, tmp_path: Path) -> None:
    """Tar shards, two workers, an epoch of 5 batches."""
    shards = tmp_path / "shards"
    pack = ["pack", "--source=LibriSpeechFolder", f"--source.root={SPEECH}", f"--output={shards}"]
    assert main([*pack, "--utterances_per_shard=20"]) == 0
    source = [f'--data.source.{split}=["{shards / split}"]' for split in ("train", "validation")]
    words = [word for word in small_words(teacher_directory) if "data.source" not in word]
    words += ["--data.source=Shards", *source, "--data.epoch_batches=5", "--data.num_workers=2"]
    whole, run = Run(tmp_path / "whole", tuple(words)), Run(tmp_path / "run", tuple(words))
    whole.finish()
    run.kill_at(3, "step")
    run.kill_at(GROWN_AT, "after_growth", LAST)
    run.kill_at(8, "step", LAST)
    run.finish(LAST)
    assert_same_end(whole, run)
