"""The phone probe reads real phones off real speech, and refuses what it can't use."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import soundfile
import torch

from interstack import cli
from interstack.data import LibriSpeechFolder
from interstack.data.base import Split
from interstack.errors import ConfigurationError, DataError, TeacherError
from interstack.evaluation.alignments import (
    UNLABELLED,
    Phone,
    frame_labels,
    read_aligned_clips,
    read_alignments,
)
from interstack.evaluation.clip_reader import ClipReader
from interstack.evaluation.phone_probe import label_frames, phone_table, run_phone_probe
from interstack.evaluation.probe import Frames, ProbeSettings, train_probe
from interstack.evaluation.upstreams import LogMelUpstream, load_upstream, untrained
from tests.models.families import build, read_speech

SPEECH = Path(__file__).parents[2] / "assets" / "speech"
QUICK = ProbeSettings(steps=150, evaluations=3)


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of ten English train clips, three dev and three test ones."""
    corpus = tmp_path_factory.mktemp("corpus")
    ids = []
    for split, count in (("train-clean-100", 10), ("dev-clean", 3), ("test-clean", 3)):
        for flac in sorted((SPEECH / "LibriSpeech" / split / "9001" / "1001").glob("*.flac"))[
            :count
        ]:
            target = corpus / flac.relative_to(SPEECH)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(flac, target)
            ids.append(flac.stem)
    header, *lines = (SPEECH / "alignments" / "en.tsv").read_text("utf-8").splitlines(True)
    (corpus / "alignments").mkdir()
    kept = [line for line in lines if line.split("\t")[0] in ids]
    (corpus / "alignments" / "en.tsv").write_text("".join([header, *kept]), encoding="utf-8")
    return corpus


def shifted(table: Path, seconds: float, folder: Path) -> Path:
    """Write the table with every phone moved in time, those that would begin before 0 dropped."""
    header, *lines = table.read_text(encoding="utf-8").splitlines()
    moved = [header]
    for line in lines:
        clip, start, end, label = line.split("\t")
        if float(start) + seconds >= 0:
            moved.append(f"{clip}\t{float(start) + seconds}\t{float(end) + seconds}\t{label}")
    out = folder / f"shifted{seconds}.tsv"
    out.write_text("\n".join(moved), encoding="utf-8")
    return out


def test_frames_are_labelled_by_the_phone_at_their_centre() -> None:
    """A phone holds its start and not its end; outside of all phones there is no label."""
    phones = [Phone(0.1, 0.2, "K"), Phone(0.2, 0.3, "AE"), Phone(0.4, 0.5, "T")]
    centres = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.29, 0.3, 0.35, 0.4, 0.499, 0.5, 0.9])
    labels = frame_labels(phones, centres, {"AE": 0, "K": 1, "T": 2})
    none = UNLABELLED
    assert labels.tolist() == [none, 1, 1, 0, 0, none, none, 2, 2, none, none]


def test_log_mel_frames_are_where_they_say() -> None:
    """A click in the middle of nothing is loudest in the frame whose centre it is at."""
    upstream = LogMelUpstream()
    for frame in (10, 23):
        click = torch.randn(16_000, generator=torch.Generator().manual_seed(0)) * 1e-3
        click[round(upstream.first_frame_centre + frame * upstream.frame_hop)] = 1.0
        energy = upstream.hidden_states(click).sum((1, 2))
        assert int(energy.argmax()) == frame


def test_log_mel_context_stacks_neighbours_around_the_frame() -> None:
    """With context 2 the third of five slots is the frame, the first what came two before."""
    speech = torch.randn(8_000, generator=torch.Generator().manual_seed(1)) * 0.1
    plain = LogMelUpstream().hidden_states(speech)[:, 0]
    wide = LogMelUpstream(context=2).hidden_states(speech).reshape(-1, 5, 160)
    torch.testing.assert_close(wide[:, 2], plain)
    torch.testing.assert_close(wide[2:, 0], plain[:-2])
    torch.testing.assert_close(wide[-1, 4], plain[-1])


