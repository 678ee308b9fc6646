"""A study: its runs, its grid, and each of its mistakes as one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from interstack.cli import main
from interstack.commands.lightning import run_lightning
from interstack.errors import ConfigurationError
from interstack.sweep.queue import slot_environment
from interstack.sweep.results import RunResult, rows_of, welch_p_value
from interstack.sweep.study import PlannedRun, Study
from tests import REPOSITORY

BASE = str(REPOSITORY / "configs" / "interleaved.yaml")
MIDAS = str(REPOSITORY / "configs" / "rivals" / "midas.yaml")


def content(**more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a study of two arms and two seeds, with some keys replaced."""
    return {"config": BASE, "arms": {"plain": [], "midas": MIDAS}, "seeds": [1, 2], **more}


def test_a_run_is_an_arm_a_value_and_a_seed() -> None:
    """Base, settings, arm, value and seed follow in this order, so that the later one holds."""
    study = Study.from_primitives(
        content(
            arms={"wide": [MIDAS, {"model": {"student": {"hidden_size": 8}}}], "plain": None},
            values={"model.optimizer.learning_rate": ["1e-3", 2], "growth.depths": [[2, 4]]},
            settings={"trainer.max_steps": 4},
        ),
        "study.yaml",
    )
    runs = study.runs()
    assert len(runs) == len({run.name for run in runs}) == 8
    assert runs[0].name == "wide-learning_rate=1e-3-depths=-2-4-seed1"
    assert runs[0].group == "wide learning_rate=1e-3 depths=[2, 4]"
    assert runs[0].words == (
        f"--config={BASE}",
        "--trainer.max_steps=4",
        f"--config={MIDAS}",
        "--model.student.hidden_size=8",
        "--model.optimizer.learning_rate=1e-3",
        "--growth.depths=[2, 4]",
        "--seed_everything=1",
    )
    assert study.group_of("plain", runs[0]) == "plain learning_rate=1e-3 depths=[2, 4]"
    assert [run.seed for run in runs] == [1] * 4 + [2] * 4


def test_values_of_one_name_have_longer_names() -> None:
    """The shortest end of a dotted name that no other value shares."""
    values = {"data.seed": [1], "model.seed": [2]}
    [run] = Study.from_primitives(content(arms={"a": []}, seeds=[1], values=values), "s").runs()
    assert run.group == "a data.seed=1 model.seed=2"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"config": None}, ["config is missing"]),
        ({"config": "nowhere.yaml"}, ["config has nowhere.yaml", "no file"]),
        ({"arm": {}}, ["arm is unknown", "arms"]),
        ({"arms": {}}, ["arms is no mapping"]),
        ({"arms": {"a b": []}}, ["'a b'"]),
        ({"arms": {"a": ["nowhere.yaml"]}}, ["arms.a has nowhere.yaml"]),
        ({"arms": {"a": {"trainer": {"default_root_dir": "x"}}}}, ["default_root_dir", "--output"]),
        ({"seeds": []}, ["seeds is missing"]),
        ({"seeds": [1, 1]}, ["seeds has 1 twice"]),
        ({"seeds": ["x"]}, ["seeds has 'x'"]),
        ({"values": {"growth.alpha": 2}}, ["values.growth.alpha is 2", "list"]),
        ({"values": {"growth.alpha": [2, 2]}}, ["values.growth.alpha has a value twice"]),
        ({"values": {"seed_everything": [2]}}, ["seed_everything", "give seeds"]),
        ({"values": {"growth.x": ["a b", "a/b"]}}, ["several runs", "plain-x=a-b-seed1"]),
        ({"cache": "float8"}, ["cache is float8", "float16"]),
        ({"baseline": "other"}, ["baseline is other", "plain, midas"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_a_mistake_is_one_line(more: dict[str, Any], named: list[str]) -> None:
    """It names the file and what is wrong there."""
    with pytest.raises(ConfigurationError) as caught:
        Study.from_primitives(content(**more), "study.yaml")
    lines = str(caught.value).splitlines()
    assert any(all(name in line for name in ["study.yaml:", *named]) for line in lines)


def test_all_mistakes_are_reported_at_once() -> None:
    """One line each."""
    with pytest.raises(ConfigurationError) as caught:
        Study.from_primitives(content(seeds=[-1], cache="x", baseline="y"), "study.yaml")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--values", "model.optimizer.learning_rat=1,2"], ["learning_rat is no setting"]),
        (["--values", "growth.depths=[3,6],[6,3]"], ["plain depths=[6, 3]: growth.depths"]),
        (["--set", "trainer.max_step=4"], ["max_step is no setting"]),
        (["--set", "trainer.max_steps=many"], ["plain: ", "max_steps"]),
        (["--set", "checkpoint.dirpath=x"], ["checkpoint.dirpath is x"]),
        (["--cache", "float16"], ["no arm can use one", "data.crop is random"]),
        (["--partition", "2/2"], ["--partition 2/2"]),
        (["--jobs", "0"], ["--jobs is 0"]),
        (["--study", "x.yaml"], ["--config", "--study"]),
    ],
    ids=lambda value: "" if not value[0].startswith("--") else " ".join(value),
)
def test_a_run_that_fit_would_refuse_is_refused_before_all(
    options: list[str],
    named: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line that names the arm; nothing is written."""
    monkeypatch.chdir(REPOSITORY)
    output = tmp_path / "sweep"
    words = ["sweep", f"--config={BASE}", "--arms", "plain=", "--seeds", "1", f"--output={output}"]
    assert main([*words, *options]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in named), error
    assert not output.exists()


def test_equal_arms_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their runs would cost hours and show nothing."""
    monkeypatch.chdir(REPOSITORY)
    words = ["sweep", "--config", BASE, "--arms", "a=", "b=", "--seeds", "1", "--dry-run"]
    assert main([*words, f"--output={tmp_path / 'sweep'}"]) == 2
    assert "a and b have the same settings" in capsys.readouterr().err


def test_welch_s_test_is_that_of_known_figures() -> None:
    """Example 1 of Welch's t-test on Wikipedia has t = -2.46 at 25.0 degrees of freedom."""
    one = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    other = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5]
    other += [24.4]
    assert welch_p_value(one, other) == pytest.approx(0.021, abs=5e-4)
    assert welch_p_value([1.0], [1.0, 2.0]) is None
    assert welch_p_value([1.0, 1.0], [2.0, 2.0]) is None
    assert welch_p_value([1.0, math.inf], [2.0, 3.0]) is None


