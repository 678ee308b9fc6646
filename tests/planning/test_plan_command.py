"""The plan of a small run on the embedded speech, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from interstack.cli import main
from tests import REPOSITORY


def words(teacher: Path, *more: str) -> list[str]:
    """Options of a run of eight steps in two stages that costs next to nothing."""
    return [
        f"--config={REPOSITORY / 'configs' / 'interleaved.yaml'}",
        f"--model.teacher.source={teacher}",
        "--model.teacher.taps=[2,4]",
        "--model.student.hidden_size=16",
        "--model.student.intermediate_size=32",
        "--model.student.num_attention_heads=2",
        "--growth.depths=[2,4]",
        f"--data.source.init_args.root={REPOSITORY / 'assets' / 'speech'}",
        "--data.batch_seconds=8",
        "--data.max_seconds=1",
        "--data.crop=fixed",
        "--data.num_workers=0",
        "--trainer.max_steps=8",
        *more,
    ]


@pytest.mark.parametrize("front_end", ["shared", "own"])
def test_a_plan_has_the_costs_of_the_run(
    front_end: str, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables for people, JSON for programs, and nothing else is written."""
    options = [
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        f"--model.student.front_end={front_end}",
        "--seconds=0.5",
        f"--json={tmp_path / 'plan.json'}",
    ]
    if front_end == "own":
        options.append("--model.student.conv_dim=[8,8,8,8,8,8,8]")
        options += ["--model.student.dropout=0.1", "--model.student.activation_dropout=0.0"]
        options.append("--model.optimizer.kind=muon")
        options += ["--data.global_batch_seconds=24", "--trainer.devices=2"]
    assert main(["plan", *words(teacher_directory, *options)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("stages", "GMACs/s", "speedup of growing", "predicted"))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    plan = json.loads((tmp_path / "plan.json").read_text())
    stages = plan["predicted"]["stages"]
    assert [(stage["depth"], stage["steps"]) for stage in stages] == [(2, 4), (4, 4)]
    assert all(stage["seconds"] > 0 for stage in stages)
    assert (
        plan["predicted"]["wall_clock_seconds"] > sum(stage["seconds"] for stage in stages) * 0.99
    )
    for split in plan["measured"]["splits"].values():
        assert split["teacher"] > 0
        assert split["step"] == pytest.approx(sum(split.values()) - split["step"])
    levers = set(plan["predicted"]["speedups"]) - {"as configured"}
    sharing = {"front end shared", "both"} if front_end == "own" else set()
    assert levers == {"targets cached"} | sharing
    assert plan["surroundings"]["torch"]
    shared_out = {"global_seconds": 24.0, "world_size": 2, "micro_batches": 2, "seconds": 6.0}
    alone = {"global_seconds": 8.0, "world_size": 1, "micro_batches": 1, "seconds": 8.0}
    assert plan["global_batch"] == (shared_out if front_end == "own" else alone)
    dropout = plan["measured"]["dropout"]
    gigaflops = [stage["optimizer_gigaflops"] for stage in plan["costs"]]
    if front_end == "own":
        assert dropout["depth"] == 4
        assert dropout["step"] == plan["measured"]["splits"]["4"]["step"]
        kinds = [(each["kind"], each["probability"]) for each in dropout["kinds"]]
        assert kinds == [("attention", 0.1), ("hidden", 0.1)]
        assert "ms of a step at 4 layers (attention 0.1: " in printed
        assert gigaflops[1] == 2 * gigaflops[0] > 0
        assert "Muon's iteration takes" in printed
    else:
        assert dropout is None
        assert gigaflops == [0.0, 0.0]
        assert not any(word in printed for word in ("dropout", "Muon"))
    if front_end == "own":
        assert "up to 24 s = 2 × 2 × 6 s (ranks × micro-batches × batch)" in printed


def test_with_a_cache_the_teacher_costs_nothing(
    teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in the table of stages nor as something that could still be saved."""
    settings = words(teacher_directory)
    assert main(["cache", *settings, f"--output={tmp_path / 'cache'}"]) == 0
    capsys.readouterr()
    options = [f"--data.target_cache={tmp_path / 'cache'}", "--seconds=0.5"]
    assert main(["plan", *settings, *options, f"--json={tmp_path / 'plan.json'}"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["teacher_gigamacs_per_second"] is None
    assert list(plan["predicted"]["speedups"]) == ["as configured"]


def test_a_plan_is_compared_with_a_run(
    teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage by stage; a run of other stages is refused."""
    stages = [
        {"depth": depth, "steps": 4, "training_seconds": seconds}
        for depth, seconds in ((2, 1.0), (4, 2.0))
    ]
    record = tmp_path / "stages.json"
    record.write_text(json.dumps({"stages": stages}))
    plan = ["plan", *words(teacher_directory, "--seconds=0.1", f"--against={tmp_path}")]
    assert main(plan) == 0
    assert "real" in capsys.readouterr().out
    record.write_text(json.dumps({"stages": stages[:1]}))
    assert main(plan) == 2
    assert "--against names a run of stages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seconds=0", "--seconds 0"),
        ("--json=nowhere/plan.json", "--json nowhere/plan.json"),
        ("--against=nowhere", "--against nowhere"),
        ("--trainer.limit_train_batches=0.0001", "limit_train_batches"),
        ("--trainer.devices=0", "trainer.devices is 0"),
        ("--trainer.devices=many", "trainer.devices is many"),
        ("--trainer.num_nodes=0", "trainer.num_nodes is 0"),
    ],
)
def test_settings_that_can_not_be_planned_are_refused(
    option: str, message: str, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One error that names the option."""
    assert main(["plan", *words(teacher_directory, option)]) == 2
    assert message in capsys.readouterr().err


def callbacks(*named: tuple[str, dict[str, object]]) -> str:
    """Return the option that adds callbacks of Lightning's."""
    added = [{"class_path": name, "init_args": settings} for name, settings in named]
    return f"--trainer.callbacks={json.dumps(added)}"


SCHEDULER = ("GradientAccumulationScheduler", {"scheduling": {0: 1, 1: 2}})


@pytest.mark.parametrize(
    "options",
    [
        (callbacks(SCHEDULER), "--data.global_batch_seconds=24"),
        (callbacks(SCHEDULER), "--trainer.accumulate_grad_batches=2"),
        (callbacks(("EarlyStopping", {"monitor": "val_loss"})),),
        (
            callbacks(("EarlyStopping", {"monitor": "val/loss_tap_2"})),
            "--model.teacher.taps=null",
        ),
        (callbacks(("ModelCheckpoint", {})), "--trainer.enable_checkpointing=false"),
        (callbacks(("ModelCheckpoint", {}), ("ModelCheckpoint", {})),),
        (callbacks(("TQDMProgressBar", {})), "--trainer.enable_progress_bar=false"),
        (callbacks(("EMAWeightAveraging", {}), ("WeightAveraging", {})),),
        (callbacks(("LearningRateFinder", {"num_training_steps": 12})),),
        ("--growth.schedule=explicit", "--growth.lengths=[1,2]", "--growth.unit=steps"),
        ("--model.precision_check=false",),
    ],
    ids=" ".join,
)
def test_plan_refuses_what_fit_refuses(
    options: tuple[str, ...],
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the same words, before anything is measured; and `fit` before an earlier run is moved."""
    directory = tmp_path / "run"
    (directory / "checkpoints").mkdir(parents=True)
    said = []
    for command in ("plan", "fit"):
        settings = words(teacher_directory, *options, f"--trainer.default_root_dir={directory}")
        assert main([command, *settings]) == 2
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1]
    assert said[0].startswith("error: ")
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["run"]
    assert [path.name for path in directory.iterdir()] == ["checkpoints"]


def test_a_plan_follows_a_scheduler_of_accumulation(
    teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epoch by epoch: 4 epochs of 4 batches are 4, 2, 2 and 2 steps."""
    options = [
        callbacks(SCHEDULER),
        "--trainer.max_steps=-1",
        "--trainer.max_epochs=4",
        "--trainer.limit_train_batches=4",
        "--seconds=0.1",
        f"--json={tmp_path / 'plan.json'}",
    ]
    assert main(["plan", *words(teacher_directory, *options)]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert [stage["steps"] for stage in plan["predicted"]["stages"]] == [6, 4]
    assert plan["global_batch"]["micro_batches"] == 1
    assert plan["later_global_batches"]["1"]["micro_batches"] == 2
    assert list(plan["later_global_batches"]) == ["1"]
    assert "from epoch 1 on an optimizer step holds up to 16 s" in capsys.readouterr().out


def test_a_plan_counts_validations_by_the_clock(
    teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `trainer.val_check_interval` is a day, there are none but the stages' own."""
    plans = []
    for interval in ("--trainer.val_check_interval={days: 1}", "--trainer.val_check_interval=2"):
        options = [interval, "--trainer.check_val_every_n_epoch=null", "--seconds=0.1"]
        output = f"--json={tmp_path / 'plan.json'}"
        assert main(["plan", *words(teacher_directory, *options, output)]) == 0
        plans.append(json.loads((tmp_path / "plan.json").read_text())["predicted"])
    capsys.readouterr()
    assert plans[1]["validation_seconds"] > plans[0]["validation_seconds"] > 0


def test_a_plan_of_compiled_layers_measures_them_compiled(
    teacher_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the student at both depths, and the teacher's once."""
    compiled = []

    def compile_(self: nn.Module, *, dynamic: bool) -> None:
        assert dynamic
        self._compiled_call_impl = self._call_impl
        compiled.append(self)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    options = ("--model.compile_layers=true", "--seconds=0.5")
    assert main(["plan", *words(teacher_directory, *options)]) == 0
    assert len(compiled) == 2 + 4 + 4
    assert "predicted" in capsys.readouterr().out