def test_phones_are_read_off_real_speech_far_above_chance() -> None:
    """Log-mel beats the commonest label several times over, and context helps it."""
    report = run_phone_probe(SPEECH, ["log-mel", "log-mel:4"], seeds=1, settings=QUICK)
    plain, wide = (one.score for one in report.upstreams)
    assert report.majority < 0.1
    assert plain.test[0] > 0.35
    assert wide.test[0] > plain.test[0] + 0.03
    assert 0 < plain.test_standard_error < 0.05


@pytest.mark.parametrize("seconds", [-0.08, 0.08])
def test_shifted_phones_are_harder_to_read(tmp_path: Path, seconds: float) -> None:
    """Labels lie on the sound they name: moved by four frames either way, accuracy drops."""
    table = shifted(SPEECH / "alignments" / "en.tsv", seconds, tmp_path)
    (straight,) = run_phone_probe(SPEECH, ["log-mel"], seeds=1, settings=QUICK).upstreams
    (moved,) = run_phone_probe(
        SPEECH, ["log-mel"], alignments=table, seeds=1, settings=QUICK
    ).upstreams
    assert moved.score.test_without_silence[0] < straight.score.test_without_silence[0] - 0.08


def test_clips_are_split_as_the_corpus_splits_them(few_clips: Path) -> None:
    """No clip is in two splits, and each is in the split whose folder it lies in."""
    clips = read_aligned_clips(few_clips)
    for split, folder in zip(clips, ("train-clean-100", "dev-clean", "test-clean"), strict=True):
        files = (few_clips / "LibriSpeech" / folder).rglob("*.flac")
        assert {clip.id for clip in clips[split]} == {file.stem for file in files}


def test_the_same_seed_gives_the_same_report(few_clips: Path) -> None:
    """Bitwise, whatever the global random state; another seed gives another probe."""
    first = run_phone_probe(few_clips, ["log-mel"], seeds=2, settings=QUICK)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = run_phone_probe(few_clips, ["log-mel"], seeds=2, settings=QUICK)
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)


def test_weighted_sum_finds_the_layer_that_knows() -> None:
    """Of three layers only one holds the class: it gets the weight, and alone it does best."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (600,), generator=generator)
    layers = torch.randn(600, 3, 8, generator=generator)
    layers[torch.arange(600), 1, labels] += 4.0
    part = Frames(layers.half(), labels, torch.arange(600))
    splits: dict[Split, Frames] = {"train": part, "validation": part, "test": part}
    settings = ProbeSettings(steps=150, learning_rate=0.03)
    (summed,) = train_probe(splits, 4, settings, seed=0)
    alone = train_probe(splits, 4, settings, seed=0, per_layer=True)
    assert max(range(3), key=lambda layer: summed.layer_weights[layer]) == 1
    accuracies = [(one.test_predictions == labels).float().mean().item() for one in alone]
    assert accuracies[1] > 0.95 > 0.6 > max(accuracies[0], accuracies[2])


def test_frames_outside_of_phones_are_left_out(few_clips: Path) -> None:
    """Every kept frame has a class and knows its clip."""
    clip = read_aligned_clips(few_clips)["train"][0]
    labels = sorted({phone.label for phone in clip.phones})
    whole = label_frames(LogMelUpstream(), [clip], labels)
    inner = replace(clip, phones=clip.phones[2:-2])
    part = label_frames(LogMelUpstream(), [inner, inner], labels)
    spoken = inner.phones[-1].end - inner.phones[0].start
    assert len(part.labels) / 2 == pytest.approx(spoken / 0.02, abs=1.5)
    assert len(part.labels) < 2 * len(whole.labels)
    assert part.labels.min() >= 0
    assert set(part.clips.tolist()) == {0, 1}


def test_a_model_and_its_untrained_copy_are_probed_layer_by_layer(
    few_clips: Path, teacher_directory: Path
) -> None:
    """All hidden states take part; the copy has the architecture, not the weights."""
    names = [str(teacher_directory), f"random:{teacher_directory}"]
    report = run_phone_probe(few_clips, names, seeds=1, per_layer=True, settings=QUICK)
    for one in report.upstreams:
        assert len(one.layers) == len(one.layer_weights) == 5
        assert sum(one.layer_weights) == pytest.approx(1.0)
        assert one.best_layer in range(5)
    waveform = torch.randn(4_000, generator=torch.Generator().manual_seed(0)) * 0.1
    model, copy, same_copy = (
        load_upstream(name).hidden_states(waveform) for name in (names[0], names[1], names[1])
    )
    assert model.shape == copy.shape == (12, 5, 16)
    assert torch.equal(copy, same_copy)
    assert not torch.allclose(model, copy, atol=0.1)


def test_command_prints_a_table_and_writes_json(
    few_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON holds what the table shows, and says that no person set the labels."""
    path = tmp_path / "probe.json"
    words = ["--corpus", str(few_clips), "--upstream", "log-mel", "--seeds", "1"]
    assert cli.main(["probe", *words, "--json", str(path)]) == 0
    (report,) = json.loads(path.read_text(encoding="utf-8"))["probes"]
    assert "pocketsphinx" in report["labels_by"]
    (score,) = (one["score"]["test"] for one in report["upstreams"])
    assert f"{score[0]:.3f}" in capsys.readouterr().out


