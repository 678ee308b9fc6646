"""Jobs that are interrupted, partitioned, repeated, or started with other settings."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from interstack.evaluation.superb.results import TABLE_FILE
from interstack.evaluation.superb.training import DownstreamTraining
from tests.superb.superb_runs import job_directory, metrics, superb
from tests.target_cache.cached_runs import stopping_at


@pytest.mark.parametrize("task", ["asr", "sid", "ks"])
@pytest.mark.parametrize("cut", [1, 5])
def test_a_cut_job_ends_as_the_whole_one(
    task: str,
    cut: int,
    upstream: Path,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit by bit: weights, moments and figures, with dropout, masking, crops and drawn samples."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert superb(upstream, data_root, whole, task, steps=7) == 0
    with monkeypatch.context() as patched:
        update = stopping_at(cut, DownstreamTraining._update)
        patched.setattr(DownstreamTraining, "_update", update)
        assert superb(upstream, data_root, stopped, task, steps=7) == 75
    states = job_directory(stopped, task) / "states.ckpt"
    assert torch.load(states, weights_only=True)["step"] == cut
    assert superb(upstream, data_root, stopped, task, steps=7) == 0
    assert metrics(stopped, task) == metrics(whole, task)
    ends = [
        torch.load(job_directory(each, task) / "states.ckpt", weights_only=True)
        for each in (stopped, whole)
    ]
    for part in ("featurizer", "expert", "optimizer"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)
    assert ends[0]["best"] == ends[1]["best"]


def test_a_crashed_job_goes_on_from_its_last_states(
    upstream: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was told of the end; steps after the last save are done again, to the same end."""
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    seldom = ("sid.runner.save_step=3",)
    assert superb(upstream, data_root, whole, "sid", steps=7, changes=seldom) == 0
    update = DownstreamTraining._update
    calls: list[None] = []

    def dying(training: DownstreamTraining, clipping: float) -> None:
        calls.append(None)
        if len(calls) == 6:
            raise RuntimeError("power cut")
        update(training, clipping)

    with monkeypatch.context() as patched:
        patched.setattr(DownstreamTraining, "_update", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            superb(upstream, data_root, crashed, "sid", steps=7, changes=seldom)
    states = job_directory(crashed, "sid") / "states.ckpt"
    assert torch.load(states, weights_only=True)["step"] == 3
    assert superb(upstream, data_root, crashed, "sid", steps=7, changes=seldom) == 0
    ends = [
        torch.load(job_directory(each, "sid") / "states.ckpt", weights_only=True)["expert"]
        for each in (crashed, whole)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("command_name", ["superb", "sweep"])
def test_the_cluster_script_shares_an_array_and_requeues_itself(
    command_name: str, tmp_path: Path
) -> None:
    """With stand-ins for SLURM, and for a Python that tells what it was asked and is cut off."""
    script = Path(__file__).parents[2] / "slurm" / f"{command_name}.sbatch"
    for name, line in (
        ("srun", 'exec "$@"'),
        ("scontrol", f'echo "$@" > "{tmp_path}/asked"'),
        ("python", f'echo "$@" > "{tmp_path}/told"; exit 75'),
    ):
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{line}\n")
        command.chmod(0o755)
    slurm = {"SLURM_ARRAY_JOB_ID": "47", "SLURM_ARRAY_TASK_ID": "3"}
    slurm |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
    words = ["--upstream", "DIR", "--tasks", "pr", "sid", "--data-root", "CORPORA"]
    done = subprocess.run(["bash", str(script), *words], env=os.environ | slurm, check=False)
    assert done.returncode == 75
    assert (tmp_path / "told").read_text().split() == ["-m", "interstack.cli", command_name, *words]
    assert (tmp_path / "asked").read_text() == "requeue 47_3\n"
    assert subprocess.run(["bash", str(script)], check=False, capture_output=True).returncode == 2


def test_judging_more_often_changes_nothing_of_the_training(
    upstream: Path, data_root: Path, tmp_path: Path
) -> None:
    """An evaluation draws random numbers of its own, and puts training's back."""
    for every in (1, 5):
        changes = (f"asr.runner.eval_step={every}",)
        output = tmp_path / str(every)
        assert superb(upstream, data_root, output, "asr", steps=5, changes=changes) == 0
    often, seldom = (
        torch.load(job_directory(tmp_path / str(every), "asr") / "states.ckpt", weights_only=True)
        for every in (1, 5)
    )
    for name, tensor in often["expert"].items():
        if name != "best_score":
            assert torch.equal(tensor, seldom["expert"][name]), name


def test_the_best_step_is_judged_and_not_the_last(
    upstream: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the dev split was best, whatever became of the weights later."""
    values = iter([3.0, 1.0, 2.0])
    evaluate = DownstreamTraining.evaluate

    def judged(training: DownstreamTraining, split: str) -> dict[str, float]:
        found = evaluate(training, split)
        return found | {"per": next(values)} if split == "dev" else found

    monkeypatch.setattr(DownstreamTraining, "evaluate", judged)
    assert superb(upstream, data_root, tmp_path, "pr", steps=6) == 0
    directory = job_directory(tmp_path, "pr")
    assert json.loads((directory / "result.json").read_text())["step"] == 4
    best = torch.load(directory / "best.ckpt", weights_only=True)
    last = torch.load(directory / "states.ckpt", weights_only=True)
    assert best["step"] == 4
    kept, later = (each["expert"]["model.linear.weight"] for each in (best, last))
    assert not torch.equal(kept, later)


def test_finished_jobs_are_not_done_again(
    upstream: Path,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And more seeds add jobs to those that are there."""
    assert superb(upstream, data_root, tmp_path, "pr", steps=2) == 0
    first = (job_directory(tmp_path, "pr") / "states.ckpt").stat().st_mtime_ns
    assert superb(upstream, data_root, tmp_path, "pr", steps=2, more=("--seeds", "2")) == 0
    assert (job_directory(tmp_path, "pr") / "states.ckpt").stat().st_mtime_ns == first
    assert len((tmp_path / TABLE_FILE).read_text().splitlines()) == 2
    assert "±" in capsys.readouterr().out
    monkeypatch.setattr(DownstreamTraining, "__init__", None)  # nothing may be trained now
    again = ("--seeds", "2", "--table")
    assert superb(upstream, data_root, tmp_path, "pr", steps=2, more=again) == 0


def test_shares_hold_every_job_once(
    upstream: Path,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Told by a word or by SLURM's array; the table says what is still to come."""
    more = ("--seeds", "3")
    assert superb(upstream, data_root, tmp_path, "pr", steps=1, more=(*more, "--share", "1/2")) == 0
    assert [path.parent.name for path in tmp_path.glob("*/pr/*/result.json")] == ["seed1"]
    assert "2 of 3 jobs are not done yet" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert superb(upstream, data_root, tmp_path, "pr", steps=1, more=more) == 0
    assert len(list(tmp_path.glob("*/pr/*/result.json"))) == 3
    assert "not done yet" not in capsys.readouterr().out


def test_other_settings_are_not_mixed_in(
    upstream: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job keeps the settings that it was started with, once it has done a step."""
    too_large = ("ks.datarc.batch_size=500",)
    assert superb(upstream, data_root, tmp_path, "ks", steps=1, changes=too_large) == 2
    assert "too little training data for a batch" in capsys.readouterr().err
    assert superb(upstream, data_root, tmp_path, "ks", steps=1) == 0
    assert superb(upstream, data_root, tmp_path, "pr", steps=1) == 0
    assert superb(upstream, data_root, tmp_path, "pr", steps=2) == 2
    error = capsys.readouterr().err
    assert "was started with the other settings of its config.yaml" in error
    assert "--output" in error


def test_damaged_records_are_named(
    upstream: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A half-written figure, and states of which a part is gone."""
    assert superb(upstream, data_root, tmp_path, "pr", steps=1) == 0
    directory = job_directory(tmp_path, "pr")
    result = directory / "result.json"
    result.write_text(result.read_text()[:20])
    assert superb(upstream, data_root, tmp_path, "pr", steps=1) == 2
    error = capsys.readouterr().err
    assert "result.json is no record of a finished job" in error
    assert "remove it" in error
    result.unlink()
    states = directory / "states.ckpt"
    states.write_bytes(states.read_bytes()[:1000])
    assert superb(upstream, data_root, tmp_path, "pr", steps=1) == 2
    assert "states.ckpt can't be read" in capsys.readouterr().err
