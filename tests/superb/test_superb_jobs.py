"""s3prl's real recipes, from data in its true layout to the metric, for every task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import pytest
import s3prl
import torch
from torchaudio.functional import edit_distance
from transformers import AutoModel, Wav2Vec2FeatureExtractor

from interstack.evaluation.superb.compatibility import s3prl_supplied
from interstack.evaluation.superb.results import TABLE_FILE
from interstack.evaluation.superb.tasks import TASKS
from interstack.evaluation.superb.upstream import Upstream
from interstack.models.teacher import Teacher
from tests.models.families import NUM_LAYERS, edit_json, read_speech, save
from tests.superb.superb_runs import job_directory, metrics, superb


def table(path: Path) -> dict[str, str]:
    """Read what s3prl has written: a file's name, then what it says or is."""
    lines = path.read_text().splitlines()
    return {name: said for name, _, said in (line.partition(" ") for line in lines)}


def error_rate(directory: Path, prefix: str) -> float:
    """Return the edits for each reference word, in percent, over what s3prl has written."""
    said, found = (table(directory / f"{prefix}-{kind}.ark") for kind in ("ref", "hyp"))
    assert said.keys() == found.keys()
    edits = sum(edit_distance(found[name].split(), said[name].split()) for name in said)
    return 100 * edits / sum(len(text.split()) for text in said.values())


def test_phoneme_recognition(upstream: Path, data_root: Path, tmp_path: Path) -> None:
    """The error rate is that of what was recognised, against phones of the real transcripts."""
    assert superb(upstream, data_root, tmp_path, "pr") == 0
    directory = job_directory(tmp_path, "pr")
    assert metrics(tmp_path, "pr")["pr_per"] == pytest.approx(error_rate(directory, "test"))
    transcripts = data_root / "LibriSpeech" / "test-clean" / "9001" / "1001" / "9001-1001.trans.txt"
    letters = {
        name: sum(letter.isalpha() for letter in text) for name, text in table(transcripts).items()
    }
    phones = table(directory / "test-ref.ark")
    assert {name: len(said.split()) for name, said in phones.items()} == letters


def test_speech_recognition(upstream: Path, data_root: Path, tmp_path: Path) -> None:
    """The error rate is that of what was recognised, against the real transcripts."""
    assert superb(upstream, data_root, tmp_path, "asr") == 0
    directory = job_directory(tmp_path, "asr")
    assert metrics(tmp_path, "asr")["asr_wer"] == pytest.approx(
        error_rate(directory, "test-clean-noLM")
    )
    transcripts = data_root / "LibriSpeech" / "test-clean" / "9001" / "1001" / "9001-1001.trans.txt"
    assert table(directory / "test-clean-noLM-ref.ark") == table(transcripts)


@pytest.mark.parametrize(("task", "steps", "learnt"), [("ks", 100, 45), ("sid", 30, 30)])
def test_classification(
    task: str, steps: int, learnt: float, upstream: Path, data_root: Path, tmp_path: Path
) -> None:
    """The accuracy is that of the predictions, and above chance after few steps.

    That is 30 % of the keywords' test clips, and one in 1,251 of speakers that the head knows.
    """
    changes = (f"{task}.optimizer.lr=0.02", f"{task}.runner.eval_step=10")
    assert superb(upstream, data_root, tmp_path, task, steps=steps, changes=changes) == 0
    directory = job_directory(tmp_path, task)
    truth, found = (
        (directory / f"test_{kind}.txt").read_text().splitlines() for kind in ("truth", "predict")
    )
    right = [one == other for one, other in zip(truth, found, strict=True)]
    accuracy = metrics(tmp_path, task)[f"{task}_acc"]
    assert accuracy == pytest.approx(100 * fmean(right))
    assert accuracy >= learnt