def test_a_corpus_without_alignments_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the table, status 2, and no traceback."""
    assert cli.main(["probe", "--corpus", str(tmp_path), "--upstream", "log-mel"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there are no forced alignments in")
    assert error.count("\n") == 1


def test_malformed_tables_are_refused(tmp_path: Path) -> None:
    """Wrong columns, a broken line and overlapping phones are each named."""
    table = tmp_path / "en.tsv"
    header = "id\tstart_s\tend_s\tphone\n"
    for text, message in (
        ("", "is no table of phones"),
        (header, "is no table of phones"),
        (header + "a\t0\tsoon\tK\n", "line 2"),
        (header + "a\t0\t2\tK\na\t1\t3\tT\n", "overlap"),
    ):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_alignments(table)


def test_phones_of_unknown_clips_are_refused(few_clips: Path) -> None:
    """Alignments of another corpus would leave clips out unseen."""
    with pytest.raises(DataError, match=r"clips that .* lacks \(9001-"):
        read_aligned_clips(few_clips, SPEECH / "alignments" / "en.tsv")


def test_a_split_without_phones_is_refused(few_clips: Path, tmp_path: Path) -> None:
    """Without a dev or test clip there is nothing to choose by or to report."""
    tests = {file.stem for file in (few_clips / "LibriSpeech" / "test-clean").rglob("*.flac")}
    lines = (few_clips / "alignments" / "en.tsv").read_text("utf-8").splitlines(True)
    table = tmp_path / "en.tsv"
    table.write_text("".join(line for line in lines if line.split("\t")[0] not in tests), "utf-8")
    with pytest.raises(DataError, match="no clip of test-clean"):
        read_aligned_clips(few_clips, table)


def test_upstreams_that_make_no_sense_are_refused(few_clips: Path, tmp_path: Path) -> None:
    """A missing directory, an untrained copy of nothing, a wrong context, no upstream, no seed."""
    missing = tmp_path / "no" / "such" / "model"
    for name in (str(missing), f"random:{missing}"):
        with pytest.raises(TeacherError, match="no/such/model"):
            load_upstream(name)
    for name in ("random", "random:", "log-mel:wide"):
        with pytest.raises(ConfigurationError):
            load_upstream(name)
    with pytest.raises(ConfigurationError, match="has 0 upstreams"):
        run_phone_probe(few_clips, [])
    with pytest.raises(ConfigurationError, match="and 0 seeds"):
        run_phone_probe(few_clips, ["log-mel"], seeds=0)


def _break_late(file: Path) -> None:
    """Leave the header and the first frames as they are."""
    content = file.read_bytes()
    file.write_bytes(content[:-2000])


def _shorten(file: Path) -> None:
    """Leave a millisecond less than one frame needs."""
    samples, rate = soundfile.read(file)
    soundfile.write(file, samples[:384], rate)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_break_late, "is corrupt (flac decoder lost sync): fetch it again or remove it"),
        (_shorten, "has 384 samples at 16 kHz, but log-mel needs 400: remove the clip"),
        (Path.touch, ""),
    ],
)
def test_a_clip_that_can_not_be_used_is_named_or_skipped(
    spoil: Callable[[Path], None],
    complaint: str,
    few_clips: Path,
    teacher_directory: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For all upstreams alike, before the first is loaded; those skipped are counted."""
    corpus = tmp_path / "corpus"
    shutil.copytree(few_clips, corpus)
    victim = sorted((corpus / "LibriSpeech" / "test-clean").rglob("*.flac"))[1]
    spoil(victim)
    names = ["log-mel", str(teacher_directory)]
    if complaint:
        expected = f"{victim} {complaint}"
        with pytest.raises(DataError, match=re.escape(expected)) as caught:
            run_phone_probe(corpus, names, seeds=1, settings=QUICK)
        assert "data." not in str(caught.value)
    report = run_phone_probe(corpus, names, seeds=1, on_corrupt="skip", settings=QUICK)
    skipped = int(bool(complaint))
    assert report.num_skipped == {"train": 0, "validation": 0, "test": skipped}
    assert report.num_clips["test"] == 3 - skipped
    assert [
        message
        for message in caplog.messages
        if f"1 clips of test can't be read and are skipped, the first: {victim}" in message
    ] or not complaint
    assert ("skipped: 1 of test" in str(phone_table(report).caption)) == bool(complaint)


