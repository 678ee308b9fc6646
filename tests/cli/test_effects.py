"""An option that has no effect beside the others is refused, in every section and command."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from interstack.checkpointing.inspect import SavedRun
from interstack.cli import main
from interstack.commands.resuming import check_same_model
from interstack.distillation.module import Distillation
from interstack.distillation.objective import ObjectiveConfig
from interstack.distillation.optimizer import OptimizerConfig
from interstack.errors import ConfigurationError
from interstack.growth.callback import InterleavedStacking
from interstack.models.config import StudentConfig, TeacherConfig
from interstack.settings import check_effect
from tests.cli.test_cli import CSV_ALONE, INTERLEAVED, SPEECH, small_run

ONE_DEPTH = "--growth.depths=[4]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [
                "--growth.schedule=explicit",
                "--growth.lengths=[2,2]",
                "--growth.unit=steps",
                "--growth.alpha=3",
            ],
            "growth.alpha is 3.0, which has no effect with growth.schedule explicit: leave it out, "
            "or give growth.schedule prop",
        ),
        ([ONE_DEPTH, "--model.student.tap_placement=original"], "model.student.tap_placement"),
        (
            ["--model.teacher.taps=[0,4]", "--model.student.tap_placement=original"],
            "with a single tap on a layer",
        ),
        (
            ["--model.student.front_end=copy", "--model.student.feat_extract_norm=layer"],
            "model.student.feat_extract_norm is layer, which has no effect with "
            "model.student.front_end copy: leave it out, or give model.student.front_end own",
        ),
        (["--model.teacher.revision=main"], "model.teacher.revision is main"),
        (["--model.objective.cosine_weight=2"], "model.objective.cosine_weight is 2.0"),
        (
            ["--data.epoch_batches=4"],
            "data.epoch_batches is 4, which has no effect with LibriSpeechFolder",
        ),
        (
            ["--data.max_seconds=null", "--data.batch_seconds=60", "--data.crop=fixed"],
            "data.crop is fixed, which has no effect with data.max_seconds null",
        ),
        (["--tracking.wandb_outage=stop"], "tracking.wandb_outage is stop"),
    ],
    ids=lambda value: value[-1].removeprefix("--") if isinstance(value, list) else "",
)
def test_an_option_without_effect_is_refused(
    options: Sequence[str],
    message: str,
    tmp_path: Path,
    teacher_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With its full name, its value and the fix, before anything is trained."""
    directory = tmp_path / "run"
    assert main(["fit", *small_run(directory, teacher_directory), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (directory / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 2.0}, "growth.alpha is 2.0"),
        ({"unit": "steps"}, "growth.unit is steps"),
        ({"depths": (4,), "operator": "midas"}, "growth.operator is midas"),
        ({"depths": (4,), "schedule": "prop"}, "growth.schedule is prop"),
        ({"depths": (4,), "optimizer_state": "carry"}, "growth.optimizer_state is carry"),
        ({"depths": (4,), "learning_rate": "rewarm", "rewarm_steps": 2}, "growth.learning_rate"),
    ],
)
def test_growth_refuses_alike_in_python(settings: dict[str, Any], message: str) -> None:
    """Where the schedule does not need it, and where nothing grows."""
    with pytest.raises(
        ConfigurationError, match=f"^{message}.*, which has no effect with .*growth"
    ):
        InterleavedStacking(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (StudentConfig(front_end="shared", conv_dim=(8,) * 7), "student.conv_dim is"),
        (StudentConfig(front_end="copy", conv_kernel=(10, 3, 3, 3, 3, 2, 3)), "student.conv_kern"),
        (StudentConfig(front_end="shared", conv_stride=(5,) * 7), "student.conv_stride is"),
        (ObjectiveConfig("distilhubert", intermediate_weight=1.0), "objective.intermediate_weight"),
        (ObjectiveConfig(cosine_weight=2.0), "objective.cosine_weight is 2.0"),
        (ObjectiveConfig(target_norm_seconds=60.0), "objective.target_norm_seconds is 60.0"),
        (OptimizerConfig(decay_share=0.2), "optimizer.decay_share is 0.2"),
        (OptimizerConfig(decay_shape="sqrt"), "optimizer.decay_shape is sqrt"),
        (OptimizerConfig(momentum=0.9), "optimizer.momentum is 0.9"),
        (TeacherConfig(str(SPEECH), revision="main"), "teacher.revision is main"),
        (TeacherConfig(str(SPEECH), local_files_only=True), "teacher.local_files_only is true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_model_refuses_alike_in_python(
    settings: StudentConfig | ObjectiveConfig | OptimizerConfig | TeacherConfig, message: str
) -> None:
    """By the same names."""
    with pytest.raises(ConfigurationError, match=f"^model.{message}.*, which has no effect with"):
        settings.check_effects()


@pytest.mark.parametrize("command", ["plan", "cache"])
def test_commands_that_describe_a_run_refuse_alike(
    command: str, tmp_path: Path, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one section, and of two."""
    words = [command, *small_run(tmp_path / "run", teacher_directory)]
    assert main([*words, "--growth.alpha=2"]) == 2
    assert "growth.alpha is 2.0" in capsys.readouterr().err
    assert main([*words, ONE_DEPTH, "--model.student.tap_placement=original"]) == 2
    assert "model.student.tap_placement is original" in capsys.readouterr().err
    exact = ["--dtype=float32", f"--output={tmp_path / 'cache'}"] if command == "cache" else []
    assert main([*words, *exact, "--model.precision_check=false"]) == 2
    assert (
        "model.precision_check is false, which has no effect where trainer.precision, "
        "model.teacher.dtype and the device are all float32: leave it out"
    ) in capsys.readouterr().err


SUPERB = ["superb", "--upstream=fbank", "--data-root=nowhere", "--tasks=sd"]
PROBE = ["probe", f"--corpus={SPEECH}", "--upstream=log-mel"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*PROBE, "--seeds=0"], "--seeds is 0"),
        (
            [*SUPERB, "--preset=armhubert"],
            "--preset is armhubert, which has no effect with --tasks",
        ),
        (
            [*SUPERB, "--set=sid.optimizer.lr=1"],
            "--set sid.optimizer.lr has no effect with --tasks",
        ),
        ([*SUPERB, "--table", "--share=0/2"], "--share is 0/2, which has no effect with --table"),
        ([*SUPERB, "--table", "--device=cpu"], "--device is cpu"),
        (
            [*SUPERB, "--upstream=x", "--device=cpu", "--no-precision-check"],
            "--no-precision-check is true, which has no effect on cpu, which computes in float32",
        ),
        ([*SUPERB, "--table", "--num-workers=1"], "--num-workers is 1"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_flags_without_effect_are_refused(
    words: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their names, with what they would need."""
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_module_checks_its_settings_but_a_checkpoints(teacher_directory: Path) -> None:
    """What an earlier version let a run begin with is read."""
    with pytest.raises(ConfigurationError, match=r"model\.objective\.cosine_weight"):
        Distillation(
            TeacherConfig(str(teacher_directory)), objective=ObjectiveConfig(cosine_weight=2.0)
        )
    older: Any = {"cosine_weight": 2.0}
    source: Any = {"source": str(teacher_directory)}
    assert Distillation(source, objective=older).objective.cosine_weight == 2.0


def test_an_option_that_had_no_effect_may_differ_on_resuming(teacher_directory: Path) -> None:
    """An older run may have begun with it, and it is refused now."""
    model = Distillation(TeacherConfig(str(teacher_directory))).hparams
    began = {**model, "objective": model["objective"] | {"cosine_weight": 2.0}}
    run = SavedRun(Path("x.ckpt"), 1, 3, began, None, None, finished=False)
    check_same_model(model, run, resumes=True)
    began["objective"]["intermediate_weight"] = 2.0
    with pytest.raises(ConfigurationError, match=r"intermediate_weight was 2\.0 and is 0\.5: give"):
        check_same_model(model, run, resumes=True)


def test_a_default_is_never_refused() -> None:
    """Nor where YAML has a list for a tuple."""
    check_effect("data.crop", "random", "random", "at all")
    check_effect("model.student.conv_dim", [1, (2, 3)], (1, [2, 3]), "at all")
    with pytest.raises(
        ConfigurationError, match=r"^a is null, which has no effect x: leave it out$"
    ):
        check_effect("a", None, 1, "x")


def test_a_resolved_configuration_loads_again(
    tmp_path: Path, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names every option, and so does that of an older run, which knew no section tracking.

    A checkpoint's own configuration is read too.
    """
    directory = tmp_path / "run"
    assert main(["fit", *small_run(directory, teacher_directory)]) == 0
    resolved = directory / "config.yaml"
    settings = yaml.safe_load(resolved.read_text())
    assert (settings["growth"]["alpha"], settings["growth"]["unit"]) == (1.0, "epochs")
    del settings["tracking"]
    older = tmp_path / "older.yaml"
    older.write_text(yaml.safe_dump(settings))
    both = [f"--config={resolved}", f"--config={older}"]
    assert main(["fit", *both, "--ckpt_path=last"]) == 0
    assert main(["validate", f"--ckpt_path={directory / 'checkpoints' / 'last.ckpt'}"]) == 0
    assert "which has no effect" not in capsys.readouterr().err


def test_an_empty_overlay_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it has no line or none but comments, and however it is given; of any section too."""
    empty, comments = tmp_path / "empty.yaml", tmp_path / "comments.yaml"
    empty.touch()
    comments.write_text("# growth:\n#   depths: [12]\n")
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    sections = re.findall(r"^  --([\w.]+) CONFIG", capsys.readouterr().out, re.MULTILINE)
    assert {"growth", "data", "trainer", "model", "model.optimizer"} <= set(sections)
    printed = []
    overlays = (
        ["--config", str(empty), f"--config={comments}", "-c", str(empty), f"--conf={empty}"],
        [f"--{section}={comments}" for section in sections],
        [word for section in sections for word in (f"--{section}", str(empty))],
        [],
    )
    for overlay in overlays:
        with pytest.raises(SystemExit):
            main(["fit", f"--config={INTERLEAVED}", *overlay, "--print_config"])
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert all(each == printed[-1] for each in printed)


@pytest.mark.parametrize("option", ["--config", "--growth", "--model.optimizer"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- growth\n", "holds ['growth'], which is no section"),
        ("a: [", "is no YAML"),
        (b"\xff\xfe\x00", "can't be read"),
    ],
)
def test_an_overlay_that_is_no_configuration_is_named(
    option: str,
    content: str | bytes,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line."""
    path = tmp_path / "overlay.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["fit", f"--config={INTERLEAVED}", f"{option}={path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {option} {path} ")
    assert message in line


def _callback(path: str, **settings: object) -> str:
    added = [{"class_path": path, "init_args": settings}]
    return f"--trainer.callbacks={json.dumps(added)}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--growth=nowhere.yaml"], "growth: Unable to load config 'nowhere.yaml'"),
        (["fit", "--growth.depths=deep"], "growth.depths is deep: Expected a tuple"),
        (["fit", "--model.teacher.taps=a"], "model.teacher.taps is a: Expected "),
        (["fit", "--growht.depths=[1]"], "unrecognized arguments: --growht.depths=[1]"),
        (["fit", _callback("EarlyStopping", monitr="x")], "Option 'monitr' is not accepted"),
        (["fit", "--data.source=Tapes"], "data.source is Tapes: Expected a dot import path"),
        (["plan", "--seconds=long"], "seconds is long: Expected a float"),
        (["cache", "--model.precision_check=maybe"], "model.precision_check is maybe: Expected"),
        (["pack", "--source=LibriSpeechFolder"], "source: Problem with given class_path"),
    ],
    ids=lambda value: value[-1][:40] if isinstance(value, list) else "",
)
def test_what_the_parser_refuses_is_one_line(
    words: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a page of usage, and with where the options are explained."""
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert line.endswith(f"interstack {words[0]} --help explains every option")


def test_an_empty_file_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run's data, or of what is packed."""
    empty = tmp_path / "empty.yaml"
    empty.touch()
    for words in (["fit", f"--data.source={empty}"], ["pack", "--source", str(empty)]):
        assert main(words) == 2
        assert f"source {empty} holds nothing: write class_path" in capsys.readouterr().err


def test_loggers_decide_whether_an_outage_can_stop_a_run(
    tmp_path: Path, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is offline anyway can't."""
    wandb = {"class_path": "WandbLogger", "init_args": {"project": "x", "offline": True}}
    words = small_run(tmp_path / "run", teacher_directory)
    words += [f"--trainer.logger={json.dumps([CSV_ALONE, wandb])}", "--tracking.wandb_outage=stop"]
    assert main(["fit", *words]) == 2
    assert "tracking.wandb_outage is stop" in capsys.readouterr().err
