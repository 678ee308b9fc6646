"""The time of a study's runs: measured steps, looked up and added up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.study.modelled_time import (
    MeasuredSteps,
    ModelledRun,
    ModelledStage,
    StepCost,
    StepTimeBook,
    step_key,
)
from benchmarks.study.step_times import main
from interstack.errors import ConfigurationError
from interstack.models.config import StudentConfig
from tests.target_cache.cached_runs import settings

CONFIG: dict[str, Any] = {
    "model": {
        "student": vars(StudentConfig(dropout=0.2, attention_dropout=0.0)),
        "teacher": {"source": "some/teacher", "taps": (4, 8), "dtype": "float32"},
        "optimizer": {"kind": "muon", "learning_rate": 1e-3},
    },
    "data": {"batch_seconds": 32, "target_cache": None},
    "trainer": {"precision": "32-true"},
}
MEASURED = MeasuredSteps(
    step_key(CONFIG, 1),
    30.0,
    {3: [1.0, 1.2, 5.0], 12: [4.0, 4.0, 4.0]},
    [0.1, 0.3, 0.2],
    {3: 2e9, 12: 8e9},
    {(3, 12): [6.0, 8.0]},
)


def test_a_runs_time_is_its_steps_times_the_step_of_each_depth() -> None:
    """By hand: 10 steps of 1.2 s, a growth step of 7 s, 20 steps of 4 s."""
    run = StepTimeBook([MEASURED]).model(step_key(CONFIG, 1), [(3, 10), (12, 20)])
    assert run == ModelledRun(
        (
            ModelledStage(3, 10, StepCost(1.2, 0.2, 2e9)),
            ModelledStage(12, 20, StepCost(4.0, 0.2, 8e9), 7.0),
        )
    )
    assert run.num_steps == 30
    assert run.seconds == pytest.approx(12 + 7 + 80)
    assert run.data_seconds == pytest.approx(6.0)
    assert run.flops == pytest.approx(180e9)
    seconds = [run.seconds_at(step) for step in (0, 5, 10, 11, 30)]
    assert seconds == pytest.approx([0, 6, 12, 23, 99])
    assert run.flops_at(11) == pytest.approx(28e9)


def test_measurements_survive_their_record_and_later_ones_overrule() -> None:
    """Depths are numbers again, and pairs of them."""
    written = json.loads(json.dumps(MEASURED.to_primitives()))
    assert MeasuredSteps.from_primitives(written) == MEASURED
    later = replace(MEASURED, seconds={3: [9.0]}, growth_seconds={})
    book = StepTimeBook([MEASURED, later])
    assert book.cost(MEASURED.key, 3).seconds == 9.0
    assert book.cost(MEASURED.key, 12).seconds == 4.0


def test_a_key_names_what_a_step_depends_on_alone(tmp_path: Path) -> None:
    """Not the learning rate, the place of a model, or how a dropout was written."""
    key = step_key(CONFIG, 1)
    assert key["model.student.activation_dropout"] == 0.2
    assert key["model.teacher.source"] == "some/teacher"
    assert key["targets"] == "live"
    read = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(CONFIG))))
    read["model"]["optimizer"]["learning_rate"] = 2e-3
    read["model"]["student"]["activation_dropout"] = 0.2
    assert step_key(read, 1) == key
    read["model"]["teacher"]["source"] = str(tmp_path)
    read["data"]["target_cache"] = "somewhere"
    changed = step_key(read, 2)
    assert changed["model.teacher.source"] == tmp_path.name
    assert {name for name in key if key[name] != changed[name]} == {
        "model.teacher.source",
        "targets",
        "threads",
    }


def test_what_was_never_measured_is_refused_with_the_difference() -> None:
    """Of the nearest measurement."""
    book = StepTimeBook([MEASURED])
    with pytest.raises(ConfigurationError, match="the nearest has threads 1 for 2: measure it by"):
        book.cost(step_key(CONFIG, 2), 3)
    with pytest.raises(ConfigurationError, match=r"depth 6 .* has these settings at other depths"):
        book.cost(MEASURED.key, 6)
    with pytest.raises(ConfigurationError, match="has growth from depth 12 to 3 of"):
        book.model(MEASURED.key, [(12, 1), (3, 1)])
    with pytest.raises(ConfigurationError, match="the nearest has nothing at all"):
        StepTimeBook([]).cost(MEASURED.key, 3)


def tiny(teacher: Path, tmp_path: Path, *more: str) -> list[str]:
    """Options of a measurement that costs next to nothing."""
    return [*settings(teacher), "--batches=2", "--repetitions=1", f"--output={tmp_path}", *more]


def measured_in(directory: Path) -> list[MeasuredSteps]:
    """Read the one record of a directory."""
    (path,) = directory.glob("step-times-*.json")
    values = json.loads(path.read_text())
    assert values["surroundings"]["threads"]
    return [MeasuredSteps.from_primitives(each) for each in values["measured"]]


@pytest.mark.parametrize("front_end", ["shared", "own"])
def test_steps_are_measured_with_a_cache_of_their_own(
    front_end: str, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With cached features or decoded audio; and are found by what a run's settings say."""
    overlay = tmp_path / "overlay.yaml"
    student = {"front_end": front_end} | ({"conv_dim": [8] * 7} if front_end == "own" else {})
    overlay.write_text(json.dumps({"model": {"student": student, "optimizer": {"kind": "muon"}}}))
    words = tiny(teacher_directory, tmp_path, "--cache=float16", f"--overlay={overlay}")
    assert main([*words, "--threads=1"]) == 0
    assert "depth 4: " in capsys.readouterr().out
    (measured,) = measured_in(tmp_path)
    assert list(measured.seconds) == list(measured.flops) == [2, 4]
    assert all(len(each) == 2 and min(each) > 0 for each in measured.seconds.values())
    assert 0 < measured.flops[2] < measured.flops[4]
    assert list(measured.growth_seconds) == [(2, 4)]
    assert 0 < measured.audio_seconds <= 8
    key = measured.key
    assert (key["targets"], key["model.optimizer.kind"], key["threads"]) == ("cache", "muon", 1)
    assert key["model.teacher.source"] == teacher_directory.name
    assert str(tmp_path) not in (next(tmp_path.glob("step-times-*.json"))).read_text()


