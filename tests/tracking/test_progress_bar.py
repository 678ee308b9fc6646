"""What the progress bar says, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys
from itertools import pairwise

import lightning as L
import pytest
import torch

from interstack.data.batch import collate
from interstack.growth.schedule import Stage
from interstack.tracking.meters import Audio, AudioMeter
from interstack.tracking.progress_bar import EtaEstimator, StageProgressBar
from tests.tracking.tracked_runs import DEPTHS, NUM_STEPS, MakeRun

CLOCK = r"(?:\d+:)?\d+:\d\d"
TIMES = rf"(, grows in {CLOCK}, ends in {CLOCK}|, ends in {CLOCK})?"
FIGURES = r"loss \d\.\d{4}(, [\d,.]+ s of audio/s)?" + TIMES
GROWTHS = [
    "step 3: grown from 2 to 3 layers by interleave, 1 2 2",
    "step 6: grown from 3 to 4 layers by interleave, 1 1 2 2",
]


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def shown_on_a_terminal(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, columns: int
) -> tuple[str, str]:
    """Run with a bar drawn at every step; return what it wrote, with its codes and without."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    make_run([StageProgressBar(refresh_seconds=0.0)]).fit()
    text = terminal.getvalue()
    return text, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_lines_name_stage_depth_step_loss_and_throughput(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal, and asked for one at every step, each step has its line."""
    make_run([StageProgressBar(line_seconds=0.0)]).fit()
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\r" not in text
    for step in range(1, NUM_STEPS + 1):
        stage = (step - 1) // 3
        line = rf"^stage {stage + 1}/3, depth {DEPTHS[stage]}, step {step}/9, {FIGURES}$"
        assert re.search(line, text, re.MULTILINE), text
    assert "s of audio/s" in text
    assert len(set(text.splitlines())) == len(text.splitlines())


def test_growth_is_announced_in_one_line_with_the_lineage(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first ancestors are counted from 1, as the paper does."""
    make_run([StageProgressBar()]).fit()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "grown" in line] == GROWTHS


