"""Two processes train as one does on the same global batches, and never part. One torchrun."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from interstack.distillation.objective import ObjectiveConfig, TapSums
from interstack.distillation.reduction import rank_loss
from tests import REPOSITORY
from tests.distillation import ranks_worker


class Launch(NamedTuple):
    """What two ranks saw of their runs, and how their processes ended."""

    ranks: tuple[dict[str, Any], dict[str, Any]]
    status: int
    said: str

    def of(self, run: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what each rank saw of a run."""
        return self.ranks[0][run], self.ranks[1][run]


@pytest.fixture(scope="module")
def launch(teacher_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Run the worker on two ranks; one that waits for ever fails by the time limit."""
    output = tmp_path_factory.mktemp("ranks")
    # a command line run by another test leaves its seed there, and Lightning's DDP obeys it
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with subprocess.Popen(
        [*torchrun, "--nproc-per-node=2", "-m", ranks_worker.__name__, output, teacher_directory],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=inherited | {"OMP_NUM_THREADS": "1"},
    ) as ranks:
        try:
            _, said = ranks.communicate(timeout=600)
        finally:
            ranks.terminate()  # torchrun ends its workers then, but not if it is killed
    written = [output / f"rank{rank}.json" for rank in (0, 1)]
    assert all(path.exists() for path in written), said
    first, second = (json.loads(path.read_text()) for path in written)
    return Launch((first, second), ranks.returncode, said)


@pytest.mark.parametrize(
    ("run", "tolerance", "least"), [("plain", 1e-5, 9), ("accumulated", 1e-5, 8), ("muon", 1e-4, 4)]
)
def test_two_ranks_train_as_one_process_on_the_same_global_batches(
    run: str, tolerance: float, least: int, launch: Launch, teacher_directory: Path
) -> None:
    """Logged losses of every step and tap, and validation; the ranks' frames differ sixfold.

    Muon brings even the smallest singular values of a gradient, which are rounding, near 1.
    """
    one = ranks_worker.run(teacher_directory, None, **ranks_worker.RUNS[run])
    assert one["depth"] == 4
    for two in launch.of(run):
        assert len(two["losses"]) == len(one["losses"]) == least
        for mine, theirs in zip(two["losses"], one["losses"], strict=True):
            assert set(mine) == {"train/loss", "train/loss_tap_0", "train/loss_tap_4"}
            assert mine == pytest.approx(theirs, rel=tolerance)
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=tolerance)


def test_two_ranks_that_accumulate_train_as_one_process_on_one_big_batch(
    launch: Launch, teacher_directory: Path
) -> None:
    """2 ranks × 2 micro-batches of very different lengths; what is logged is the window's loss."""
    one = ranks_worker.run(teacher_directory, None, steps=4, merge=2)
    for two in launch.of("windows"):
        after_steps = two["losses"][1::2]
        assert len(after_steps) == len(one["losses"]) == 4
        for mine, theirs in zip(after_steps, one["losses"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-4)


@pytest.mark.parametrize("run", ["plain", "accumulated", "windows", "muon", "random", "skip"])
def test_ranks_hold_the_same_weights_after_every_growth_and_step(run: str, launch: Launch) -> None:
    """Bit by bit, the moments too; also where growth draws layers from unlike random states."""
    first, second = launch.of(run)
    assert len(first["grown"]) == 2
    assert len(set(first["weights"])) >= 4
    for what in ("grown", "weights", "moments", "losses"):
        assert first[what] == second[what], what


def test_ranks_hold_the_same_averages(launch: Launch) -> None:
    """A fresh layer's average is the layer as rank 0 has drawn it, not as each rank has."""
    first, second = launch.of("random")
    assert len(set(first["averages"])) == 4
    assert first["averages"] == second["averages"]
    for rank in (first, second):
        assert rank["averaged_fresh"] == [True, True]
    assert first["validation_loss"] == second["validation_loss"]


def test_the_mean_of_what_ranks_minimise_is_the_loss_that_is_logged(launch: Launch) -> None:
    """DDP averages gradients, so this is their scale, which AdamW's steps hardly show."""
    first, second = launch.of("plain")
    assert first["minimised"] != second["minimised"]
    means = [
        (one + other) / 2
        for one, other in zip(first["minimised"], second["minimised"], strict=True)
    ]
    assert means == pytest.approx([loss["train/loss"] for loss in first["losses"]], rel=1e-5)


def test_a_step_costs_one_collective_and_no_search_for_unused_parameters(launch: Launch) -> None:
    """Besides those of DDP's reducer: no barrier, and none for what is logged."""
    for rank in launch.of("plain"):
        assert rank["collectives"] == [["all_reduce"]] * 9
        assert rank["searches_unused"] == [False] * 9


def test_a_batch_that_is_not_finite_on_one_rank_is_skipped_on_both(launch: Launch) -> None:
    """It changes neither weights nor moments, is counted once, and the run goes on and grows."""
    bad = ranks_worker.BAD
    for rank in launch.of("skip"):
        assert rank["message"] == ""
        assert (rank["steps"], rank["depth"], rank["skipped"]) == (9, 4, 1)
        assert rank["weights"][bad] == rank["weights"][bad - 1]
        assert rank["moments"][bad] == rank["moments"][bad - 1]
        assert len(set(rank["weights"])) == 8
        assert not any(math.isnan(loss["train/loss"]) for loss in rank["losses"])


def test_a_batch_that_is_not_finite_on_one_rank_stops_both(launch: Launch) -> None:
    """The rank that has it names step and utterance; nobody waits for ever."""
    healthy, ill = launch.of("stop")
    step = f"step {ranks_worker.BAD}"
    assert ill["message"].startswith(f"{step}: the audio of rank1-0 is not finite")
    assert healthy["message"].startswith(f"{step}: the loss of another rank is not finite")
    assert launch.status != 0
    assert "the audio of rank1-0 is not finite" in launch.said


def test_data_that_one_rank_can_not_read_amid_a_window_stops_both(launch: Launch) -> None:
    """The other one, which has its batch, does not wait for ever; both save the window's start."""
    healthy, ill = launch.of("unreadable")
    assert ill["message"] == "rank1.flac is gone"
    assert healthy["message"] == "another rank has failed: its own message says why"
    assert healthy["steps"] == ill["steps"] == 1
    assert healthy["weights"] == ill["weights"]


def test_ranks_that_look_later_stop_together_as_they_were(launch: Launch) -> None:
    """After so many batches; till then neither has changed its weights, and both say the same."""
    healthy, ill = launch.of("stop later")
    step = f"step {ranks_worker.BAD}"
    assert ill["message"].startswith(f"{step}: the audio of rank1-0 is not finite")
    assert healthy["message"].startswith(f"{step}: the loss of another rank is not finite")
    for rank in (healthy, ill):
        assert rank["steps"] == ranks_worker.BAD + 1
        assert rank["weights"][-1] == rank["weights"][ranks_worker.BAD - 1] == ill["weights"][-1]
        assert rank["moments"][-1] == rank["moments"][ranks_worker.BAD - 1]


def test_validation_on_ranks_stops_on_both_where_they_meet(launch: Launch) -> None:
    """One rank that left at its bad batch would keep the other waiting."""
    healthy, ill = launch.of("bad validation")
    assert ill["message"].startswith("validation batch 1: the audio of rank1-0 is not finite")
    assert healthy["message"].startswith("the loss of another rank is not finite")


def test_the_loss_of_one_process_is_what_it_was_without_ranks() -> None:
    """Bit by bit, what is minimised and what is logged."""
    sums = TapSums(torch.tensor([7.1, 3.3], requires_grad=True), torch.tensor(13))
    loss = rank_loss(sums, ObjectiveConfig(), 1)
    by_tap = sums.by_tap / sums.num_frames.float()
    expected = by_tap[-1] + 0.5 * by_tap.mean()
    assert torch.equal(loss.to_minimise, expected)
    assert torch.equal(loss.loss, expected)
    assert torch.equal(loss.by_tap, by_tap)
    assert not loss.loss.requires_grad