def test_slot_filling(upstream: Path, data_root: Path, tmp_path: Path) -> None:
    """Slots are read off the corpus' own table, and both metrics are there."""
    assert superb(upstream, data_root, tmp_path, "sf") == 0
    references = table(job_directory(tmp_path, "sf") / "test-ref.ark")
    assert len(references) == 3
    assert all(name.startswith("Brian") for name in references)
    assert all("B-artist" in said or "B-city" in said for said in references.values())
    found = metrics(tmp_path, "sf")
    assert 0 <= found["sf_f1"] <= 100
    assert found["sf_cer"] >= 0


def test_emotions_are_judged_on_five_folds(upstream: Path, data_root: Path, tmp_path: Path) -> None:
    """Each session is the test set once; excitement counts as happiness, others are left out."""
    assert superb(upstream, data_root, tmp_path, "er", steps=2) == 0
    accuracies = []
    for fold in range(1, 6):
        part = f"fold{fold}-seed0"
        folder = job_directory(tmp_path, "er", part) / "meta_data" / f"Session{fold}"
        test = json.loads((folder / "test_meta_data.json").read_text())["meta_data"]
        assert sorted(row["label"] for row in test) == ["ang", "hap", "neu", "sad"]
        assert all(row["path"].startswith(f"Session{fold}/") for row in test)
        accuracies.append(metrics(tmp_path, "er", part)["er_acc"])
    lines = (tmp_path / TABLE_FILE).read_text().splitlines()
    assert [json.loads(line)["metrics"]["er_acc"] for line in lines] == accuracies


@pytest.mark.parametrize("task", ["ic", "asv", "sd"])
def test_the_other_trained_tasks_run_to_their_metric(
    task: str, upstream: Path, data_root: Path, tmp_path: Path
) -> None:
    """Intents, speaker trials and overlaps in time, as far as made-up labels carry."""
    assert superb(upstream, data_root, tmp_path, task, steps=2) == 0
    (value,) = metrics(tmp_path, task).values()
    assert 0 <= value <= 100


def test_query_by_example_finds_what_was_cut_out(
    upstream: Path, data_root: Path, tmp_path: Path
) -> None:
    """A query is nearest to the recording that it was cut from, in the file for QUESST's scorer."""
    assert superb(upstream, data_root, tmp_path, "qbe") == 0
    found = job_directory(tmp_path, "qbe", "eval-seed0") / "benchmark.stdlist.xml"
    terms = ElementTree.parse(found).getroot().findall("detected_termlist")
    assert len(terms) == 2
    for term in terms:
        best = max(term, key=lambda each: float(each.attrib["score"]))
        assert best.attrib["file"] == term.attrib["termid"].replace("query", "document")


