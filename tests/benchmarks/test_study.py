"""The study's own tools: its corpus, a run's record, the tables made from records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.study.corpus import JUDGED_SPEAKERS, arrange
from benchmarks.study.judge import FILES, finished_runs
from benchmarks.study.records import RunRecord, curves_of, read_all
from benchmarks.study.results import write_results
from benchmarks.study.run import main as run_study
from interstack.errors import ConfigurationError

RECORD = RunRecord(
    name="full-seed1",
    study="a_operators",
    group="full",
    arm="full",
    seed=1,
    words=("--seed_everything=1",),
    environment={"python": "3.11"},
    points={"step": [10, 20], "depth": [3, 3], "loss": [1.0, 0.5]},
    validations=[{"step": 10, "depth": 3, "loss": 0.9}, {"step": 20, "depth": 3, "loss": 0.6}],
    growth=[],
    similarity={"3": [[1.0]]},
    judged={"loss": 0.6, "loss_tap_4": 0.5, "loss_tap_12": 0.7},
    phone_accuracy=0.5,
    training_seconds=10.0,
)
GROWTH = {
    "step": 10,
    "from_depth": 3,
    "to_depth": 6,
    "validation_before": 0.8,
    "validation_after": 0.9,
    "training_before": 0.8,
    "training_peak": 1.0,
    "recovered_after_steps": 7,
}


def _write(root: Path, split: str, speakers: tuple[str, ...], per_speaker: int) -> None:
    for speaker in speakers:
        folder = root / "LibriSpeech" / split / speaker / "1"
        folder.mkdir(parents=True)
        for number in range(per_speaker):
            (folder / f"{speaker}-1-{number:04}.flac").touch()


def test_nobody_who_is_judged_is_trained_on(tmp_path: Path) -> None:
    """Every third utterance of the judged speakers and of the first corpus' own split."""
    corpus, speech, output = (tmp_path / name for name in ("corpus", "speech", "study"))
    _write(corpus, "train-clean-100", ("9001",), 5)
    _write(corpus, "dev-clean", ("9001",), 3)
    _write(speech, "train-clean-100", ("103", "118"), 1)
    _write(speech, "dev-clean", (*JUDGED_SPEAKERS, "84"), 6)
    counted = arrange(corpus, speech, output)
    assert counted == {"train-clean-100": 5 + 2 + 6, "dev-clean": (4 * 6 + 3) // 3}
    splits = {
        split: {path.name for path in (output / "LibriSpeech" / split).iterdir()}
        for split in counted
    }
    assert splits["train-clean-100"] == {"9001", "103", "118", "84"}
    assert splits["dev-clean"] == {"9001", *JUDGED_SPEAKERS}
    with pytest.raises(ConfigurationError, match="is there already"):
        arrange(corpus, speech, output)


def test_a_run_s_events_become_its_curve(tmp_path: Path) -> None:
    """Losses at each step, and what its growth steps did."""
    events = [
        {"kind": "point", "step": 10, "train/depth": 3.0, "train/loss": 1.0, "train/loss_tap_4": 2},
        {"kind": "growth", "step": 10, **{name: GROWTH[name] for name in list(GROWTH)[1:5]}},
        {"kind": "recovery", "step": 20, "before": 0.8, "peak": 1.0, "after_steps": 7},
        {"kind": "validation", "step": 20, "depth": 6, "losses": {"val/loss": 0.6}},
        {"kind": "similarity", "step": 20, "depth": 6, "student": [[1.0]]},
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert curves_of(path) == {
        "points": {"step": [10], "depth": [3], "loss": [1.0], "loss_tap_4": [2]},
        "validations": [{"step": 20, "depth": 6, "loss": 0.6}],
        "growth": [GROWTH],
        "similarity": {"6": [[1.0]]},
    }


def test_tables_compare_groups_with_full_depth(tmp_path: Path) -> None:
    """By what is written and read again: means, spread, p-value, jumps at growth steps."""
    losses = {"full": (0.60, 0.62), "interleave": (0.50, 0.51)}
    for group, values in losses.items():
        for seed, loss in enumerate(values, start=1):
            growth = [GROWTH] if group == "interleave" else []
            judged = RECORD.judged | {"loss": loss}
            record = replace(RECORD, name=f"{group}-seed{seed}", group=group, arm=group, seed=seed)
            replace(record, growth=growth, judged=judged).write(tmp_path / "records")
    records = read_all(tmp_path / "records")
    assert len(records) == 4
    write_results(records, tmp_path)
    text = (tmp_path / "results.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| interleave")]
    assert "0.5050 ± 0.0071 | 0.5000 ± 0.0000 | 0.7000 ± 0.0000 | 0.5000 ± 0.0000 | 0.02" in rows[0]
    assert rows[1].endswith("| 3 → 6 | +0.1000 ± 0.0000 | +0.2000 ± 0.0000 | 7, 7 |")
    assert (tmp_path / "figures" / "a_operators.png").stat().st_size > 1000
    (tmp_path / "records" / "x.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"x\.json is no record"):
        read_all(tmp_path / "records")


def test_finished_runs_are_found_by_the_study_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the study's files can be read; names are unique among them."""
    monkeypatch.chdir(FILES.parents[2])
    runs = tmp_path / "runs"
    runs.mkdir()
    for name, status in (("full-seed1", "finished"), ("full-seed4", "running")):
        record = {"status": status, "words": [], "settings": {}}
        (runs / f"{name}.json").write_text(json.dumps(record))
    assert [(study, run.name) for study, run in finished_runs(tmp_path)] == [
        ("a_operators", "full-seed1")
    ]


def test_a_run_with_a_record_is_never_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it was made; the others are listed in the order of the study."""
    files, records = tmp_path / "files", tmp_path / "records"
    files.mkdir()
    study = (
        "config: configs/interleaved.yaml\narms: {full: configs/rivals/full.yaml}\nseeds: [1, 2]"
    )
    (files / "small.yaml").write_text(study)
    words = ["--output", str(tmp_path / "runs"), "--probe-corpus", "nowhere", "--dry-run"]
    words += ["--files", str(files), "--records", str(records), "--studies"]
    assert run_study([*words, "small"]) == 0
    assert capsys.readouterr().out.split("\n") == ["small: full-seed1", "small: full-seed2", ""]
    RECORD.write(records)
    assert run_study([*words, "small"]) == 0
    assert capsys.readouterr().out == "small: full-seed2\n"
    assert run_study([*words, "large"]) == 2
    assert "--studies has large" in capsys.readouterr().err
