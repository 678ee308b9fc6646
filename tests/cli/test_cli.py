"""The command line: help, configurations that overlay and round-trip, and what a run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from interstack.cli import main
from interstack.commands import COMMANDS
from interstack.distillation.module import Distillation
from tests import REPOSITORY

SPEECH = REPOSITORY / "assets" / "speech"
CSV_ALONE = {
    "class_path": "MetricsFile",
    "init_args": {"save_dir": "."},
}
INTERLEAVED = REPOSITORY / "configs" / "interleaved.yaml"


def small_run(directory: Path, teacher: Path) -> list[str]:
    """Options that make a run of four steps and two stages of the embedded configuration."""
    return [
        f"--config={INTERLEAVED}",
        f"--trainer.default_root_dir={directory}",
        "--trainer.max_steps=4",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=1",
        f"--trainer.logger={json.dumps([CSV_ALONE])}",
        f"--model.teacher.source={teacher}",
        "--model.teacher.taps=[2,4]",
        "--model.student.hidden_size=16",
        "--model.student.intermediate_size=32",
        "--model.student.num_attention_heads=2",
        "--growth.depths=[2,4]",
        f"--data.source.init_args.root={SPEECH}",
        "--data.batch_seconds=16",
        "--data.num_workers=0",
    ]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """The directory of a run that has come to its end."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", *small_run(directory, teacher_directory)]) == 0
    return directory


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the user learns what there is."""
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A slip of the pen gets the overview and status 2."""
    assert main(["fti"]) == 2
    assert "there is no command 'fti'" in capsys.readouterr().err


def test_every_command_of_the_table_is_a_function() -> None:
    """Under its dotted name, which is imported when the command is called."""
    for function, summary in COMMANDS.values():
        module, _, name = function.rpartition(".")
        assert callable(getattr(import_module(module), name))
        assert summary


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_explains_every_option_of_ours(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option of model, growth and data has an explanation beside it."""
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    blocks = text.split("\n  --")[1:]
    ours = [block for block in blocks if block.startswith(("model.", "growth.", "data."))]
    assert len(ours) > 40
    for block in ours:
        option, _, rest = block.partition(" ")
        if option.endswith((".help", "config")) or rest.startswith("CONFIG"):
            continue
        explanation = " ".join(rest.split("(type:")[0].split("(required")[0].split()[1:])
        assert len(explanation) > 10, f"--{option} is not explained"


def test_the_console_script_is_the_same_entry() -> None:
    """``interstack`` and ``python -m interstack.cli`` say the same."""
    script = Path(sys.executable).with_name("interstack")
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in ([script], [sys.executable, "-m", "interstack.cli"])
    ]
    assert outputs[0] == outputs[1]
    assert "usage:" in outputs[0]


def test_a_printed_configuration_round_trips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What --print_config prints is read back as the same configuration."""
    printed = []
    source = INTERLEAVED
    for turn in range(2):
        with pytest.raises(SystemExit):
            main(["fit", f"--config={source}", "--growth.operator=midas", "--print_config"])
        printed.append(capsys.readouterr().out)
        source = tmp_path / f"{turn}.yaml"
        source.write_text(printed[-1])
    assert printed[0] == printed[1]
    assert yaml.safe_load(printed[0])["growth"]["operator"] == "midas"


def test_later_configurations_lie_over_earlier_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last --config wins, key by key."""
    rivals = INTERLEAVED.parent / "rivals"
    overlays = [f"--config={rivals / name}.yaml" for name in ("append", "prop1")]
    with pytest.raises(SystemExit):
        main(["fit", f"--config={INTERLEAVED}", *overlays, "--print_config"])
    growth = yaml.safe_load(capsys.readouterr().out)["growth"]
    assert (growth["operator"], growth["depths"]) == ("append", [3, 6, 12])
    assert (growth["schedule"], growth["alpha"]) == ("prop", 1.0)


def test_a_run_leaves_its_configuration_and_its_student(finished_run: Path) -> None:
    """The run's directory holds all that is needed to repeat, read and use it."""
    saved = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert saved["growth"]["depths"] == [2, 4]
    assert (finished_run / "metrics.csv").is_file()
    assert (finished_run / "checkpoints" / "last.ckpt").is_file()
    assert len(json.loads((finished_run / "stages.json").read_text())["stages"]) == 2
    student = AutoModel.from_pretrained(finished_run / "student")
    assert student.config.num_hidden_layers == 4
    loaded = Distillation.load_from_checkpoint(finished_run / "checkpoints" / "last.ckpt")
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, loaded.student.model.state_dict()[name])