def test_the_export_is_loaded_by_s3prl_itself(upstream: Path, tmp_path: Path) -> None:
    """By `hf_hubert_custom`, with the hidden states of transformers."""
    wave = torch.randn(8_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with s3prl_supplied(tmp_path), torch.inference_mode():
        from s3prl import hub

        theirs = hub.hf_hubert_custom(str(upstream)).eval()([wave])["hidden_states"]
        ours = AutoModel.from_pretrained(upstream).eval()(wave[None], output_hidden_states=True)
    torch.testing.assert_close(theirs, ours.hidden_states, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["hubert-large", "wav2vec2-large", "wavlm-large"])
def test_an_upstream_in_half_precision_is_judged_in_float32_with_the_encoders_output(
    family: str, tmp_path: Path
) -> None:
    """By s3prl's expert or ours: fp16 on the disk, a pre-LN stack, the same hidden states."""
    directory = save(family, tmp_path)
    edit_json(directory / "config.json", tie_last_hidden_states=None)  # as others publish them
    half = AutoModel.from_pretrained(directory, dtype=torch.float16)
    half.save_pretrained(directory)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(directory)
    (wave,) = read_speech(1.0)
    with s3prl_supplied(tmp_path), torch.inference_mode():
        model = Upstream.find(str(directory)).load(torch.device("cpu"))
        found = model([wave])["hidden_states"]
    expected = Teacher(str(directory), range(NUM_LAYERS + 1))(wave[None], torch.tensor([16_000]))
    assert {hidden.dtype for hidden in found} == {torch.float32}
    torch.testing.assert_close(tuple(found), expected.hidden_states, rtol=1e-3, atol=1e-3)


def test_jobs_leave_the_installed_package_alone(
    upstream: Path, data_root: Path, tmp_path: Path
) -> None:
    """s3prl would keep lists of files in it, which the next run with other data would read."""
    package = Path(s3prl.__file__).parent

    def content() -> set[Path]:
        return {path for path in package.rglob("*") if "__pycache__" not in path.parts}

    before = content()
    assert superb(upstream, data_root, tmp_path, "sid", "asv", steps=1) == 0
    assert content() == before


SPOILT = {
    "pr": ["LibriSpeech/train-clean-100", "LibriSpeech/test-clean"],
    "asr": ["LibriSpeech/train-clean-100", "LibriSpeech/test-clean"],
    "ks": ["speech_commands_test_set_v0.01/yes"],
    "sid": ["VoxCeleb1/dev/wav/id10001"],
    "sf": ["SNIPS/train", "SNIPS/test"],
    "ic": ["fluent_speech_commands_dataset/wavs/speakers/9001"],
    "er": ["IEMOCAP/Session1", "IEMOCAP/Session2"],
    "asv": ["VoxCeleb1/dev/wav/id10001", "VoxCeleb1/test/wav/id10001"],
    "sd": ["diarization/train"],
    "qbe": ["quesst14Database/Audio"],
}
"""Where a file of each task is spoilt."""


@pytest.mark.parametrize("task", TASKS)
def test_audio_that_can_not_be_decoded_is_skipped_and_counted(
    task: str, upstream: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In training and in what is judged, in every task; by default it is refused by name."""
    data = tmp_path / "data"
    shutil.copytree(data_root, data)
    for table in data.glob("diarization/*/wav.scp"):  # has the folder's name in it
        table.write_text(table.read_text().replace(str(data_root), str(data)))
    victims = []
    for folder in SPOILT[task]:
        found = sorted((data / folder).rglob("*"))
        files = [path for path in found if path.suffix in (".wav", ".flac")]
        victim = files[1 if task == "qbe" else 0]
        late = victim.suffix == ".flac"  # header and first frames stay
        victim.write_bytes(victim.read_bytes()[:-2000] if late else b"RIFF")
        victims.append(str(victim))
    output = tmp_path / "raise"
    assert superb(upstream, data, output, task, steps=12) == 2
    error = capsys.readouterr().err
    assert any(f"error: {victim} " in error for victim in victims)
    assert "Traceback" not in error
    more = ("--on-corrupt", "skip")
    assert superb(upstream, data, tmp_path / "skip", task, steps=12, more=more) == 0
    skipped: set[str] = set()
    for result in (tmp_path / "skip").glob(f"*/{task}/*/result.json"):
        skipped.update(json.loads(result.read_text())["skipped"])
    assert {message.partition(" ")[0] for message in skipped} == set(victims)


@pytest.mark.parametrize("normalises", [True, False])
def test_an_upstream_is_given_audio_as_its_own_files_say(
    normalises: bool, upstream: Path, tmp_path: Path
) -> None:
    """Without such a file s3prl would take another model's from the hub, and normalise."""
    directory = shutil.copytree(upstream, tmp_path / "model")
    (directory / "preprocessor_config.json").unlink()
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True}
    if normalises:
        content = {"processor_class": "Wav2Vec2Processor", "feature_extractor": extractor}
        (directory / "processor_config.json").write_text(json.dumps(content))
    with s3prl_supplied(tmp_path):
        expert: Any = Upstream.find(str(directory)).load(torch.device("cpu"))
    assert expert.extracter.do_normalize is normalises
