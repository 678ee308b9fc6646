"""docs/extending.md: a user's own parts train, resume exactly, and are refused where they fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from interstack.cli import main
from tests.template.conftest import PageRun


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Read the student that a run has left."""
    weights: dict[str, torch.Tensor] = load_file(run / "student" / "model.safetensors")
    return weights


def test_every_part_of_the_page_is_in_the_run(page_run: PageRun) -> None:
    """Source, operator, objective, teacher, callback and logger, by the names they were given."""
    run = page_run.directory / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["source"]["class_path"] == "mymodule.ListedFiles"
    assert config["growth"]["operator"] == "mymodule.repeat_top"
    assert config["model"]["objective"]["kind"] == "mymodule.CosineDistance"
    assert config["model"]["teacher"]["family"] == "mymodule.FrameNetwork"
    assert "layers come from (0, 1, 1)" in page_run.output
    assert "layers come from (0, 1, 2, 2, 2)" in page_run.output
    lines = (page_run.directory / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    taps = [(row["train/loss_tap_1"], row["train/loss_tap_3"]) for row in rows if len(row) > 20]
    assert losses == pytest.approx([0.25 * lower + top for lower, top in taps])
    assert len(losses) == 6


def test_checkpoint_and_card_keep_the_operator_s_name(page_run: PageRun) -> None:
    """And no code: a checkpoint is read with ``weights_only``."""
    run = page_run.directory / "run"
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    schedule = checkpoint["callbacks"]["InterleavedStacking"]["schedule"]
    assert schedule["operator"] == "mymodule.repeat_top"
    assert checkpoint["hyper_parameters"]["objective"]["init_args"] == {"lower": 0.25}
    assert "Growth operator: `mymodule.repeat_top`" in (run / "student" / "README.md").read_text()
    assert "grown from 2 to 3 layers by mymodule.repeat_top" in page_run.output


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_of_own_parts_resumes_bitwise(
    stage: int, in_page_directory: PageRun, tmp_path: Path
) -> None:
    """From where a growth step is due."""
    run = tmp_path / "run"
    shutil.copytree("run", run)
    words = [*in_page_directory.configs, f"--trainer.default_root_dir={run}"]
    words += [f"--ckpt_path={run / 'checkpoints' / f'stage-{stage}.ckpt'}"]
    words += [f"--trainer.logger.init_args.file={tmp_path / 'metrics.jsonl'}"]
    assert main(["fit", *words]) == 0
    whole = final_weights(Path("run"))
    resumed = final_weights(run)
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--growth.operator=interleave", "operator mymodule.repeat_top"),
        ("--model.objective.init_args={lower: 0.5}", "objective.init_args was {'lower': 0.25}"),
        ("--model.teacher.family=mymodule.Other", "teacher.family was 'mymodule.FrameNetwork'"),
    ],
)
def test_a_run_is_not_resumed_with_other_parts(
    change: str, named: str, in_page_directory: PageRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Operator, objective and teacher family are those that it began with."""
    words = ["fit", *in_page_directory.configs, "--ckpt_path=run/checkpoints/stage-1.ckpt", change]
    assert main(words) == 2
    assert named in capsys.readouterr().err


def test_a_checkpoint_s_path_is_enough_where_the_module_is(
    in_page_directory: PageRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation finds the parts by the names in the checkpoint."""
    del in_page_directory
    assert main(["validate", "--ckpt_path=run/checkpoints/last.ckpt"]) == 0
    assert "val/loss" in capsys.readouterr().out


def test_a_cache_of_an_own_teacher_trains(
    in_page_directory: PageRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is refused to another family."""
    words = [*in_page_directory.configs, "--data.crop=fixed"]
    assert main(["cache", *words, f"--output={tmp_path / 'cache'}", "--dtype=float32"]) == 0
    words += [f"--data.target_cache={tmp_path / 'cache'}", "--trainer.logger=false"]
    words += [f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main(["fit", *words]) == 0
    assert (tmp_path / "run" / "student").is_dir()
    capsys.readouterr()
    assert main(["fit", *words, "--model.teacher.family=mymodule.Other"]) == 2
    assert "family was 'mymodule.FrameNetwork' and is 'mymodule.Other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--growth.operator=nomodule.grow", "nomodule can't be imported (ModuleNotFoundError"),
        ("--growth.operator=mymodule.PrintGrowth", "is of type type: give the name of a Python"),
        ("--model.objective.kind=mymodule.repeat_top", "derive it from"),
        ("--model.objective.init_args={upper: 1}", "unexpected keyword argument 'upper'"),
        ("--model.teacher.family=mymodule.ListedFiles", "derive it from"),
        ("--model.teacher.source=seven", "can't load model.teacher.source seven (ValueError"),
        ("--model.teacher.pad_to_30s=true", "no effect with model.teacher.family mymodule.Fr"),
        ("--data.source=nomodule.Source", "No module named 'nomodule'"),
    ],
)
def test_a_part_that_fails_is_named_in_one_line(
    option: str,
    named: str,
    in_page_directory: PageRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the option, before any training."""
    words = [*in_page_directory.configs, f"--trainer.default_root_dir={tmp_path}", option]
    assert main(["fit", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert named in error
