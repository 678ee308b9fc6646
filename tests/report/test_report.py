"""Runs as one HTML file: from their own records, whatever became of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from interstack.cli import main
from interstack.growth.operators import get_operator, plan_growth
from interstack.report.compare import (
    GrowthCost,
    common_loss,
    estimate_speedup,
    group_by_recipe,
    growth_costs,
    times_to_loss,
)
from interstack.report.page import render
from interstack.report.run import read_runs
from interstack.tracking.lineage import layer_rows
from interstack.tracking.step_timer import PARTS
from tests.checkpointing.full_disks import NoSpace
from tests.target_cache.cached_runs import fit

LONG = ("--trainer.max_steps=12", "--trainer.log_every_n_steps=2")
DAILY = "--trainer.check_val_every_n_epoch=1"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """A finished run that grew once."""
    directory = tmp_path_factory.mktemp("runs") / "grown"
    assert fit(directory, teacher_directory, *LONG, DAILY) == 0
    return directory


def made_up(
    directory: Path,
    losses: Sequence[tuple[float, float]],
    *,
    seed: int = 1,
    depths: Sequence[int] = (2, 4),
    lr: float = 1e-3,
    grows_after: int | None = None,
) -> Path:
    """Write the records of a run with validation losses at hours of training.

    With `grows_after` it grows after so many of them, by which the loss rises by a tenth.
    """
    directory.mkdir(parents=True)
    axes = {"progress/audio_hours": 0.0, "progress/training_pflops": 0.0}
    figures: dict[str, Any] = {f"split/{part}": 0.1 for part in PARTS}
    figures |= {"speed/audio_seconds_per_second": 10.0, "memory/peak_mebibytes": 100.0}
    events = []
    for step, (hours, loss) in enumerate(losses, start=1):
        place = {"step": step, **axes, "progress/wall_clock_hours": hours}
        depth = depths[0] if grows_after is None or step <= grows_after else depths[1]
        events.append({"kind": "point", **place, **figures, "train/loss": loss})
        events[-1]["train/depth"] = depth
        events.append({"kind": "validation", **place, "losses": {"val/loss": loss}})
        if step == grows_after:
            plan = plan_growth(get_operator("interleave"), (0, 1), depths[1])
            grown: dict[str, Any] = {"from_depth": depths[0], "to_depth": depths[1]}
            grown["layers"] = layer_rows((0, 0, 1, 1), plan, (1, 3))
            grown |= {"validation_before": loss, "validation_after": 1.1 * loss}
            events.append({"kind": "growth", **place, **grown})
            back = {"before": loss, "peak": 1.2 * loss, "after_steps": 7}
            events.append({"kind": "recovery", **place, "step": step + 1, **back})
    (directory / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    config = {
        "seed_everything": seed,
        "trainer": {"default_root_dir": str(directory)},
        "growth": {"depths": list(depths)},
        "model": {"lr": lr},
    }
    (directory / "config.yaml").write_text(json.dumps(config))
    return directory


class Wellformed(HTMLParser):
    """Checks that every tag that is opened is closed, and notes what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        wanted = [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        self.fetched += [value for value in wanted if not value.startswith(("#", "data:"))]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that closes itself."""
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Close the last one."""
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_complete(run: Path, tmp_path: Path) -> None:
    """Nothing is fetched; stages, lineage, step split and maps are there, in the page's own ink."""
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    text = page.read_text()
    checked = Wellformed()
    checked.feed(text)
    assert checked.open == []
    assert checked.fetched == []
    assert "@import" not in text
    assert "url(http" not in text
    stages = json.loads((run / "stages.json").read_text())["stages"]
    for stage in stages:
        assert f"{stage['validation_loss_after']:.4f}" in text
    assert text.count("<svg") == 3 + 1 + 2
    assert "currentColor" in text
    assert "#010203" not in text
    for words in ("Lineage", "1.1", "2.2", "2 layers", "4 layers", "linear CKA", "student forward"):
        assert words in text
    assert len(re.findall(r'class="layer[^"]*clone', text)) == 2
    assert "Side by side" not in text


def test_a_run_that_died_is_shown_up_to_its_last_event(run: Path, tmp_path: Path) -> None:
    """In the midst of its first stage, with half a line at its end."""
    died = tmp_path / "died"
    died.mkdir()
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (died / "events.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    page = tmp_path / "report.html"
    assert main(["report", str(died), "-o", str(page)]) == 0
    text = page.read_text()
    assert "unknown, or died: its last record is of 20" in text
    assert "Lineage" not in text
    assert text.count("<svg") == 3 + 1


def test_seeds_of_a_recipe_are_one_line_with_a_band(tmp_path: Path) -> None:
    """Whatever their directories are called; another learning rate is another recipe."""
    runs = [
        made_up(tmp_path / f"seed{seed}", [(1, 2.0), (2, 1.0 + 0.1 * seed)], seed=seed)
        for seed in range(3)
    ]
    runs.append(made_up(tmp_path / "fast", [(1, 2.0), (2, 1.0)], lr=1.0))
    groups = group_by_recipe(read_runs(runs))
    assert [len(group.runs) for group in groups] == [3, 1]
    assert groups[0].name == "seed0 (3 seeds)"
    assert "seed0 (3 seeds)" in render(read_runs(runs))


def test_the_time_to_a_loss_is_read_between_validations(tmp_path: Path) -> None:
    """The loss is the lowest that all reach; full depth throughout is what speed-up is against."""
    growing = made_up(tmp_path / "growing", [(1, 3.0), (2, 1.0)])
    full = made_up(tmp_path / "full", [(2, 3.0), (6, 1.5)], depths=(4,))
    groups = group_by_recipe(read_runs([growing, full]))
    loss = common_loss(groups)
    assert loss == 1.5
    mine, theirs = times_to_loss(groups, loss)
    assert mine.seconds == (pytest.approx(1.75 * 3600),)
    assert theirs.seconds == (pytest.approx(6 * 3600),)
    assert mine.speedups == (pytest.approx(6 / 1.75),)
    assert theirs.speedups == (pytest.approx(1.0),)
    page = render(read_runs([growing, full]))
    assert "1:45:00" in page
    assert "3.43×" in page


def test_without_a_run_at_full_depth_there_is_no_speedup(tmp_path: Path) -> None:
    """Times are compared all the same."""
    one = made_up(tmp_path / "one", [(1, 3.0), (2, 1.0)])
    other = made_up(tmp_path / "other", [(1, 3.0), (3, 1.0)], lr=2.0)
    found = times_to_loss(group_by_recipe(read_runs([one, other])), 1.0)
    assert [each.speedups for each in found] == [(), ()]


def test_a_shallow_run_is_no_run_at_full_depth(tmp_path: Path) -> None:
    """Although it never grows."""
    growing = made_up(tmp_path / "growing", [(1, 3.0), (2, 1.0)])
    shallow = made_up(tmp_path / "shallow", [(1, 3.0), (3, 1.0)], depths=(2,))
    found = times_to_loss(group_by_recipe(read_runs([growing, shallow])), 1.0)
    assert [each.speedups for each in found] == [(), ()]


def test_runs_are_compared_at_a_given_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that not all of them have reached; and seeds have their spread."""
    runs = [
        made_up(tmp_path / f"seed{seed}", [(1, 3.0), (1 + seed, 1.0)], seed=seed) for seed in (1, 2)
    ]
    runs.append(made_up(tmp_path / "full", [(2, 3.0), (6, 1.5)], depths=(4,)))
    page = tmp_path / "report.html"
    words = ["report", *map(str, runs), "-o", str(page)]
    assert main(words) == 0
    text = page.read_text()
    assert "1.5000, the lowest that all of them reach" in text
    assert "2:07:30<br><small>1:45:00–2:30:00</small>" in text
    assert "2.91×<br><small>2.40×–3.43×</small>" in text
    assert main([*words, "--loss=1.2"]) == 0
    text = page.read_text()
    assert "loss of 1.2000. Speed-up" in text
    assert "not reached" in text
    assert main([*words, "--loss=0"]) == 2
    assert "--loss 0" in capsys.readouterr().err


def test_the_summary_has_cost_and_speedup_of_growing(tmp_path: Path) -> None:
    """A shallow step takes an hour, a deep one two: four would have taken eight instead of six."""
    run = made_up(tmp_path / "run", [(1, 4.0), (2, 3.0), (4, 2.0), (6, 1.0)], grows_after=2)
    (record,) = read_runs([run])
    assert growth_costs(record) == [GrowthCost(4, pytest.approx(0.1), 7)]
    found = estimate_speedup(record)
    assert found is not None
    assert found.speedup == pytest.approx(8 / 6)
    page = render([record])
    assert "4 layers: validation loss +10.0 %, training loss back after 7 steps" in page
    assert "about 1.33×" in page
    assert "8:00:00 instead of 6:00:00" in page


def test_a_recovery_belongs_to_the_growth_step_before_it(tmp_path: Path) -> None:
    """Told at the very step of the next growth, it is still of the one before it."""
    run = made_up(tmp_path / "run", [(1, 4.0), (2, 3.0), (4, 2.0), (6, 1.0)], grows_after=2)
    (record,) = read_runs([run])
    growths = [{**record.growths[0], "step": 2}, {**record.growths[0], "step": 4}]
    back = record.recoveries[0]
    record = replace(record, growths=growths, recoveries=[{**back, "step": 4}])
    assert [cost.recovered_after for cost in growth_costs(record)] == [7, None]
    record = replace(record, recoveries=[{**back, "step": 5}])
    assert [cost.recovered_after for cost in growth_costs(record)] == [None, 7]


def test_a_run_that_has_just_grown_has_no_estimate(tmp_path: Path) -> None:
    """One point is no pace; and one that never grew has nothing to tell."""
    run = made_up(tmp_path / "run", [(1, 4.0), (2, 3.0), (4, 2.0)], grows_after=2)
    shallow = made_up(tmp_path / "shallow", [(1, 4.0), (2, 3.0)])
    records = read_runs([run, shallow])
    assert [estimate_speedup(record) for record in records] == [None, None]
    assert "Growing saved" not in render(records)
    assert "Growing cost" not in render(records[1:])


def test_runs_of_one_name_have_their_paths_as_names(tmp_path: Path) -> None:
    """By their paths."""
    runs = [made_up(tmp_path / str(lr) / "run", [(1, 1.0)], lr=lr) for lr in (1, 2)]
    assert [record.name for record in read_runs(runs)] == [str(run) for run in runs]


def test_a_directory_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory without records, one that isn't there, a page that can't be written."""
    assert main(["report", str(tmp_path)]) == 2
    assert "has no events.jsonl" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    run = made_up(tmp_path / "run", [(1, 1.0)])
    assert main(["report", str(run), "-o", str(tmp_path)]) == 2
    assert "give -o another file" in capsys.readouterr().err
    with NoSpace(tmp_path):
        assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert "report.html can't be written (No space left on device): free space" in error


@pytest.mark.parametrize("name", ["config.yaml", "events.jsonl", "stages.json"])
def test_unreadable_records_are_an_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without its configuration would be compared as another recipe."""
    run = made_up(tmp_path / "run", [(1, 1.0)])
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 2
    assert f"{run / name} can't be read (Is a directory): give" in capsys.readouterr().err


def test_damaged_records_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no text are no events; events without what they need are named."""
    run = made_up(tmp_path / "run", [(1, 2.0), (2, 1.0)])
    events = run / "events.jsonl"
    whole = events.read_text()
    events.write_bytes(b"\xff\xfe\n" + whole.encode() + b"\x00[1]\n")
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    events.write_text(whole.replace("progress/audio_hours", "elsewhere"))
    assert main(["report", str(run), "-o", str(page)]) == 2
    assert "KeyError: 'progress/audio_hours'" in capsys.readouterr().err


def test_names_of_runs_are_text_and_never_markup(tmp_path: Path) -> None:
    """A directory may be called anything."""
    run = made_up(tmp_path / "<script>alert(1)<", [(1, 1.0)])
    assert "<script>" not in render(read_runs([run]))