def test_nothing_is_read_between_two_lines(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a long interval the device is asked once a stretch, where it begins, not every step."""
    readings: list[Audio] = []
    take = AudioMeter.take

    def count(meter: AudioMeter) -> Audio:
        readings.append(take(meter))
        return readings[-1]

    monkeypatch.setattr(AudioMeter, "take", count)
    make_run([StageProgressBar(line_seconds=1e9)], limit_val_batches=0).fit()
    assert len(readings) == len(DEPTHS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage 1/3, depth 2, step 0/9"
    assert lines[1:3] == GROWTHS
    assert re.fullmatch(rf"stage 3/3, depth 4, step 9/9, {FIGURES}", lines[3])
    assert len(lines) == 4


def test_the_audio_of_other_ranks_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar adds no collective to a step: without a process group one would raise."""
    trainer = L.Trainer(max_steps=4, logger=False, enable_checkpointing=False)
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    bar = StageProgressBar(line_seconds=1e9)
    batch = collate([torch.zeros(16_000)], ["a"])
    bar.on_train_batch_end(trainer, L.LightningModule(), None, batch, 0)


def test_a_run_measured_in_epochs_counts_batches_over_all_of_them(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is one count over the whole run, which never restarts."""
    make_run([StageProgressBar(line_seconds=0.0)], max_steps=-1, max_epochs=3).fit()
    counts = [int(count) for count in re.findall(r"batch (\d+)/6", capsys.readouterr().out)]
    assert counts[0] == 0
    assert counts[-1] == 6
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(counts))


def test_a_terminal_shows_a_bar_and_keeps_growth_steps_above_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look of the bar has it all, and the cursor is shown again."""
    text, plain = shown_on_a_terminal(make_run, monkeypatch, columns=100)
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    for line in GROWTHS:
        assert plain.count(line) == 1
    last = plain.rstrip().splitlines()[-1]
    assert re.search(r"stage 3/3 · depth 4 ━+", last), last
    assert re.search(r"step 9/9 · loss \d\.\d{4} · [\d,.]+ s of audio/s", last), last
    assert "validating" in plain
    assert re.search(rf"grows in {CLOCK} · ends in {CLOCK}", plain)


def test_a_disabled_bar_prints_nothing(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on all ranks but the first."""
    bar = StageProgressBar(line_seconds=0.0)
    bar.disable()
    make_run([bar]).fit()
    assert capsys.readouterr().out == ""


def test_validation_on_its_own_is_counted(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """`validate` shows its batches."""
    run = make_run([StageProgressBar(line_seconds=0.0)])
    run.data.validation_batch_seconds = 1.5
    run.validate()
    lines = capsys.readouterr().out.splitlines()
    total = len(lines)
    assert total > 1
    assert lines == [f"validation, batch {batch}/{total}" for batch in range(1, total + 1)]


def test_lines_have_the_times_until_the_stage_and_the_run_end(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the second step on, right after a growth too; nothing grows in the last stage."""
    make_run([StageProgressBar(line_seconds=0.0)]).fit()
    lines = {
        int(found[1]): line
        for line in capsys.readouterr().out.splitlines()
        if (found := re.search(r"step (\d+)/9", line))
    }
    for step in range(2, 7):
        assert re.search(rf"grows in {CLOCK}, ends in {CLOCK}$", lines[step]), lines[step]
    for step in (7, 8):
        assert "grows in" not in lines[step]
        assert re.search(rf"ends in {CLOCK}$", lines[step]), lines[step]
    assert "ends in" not in lines[9]


def test_a_narrow_terminal_shows_the_times_and_leaves_figures_out(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut off at 80 columns."""
    _, plain = shown_on_a_terminal(make_run, monkeypatch, columns=80)
    assert "…" not in plain
    shown = [line for line in re.split(r"[\r\n]+", plain) if "ends in" in line]
    assert re.search(rf"step 5/9 · loss \d\.\d{{4}} · grows in {CLOCK} · ends in {CLOCK}", plain)
    assert max(map(len, shown)) <= 80


STAGES = (Stage(3, 0.0, 0.5), Stage(6, 0.5, 0.75), Stage(9, 0.75, 1.0))


def test_the_first_eta_is_proportional_to_arithmetic() -> None:
    """A tenth of the run in ten seconds; deeper stages take twice and three times as long."""
    now = [100.0]
    eta = EtaEstimator(clock=lambda: now[0])
    assert eta.estimate(0.0, STAGES, float) is None
    eta.update(3, 0.0)
    assert eta.estimate(0.0, STAGES, float) is None
    now[0] += 10
    eta.update(3, 0.1)
    left = eta.estimate(0.1, STAGES, float)
    assert left == pytest.approx((40.0, 40.0 + 0.25 * 200 + 0.25 * 300))


def test_two_depths_predict_the_third() -> None:
    """On their line; and a growth, or a start, belongs to no stage's pace."""
    now = [0.0]
    eta = EtaEstimator(clock=lambda: now[0])
    for depth, done, seconds in ((3, 0.0, 0), (3, 0.5, 50), (6, 0.5, 1000), (6, 0.6, 12)):
        if seconds == 1000:
            eta.interrupt()
        now[0] += seconds
        eta.update(depth, done)
    left = eta.estimate(0.6, STAGES[1:], float)
    assert left == pytest.approx((0.15 * 120, 0.15 * 120 + 0.25 * 140))


def test_a_faster_depth_predicts_no_faster_ones() -> None:
    """A machine that drifts: the next stage takes as long as this one."""
    now = [0.0]
    eta = EtaEstimator(clock=lambda: now[0])
    for depth, done, seconds in ((3, 0.0, 0), (3, 0.5, 100)):
        now[0] += seconds
        eta.update(depth, done)
    eta.interrupt()
    for done, seconds in ((0.5, 0), (0.75, 25)):
        now[0] += seconds
        eta.update(6, done)
    left = eta.estimate(0.75, STAGES[2:], float)
    assert left == pytest.approx((25.0, 25.0))