def test_a_skipped_clip_is_known_by_its_id(few_clips: Path, tmp_path: Path) -> None:
    """Which is its path where file names recur; ids are unique, as in every other command."""
    corpus = tmp_path / "corpus"
    shutil.copytree(few_clips, corpus)
    base = corpus / "LibriSpeech"
    files = sorted((base / "test-clean").rglob("*.flac"))
    again = base / "test-clean" / "again"
    again.mkdir()
    shutil.copy(files[0], again)
    table = corpus / "alignments" / "en.tsv"
    text = table.read_text(encoding="utf-8")
    for file in files:
        id_ = file.relative_to(base).with_suffix("").as_posix()
        text = text.replace(f"{file.stem}\t", f"{id_}\t")
    table.write_text(text, encoding="utf-8")
    files[1].write_bytes(b"")
    reader = ClipReader("skip")
    clips = read_aligned_clips(corpus, reader=reader)
    assert [clip.id.rpartition("/")[2] for clip in clips["test"]] == [files[0].stem, files[2].stem]
    assert reader.skipped == {"train": 0, "validation": 0, "test": 1}
    listed = LibriSpeechFolder(corpus).utterances("test", "skip")[0]
    twice = LibriSpeechFolder(corpus)
    with (
        mock.patch.object(twice, "utterances", return_value=(2 * listed, [])),
        pytest.raises(DataError, match="are both the utterance test-clean/9001"),
    ):
        ClipReader().list(twice, "test")


@pytest.mark.parametrize("family", ["hubert-large", "whisper"])
def test_the_untrained_copy_of_a_model_in_half_precision_is_in_float32(
    family: str, tmp_path: Path
) -> None:
    """Its weights are drawn as those of the same model in float32."""
    build(family).half().save_pretrained(tmp_path / "half")
    build(family).save_pretrained(tmp_path / "full")
    (speech,) = read_speech(1.0)
    half, full = (
        untrained(str(tmp_path / name), name).hidden_states(speech) for name in ("half", "full")
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, full)