@pytest.mark.parametrize("option", ["model.teacher.source", "data.target_cache"])
def test_a_run_that_can_not_start_leaves_an_earlier_one_alone(
    option: str,
    tmp_path: Path,
    teacher_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A teacher or cache that is not there is found before anything is moved."""
    words = ["fit", *small_run(tmp_path / "run", teacher_directory)]
    earlier = tmp_path / "run" / "checkpoints" / "last.ckpt"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("an earlier run's")
    more = ["--data.crop=fixed"] if option == "data.target_cache" else []
    assert main([*words, f"--{option}={tmp_path / 'nowhere'}", *more]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert earlier.read_text() == "an earlier run's"


def test_a_second_run_moves_the_first_aside(tmp_path: Path, teacher_directory: Path) -> None:
    """Running the same command twice loses nothing."""
    options = small_run(tmp_path / "run", teacher_directory)
    assert main(["fit", *options]) == 0
    first = (tmp_path / "run" / "metrics.csv").read_text()
    assert main(["fit", *options]) == 0
    assert (tmp_path / "run.1" / "metrics.csv").read_text() == first
    assert (tmp_path / "run" / "metrics.csv").is_file()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_judged_from_its_path(
    command: str,
    finished_run: Path,
    teacher_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Validate and test take a grown checkpoint, and print its loss."""
    options = small_run(finished_run, teacher_directory)
    checkpoint = finished_run / "checkpoints" / "last.ckpt"
    metrics = (finished_run / "metrics.csv").read_text()
    assert main([command, *options, f"--ckpt_path={checkpoint}"]) == 0
    assert {"validate": "val/loss", "test": "test/loss"}[command] in capsys.readouterr().out
    assert (finished_run / "metrics.csv").read_text() == metrics


def test_predict_writes_hidden_states(finished_run: Path, teacher_directory: Path) -> None:
    """One file an utterance of the test split, every hidden state of the grown student."""
    options = small_run(finished_run, teacher_directory)
    checkpoint = finished_run / "checkpoints" / "last.ckpt"
    assert main(["predict", *options, f"--ckpt_path={checkpoint}"]) == 0
    files = sorted((finished_run / "hidden_states").iterdir())
    clips = list((SPEECH / "LibriSpeech" / "test-clean").rglob("*.flac"))
    assert {file.stem for file in files} <= {clip.stem for clip in clips}
    assert len(files) > 0.9 * len(clips)
    depth, frames, width = load_file(files[0])["hidden_states"].shape
    assert (depth, width) == (5, 16)
    assert frames > 10


def test_pack_makes_shards_that_a_run_streams(
    tmp_path: Path, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pack and fit fit together."""
    shards = tmp_path / "shards"
    words = ["pack", "--source=LibriSpeechFolder", f"--source.root={SPEECH}"]
    words += [f"--output={shards}", "--splits=[validation]", "--utterances_per_shard=10"]
    assert main(words) == 0
    assert "validation:" in capsys.readouterr().out
    options = [
        option
        for option in small_run(tmp_path / "run", teacher_directory)
        if not option.startswith("--data.source")
    ]
    options += [
        "--data.source=Shards",
        f"--data.source.train=[{shards / 'validation'}]",
        f"--data.source.validation=[{shards / 'validation'}]",
        "--data.epoch_batches=4",
    ]
    assert main(["fit", *options]) == 0
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