def test_every_arm_of_a_study_is_measured_once(teacher_directory: Path, tmp_path: Path) -> None:
    """Arms that differ by what takes no time are one, and those that can't be cached are live."""
    config, *words = settings(teacher_directory)
    base = dict(word.removeprefix("--").split("=", 1) for word in words)
    study = tmp_path / "study.yaml"
    arms = {
        "plain": {},
        "hot": {"model.optimizer.learning_rate": 2e-3},
        "deep": {"growth.depths": [4]},
        "random": {"data.crop": "random"},
    }
    content = {
        "config": config.partition("=")[2],
        "settings": {name: yaml.safe_load(value) for name, value in base.items()},
        "arms": arms,
        "seeds": [1, 2],
        "cache": "float16",
    }
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    words = ["--batches=1", "--repetitions=1", f"--output={tmp_path}", f"--study={study}"]
    assert main(words) == 0
    measured = measured_in(tmp_path)
    found = [(list(each.seconds), each.key["targets"]) for each in measured]
    assert found == [([2, 4], "cache"), ([4], "cache"), ([2, 4], "live")]
    book = StepTimeBook.read(tmp_path)
    assert book.model(measured[0].key, [(2, 5), (4, 5)]).seconds > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cache=float16", "--data.crop=random"], "--cache is float16, but data.crop is random"),
        (["--overlay=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_cant_be_measured_is_refused(
    words: list[str],
    message: str,
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With status 2 and the setting's name, or as `fit` refuses it."""
    try:
        status = main(tiny(teacher_directory, tmp_path, *words))
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err