def test_a_row_has_mean_deviation_and_test() -> None:
    """A run without a value counts for nothing; the baseline is not tested against itself."""
    values = [("a", 1.0), ("a", 3.0), ("b", 2.0), ("b", 6.0), ("b", None)]
    results = [
        RunResult(PlannedRun(f"{group}{seed}", group, group, seed, ()), value, 4, 0.5)
        for seed, (group, value) in enumerate(values)
    ]
    base, tested = rows_of({"a": "a", "b": "a"}, results)
    assert (base.mean, base.num_runs, base.difference, base.p_value) == (2.0, 2, None, None)
    assert (tested.mean, tested.num_runs, tested.difference, tested.hours) == (4.0, 2, 2.0, 0.5)
    assert tested.spread == pytest.approx(math.sqrt(8))
    # two runs each: t = 2 / sqrt(2 / 2 + 8 / 2) at 25 / 17 degrees of freedom
    assert tested.p_value == welch_p_value([2.0, 6.0], [1.0, 3.0])


def test_workers_divide_cores_and_gpus() -> None:
    """Fewer threads that are set are kept; fewer GPUs than workers are shared."""
    assert slot_environment(0, 1, 8, ["0"], {}) == {}
    assert slot_environment(1, 2, 5, [], {}) == {"OMP_NUM_THREADS": "2"}
    assert slot_environment(0, 2, 8, [], {"OMP_NUM_THREADS": "1"}) == {"OMP_NUM_THREADS": "1"}
    assert slot_environment(2, 3, 2, ["4", "5"], {})["CUDA_VISIBLE_DEVICES"] == "4"
    assert slot_environment(1, 2, 2, list("0123"), {})["CUDA_VISIBLE_DEVICES"] == "1,3"


def test_the_command_of_the_wandb_sweep_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the arguments that an agent of W&B puts in."""
    import shlex

    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    monkeypatch.chdir(REPOSITORY)
    sweep = yaml.safe_load((REPOSITORY / "configs" / "sweeps" / "learning_rate.yaml").read_text())
    chosen = {name: {"value": each["values"][0]} for name, each in sweep["parameters"].items()}
    args = create_sweep_command_args({"args": chosen})["args"]
    env, shell, option, script, _, last = sweep["command"]
    assert (env, shell, option, last) == ("${env}", "bash", "-c", "${args}")
    words = shlex.split(script.replace('"$@"', shlex.join(args)))
    fit = words[words.index("fit") + 1 :]
    fit.remove("--ckpt_path=last")
    config = run_lightning(fit, run=False).config
    assert config.model.optimizer.learning_rate == 5e-4
    assert config.seed_everything == 1


def test_the_shipped_study_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dry run lists the cache and every run, and writes nothing."""
    monkeypatch.chdir(REPOSITORY)
    output = tmp_path / "sweep"
    words = ["sweep", "--study=configs/sweeps/rivals.yaml", f"--output={output}", "--dry_run"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "12 runs"
    assert sum(line.startswith("targets-float16-") for line in lines) == 1
    assert sum("--data.target_cache=" in line and "(new)" in line for line in lines) == 12
    assert not output.exists()
