"""What models cost, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModel

from interstack.cli import main
from tests.models.families import save

TEACHER = Path(__file__).parents[2] / "assets" / "teacher"


def test_models_are_measured_beside_each_other(
    teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes are the models' own, and every round is in the report."""
    report = tmp_path / "costs.json"
    words = [str(teacher_directory), str(TEACHER), "--seconds=1", "--rounds=3", f"--json={report}"]
    assert main(["inspect", *words]) == 0
    table = capsys.readouterr().out
    models = json.loads(report.read_text())["models"]
    for place, found in zip((teacher_directory, TEACHER), models, strict=True):
        model = AutoModel.from_pretrained(place)
        assert found["num_parameters"] == model.num_parameters()
        assert found["depth"] == model.config.num_hidden_layers
        assert found["width"] == model.config.hidden_size
        assert found["megabytes"] == pytest.approx(
            (place / "model.safetensors").stat().st_size / 1e6
        )
        assert len(found["real_time_factors"]) == 3
        assert min(found["real_time_factors"]) > 0
        assert f"{found['num_parameters'] / 1e6:.2f} M" in table
    small, large = (found["gigamacs_per_second"] for found in models)
    assert large > 10 * small


def test_an_exports_teacher_is_measured_too(
    teacher_directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as it is where the export says; else that is said."""
    export = tmp_path / "student"
    AutoModel.from_pretrained(teacher_directory).save_pretrained(export)
    report = tmp_path / "costs.json"
    words = [str(export), "--seconds=0.5", "--rounds=1", f"--json={report}"]
    for teacher, names in (
        (str(TEACHER), [str(export), str(TEACHER)]),
        (str(tmp_path / "gone"), [str(export)]),
    ):
        (export / "interstack.json").write_text(json.dumps({"teacher": teacher}))
        assert main(["inspect", *words]) == 0
        assert [model["model"] for model in json.loads(report.read_text())["models"]] == names
    assert "without the teacher" in caplog.text


def test_what_can_not_be_measured_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another architecture, a directory that isn't there, a length that can't be."""
    stranger = tmp_path / "bert"
    stranger.mkdir()
    (stranger / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (stranger / "model.safetensors").touch()
    for words, message in (
        ([str(stranger)], "model of type 'bert'"),
        ([str(tmp_path / "nowhere")], "nowhere"),
        ([str(TEACHER), "--seconds=0"], "--seconds"),
        ([str(save("whisper", tmp_path)), "--seconds=2"], "give --seconds 1 or less"),
    ):
        assert main(["inspect", *words]) == 2
        assert message in capsys.readouterr().err
