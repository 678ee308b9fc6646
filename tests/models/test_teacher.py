"""The teacher: every family as transformers has it, frozen, and refused with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import MODELS, NUM_LAYERS, TRANSFORMER, WIDTH, build, pad, read_speech, whisper_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertForCTC,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from interstack.errors import DataError, TeacherError
from interstack.models.front_end import normalise_waveform
from interstack.models.teacher import Teacher
from interstack.models.whisper import LogMel

ALL_FAMILIES = pytest.mark.parametrize("family", list(MODELS))
EVERY_TAP = range(NUM_LAYERS + 1)
Save = Callable[[str], Path]


@pytest.fixture(name="save")
def _save(tmp_path: Path) -> Save:
    """Writes a small model of a family and gives its directory."""

    def save(family: str) -> Path:
        build(family).save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Change a saved model's tensors in place."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **fields: Any) -> None:  # noqa: ANN401 - JSON
    """Set fields of a JSON file, made if absent."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


def hidden_states_of_transformers(
    family: str, waveforms: Tensor, num_samples: Tensor
) -> tuple[Tensor, ...]:
    """The reference: transformers' own preprocessing and model on unpadded utterances."""
    model = build(family)
    if family == "whisper":
        extractor = WhisperFeatureExtractor(chunk_length=1)
        mel = extractor(list(waveforms.numpy()), sampling_rate=16_000, return_tensors="pt")
        inputs, model = mel.input_features, model.encoder
    elif getattr(model.config, "feat_extract_norm", "layer") == "layer":
        inputs = normalise_waveform(waveforms, num_samples)
    else:
        inputs = waveforms
    states: tuple[Tensor, ...] = model(inputs, output_hidden_states=True).hidden_states
    return states


@ALL_FAMILIES
@torch.no_grad()
def test_hidden_states_of_unpadded_speech_are_those_of_transformers(
    family: str, save: Save
) -> None:
    """Each of them, through loading, normalisation, front end and encoder."""
    waveforms, num_samples = pad(read_speech(1.0, 1.0))
    waveforms[:, -200:] = 0.0  # Whisper's feature extractor mirrors the end of a full clip
    expected = hidden_states_of_transformers(family, waveforms, num_samples)
    output = Teacher(str(save(family)), EVERY_TAP)(waveforms, num_samples)
    assert len(expected) == NUM_LAYERS + 1
    for ours, theirs in zip(output.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    assert output.num_frames.tolist() == [expected[0].shape[1]] * 2


@ALL_FAMILIES
def test_targets_of_an_utterance_do_not_depend_on_its_batch(family: str, save: Save) -> None:
    """Alone, and padded to several times its length."""
    teacher = Teacher(str(save(family)), EVERY_TAP)
    utterances = read_speech(1.0, 0.31, 0.105)
    together = teacher(*pad(utterances), with_features=True)
    for row, utterance in enumerate(utterances):
        alone = teacher(*pad([utterance]), with_features=True)
        frames = int(alone.num_frames)
        assert frames == together.num_frames[row] == alone.hidden_states[0].shape[1]
        for padded, expected in zip(together.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(padded[row, :frames], expected[0], rtol=0.0, atol=1e-4)
        if family != "whisper":
            torch.testing.assert_close(
                together.features[row, :, :frames], alone.features[0], rtol=0.0, atol=1e-4
            )


@pytest.mark.parametrize("taps", [[0], [1], [0, 2], [1, 2]])
@ALL_FAMILIES
def test_a_cut_teacher_equals_the_full_one_at_its_taps(
    family: str, taps: list[int], save: Save
) -> None:
    """Layers above the deepest tap are gone, and nobody can tell."""
    directory = str(save(family))
    speech = pad(read_speech(1.0, 0.31))
    full, cut = Teacher(directory, EVERY_TAP), Teacher(directory, taps)
    everything = full(*speech).hidden_states
    some = cut(*speech).hidden_states
    assert len(some) == len(taps)
    for tap, ours in zip(taps, some, strict=True):
        assert torch.equal(ours, everything[tap])
    layers: Any = cut.body.encoder.layers
    assert len(layers) == taps[-1]
    assert (cut.num_layers, cut.width, cut.taps) == (NUM_LAYERS, WIDTH, tuple(taps))


@ALL_FAMILIES
def test_a_teacher_is_never_trained(family: str, save: Save) -> None:
    """No train mode, no dropout, no gradient."""
    teacher = Teacher(str(save(family)), EVERY_TAP)
    speech = pad(read_speech(1.0))
    expected = teacher(*speech).hidden_states
    torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    speech[0].requires_grad_()
    for again, before in zip(teacher(*speech).hidden_states, expected, strict=True):
        assert torch.equal(again, before)
        assert not again.requires_grad


@ALL_FAMILIES
def test_targets_are_float32_and_blind_to_autocast(family: str, save: Save) -> None:
    """Mixed precision is the student's affair."""
    teacher = Teacher(str(save(family)), EVERY_TAP)
    speech = pad(read_speech(1.0, 0.31))
    expected = teacher(*speech, with_features=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = teacher(*speech, with_features=True)
    for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    assert (output.features is None) == (family == "whisper")


@ALL_FAMILIES
def test_a_bfloat16_teacher_gives_nearly_the_same_float32_targets(family: str, save: Save) -> None:
    """Half precision is the teacher's own, and Whisper's log-mel stays out of it."""
    directory = str(save(family))
    speech = pad(read_speech(1.0, 0.31))
    exact = Teacher(directory, EVERY_TAP)(*speech)
    half = Teacher(directory, EVERY_TAP, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    output = half(*speech, with_features=True)
    assert output.features is None or output.features.dtype == torch.float32
    for ours, theirs in zip(output.hidden_states, exact.hidden_states, strict=True):
        assert ours.dtype == torch.float32
        frames = int(exact.num_frames[1])
        error = (ours - theirs)[1, :frames].norm() / theirs[1, :frames].norm()
        assert 0.0 < error < 0.05


def test_features_are_given_only_when_asked_for(save: Save) -> None:
    """They are those of the front end, which a student may copy."""
    teacher = Teacher(str(save("hubert-base")), [1])
    waveforms, num_samples = pad(read_speech(1.0))
    assert teacher(waveforms, num_samples).features is None
    features = teacher(waveforms, num_samples, with_features=True).features
    torch.testing.assert_close(features, teacher.feature_extractor(waveforms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "setting", "normalises"),
    [
        ("hubert-base", None, False),
        ("hubert-base", True, True),
        ("hubert-large", None, True),
        ("hubert-large", False, False),
        ("data2vec-audio", None, True),
        ("whisper", None, False),
    ],
)
def test_waveforms_are_normalised_as_the_model_was_trained(
    family: str, setting: bool | None, normalises: bool, save: Save
) -> None:
    """The preprocessor's config decides, else the kind of front end."""
    directory = save(family)
    if setting is not None:
        edit_json(directory / "preprocessor_config.json", do_normalize=setting)
    teacher = Teacher(str(directory), [1])
    assert teacher.normalises_waveform is normalises
    if family != "whisper":
        speech, num_samples = pad(read_speech(1.0))
        quiet = teacher(0.1 * speech, num_samples, with_features=True).features
        loud = teacher(speech, num_samples, with_features=True).features
        assert torch.allclose(quiet, loud, atol=1e-2) is normalises


def test_frames_are_where_they_say(save: Save) -> None:
    """HuBERT's first frame is centred on its receptive field, Whisper's on the first sample."""
    hubert, whisper = Teacher(str(save("hubert-base")), [1]), Teacher(str(save("whisper")), [1])
    assert (hubert.first_frame_centre, hubert.frame_hop, hubert.max_samples) == (199.5, 320, None)
    assert (whisper.first_frame_centre, whisper.frame_hop) == (0.0, 320)
    assert whisper.max_samples == 16_000
    assert (hubert.takes_waveform, whisper.takes_waveform) == (True, False)


def test_the_fingerprint_tells_weights_apart_wherever_they_lie(save: Save, tmp_path: Path) -> None:
    """Equal for a copy; another for other weights, another precision or normalisation."""
    directory = save("hubert-base")
    copy = shutil.copytree(directory, tmp_path / "copy")
    fingerprint = Teacher(str(directory), [2]).fingerprint()
    assert Teacher(str(copy), [1, 2]).fingerprint() == fingerprint
    assert Teacher(str(copy), [2], dtype="bfloat16").fingerprint() != fingerprint
    edit_json(copy / "preprocessor_config.json", do_normalize=True)
    assert Teacher(str(copy), [2]).fingerprint() != fingerprint

    def nudge(tensors: dict[str, Tensor]) -> None:
        tensors["encoder.layers.1.final_layer_norm.bias"] += 1e-6

    edit_weights(directory, nudge)
    assert Teacher(str(directory), [2]).fingerprint() != fingerprint


# Checkpoints as they are found in the wild


def test_a_fine_tuned_checkpoint_serves_as_its_encoder(tmp_path: Path) -> None:
    """What is on top of it does not matter."""
    model = HubertForCTC(HubertConfig(**TRANSFORMER)).eval()
    model.save_pretrained(tmp_path)
    waveforms, num_samples = pad(read_speech(1.0))
    with torch.no_grad():
        expected = model.hubert(waveforms).last_hidden_state
    [ours] = Teacher(str(tmp_path), [NUM_LAYERS])(waveforms, num_samples).hidden_states
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_with_old_weight_norm_names_and_no_mask_embedding_loads(save: Save) -> None:
    """As HuBERT Base on the hub: renamed by transformers, and unused tensors may be missing."""
    directory = save("hubert-base")
    expected = Teacher(str(directory), [1]).fingerprint()

    def age(tensors: dict[str, Tensor]) -> None:
        del tensors["masked_spec_embed"]
        stem = "encoder.pos_conv_embed.conv"
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            tensors[f"{stem}.{old}"] = tensors.pop(f"{stem}.parametrizations.weight.{new}")

    edit_weights(directory, age)
    assert Teacher(str(directory), [1]).fingerprint() == expected


def test_whisper_loads_whole_or_as_its_encoder_alone(tmp_path: Path) -> None:
    """The same encoder from each of the three ways to save it."""
    model = WhisperForConditionalGeneration(whisper_config())
    fingerprints = set()
    for name, part in {
        "generation": model,
        "model": model.model,
        "encoder": model.model.encoder,
    }.items():
        part.save_pretrained(tmp_path / name)
        edit_json(tmp_path / name / "config.json", model_type="whisper")
        fingerprints.add(Teacher(str(tmp_path / name), [NUM_LAYERS]).fingerprint())
    assert len(fingerprints) == 1


# Whisper's ears


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [30.0, 12.3456])
def test_log_mel_is_that_of_the_feature_extractor(num_mel_bins: int, seconds: float) -> None:
    """On a full-length clip, and on one that the feature extractor pads to 30 s."""
    pieces = torch.cat(read_speech(*[2.5] * 12))
    waveform = pieces[: int(seconds * 16_000)]
    log_mel, frames = LogMel(num_mel_bins)(*pad([waveform]))
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    expected = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    assert int(frames) == log_mel.shape[-1] == len(waveform) // 160
    # Of a full clip, the last window reaches past the end: a mirror there, silence here.
    sure = int(frames) - (seconds == 30.0)
    torch.testing.assert_close(log_mel[..., :sure], expected[..., :sure], rtol=0.0, atol=1e-4)


def test_log_mel_of_an_utterance_does_not_depend_on_its_batch() -> None:
    """Its floor hangs on its own loudest frame, and past its end there is nothing."""
    quiet, loud = read_speech(0.905, 2.0)
    quiet = 0.01 * quiet
    together, frames = LogMel(80)(*pad([quiet, loud]))
    alone, _ = LogMel(80)(*pad([quiet]))
    torch.testing.assert_close(together[:1, :, : frames[0]], alone, rtol=0.0, atol=1e-5)
    assert not together[0, :, frames[0] :].any()


def test_whisper_refuses_what_exceeds_its_positions(save: Save) -> None:
    """How many, how long, and the setting that mends it."""
    teacher = Teacher(str(save("whisper")), [1])
    with pytest.raises(TeacherError, match=r"2 of a batch's 3.*1 s.*2\.00 s.*max_seconds to 1 "):
        teacher(*pad(read_speech(1.5, 0.5, 2.0)))


def test_whisper_accepts_padding_beyond_its_positions(save: Save) -> None:
    """A batch that was padded to more than its longest utterance is no error."""
    teacher = Teacher(str(save("whisper")), [1])
    waveforms, num_samples = pad(read_speech(1.0, 0.5))
    expected = teacher(waveforms, num_samples)
    output = teacher(torch.nn.functional.pad(waveforms, (0, 999)), num_samples)
    assert torch.equal(output.hidden_states[0], expected.hidden_states[0])


@pytest.mark.parametrize(("family", "samples"), [("whisper", 399), ("hubert-base", 399)])
def test_audio_shorter_than_a_frame_is_refused(family: str, samples: int, save: Save) -> None:
    """With the setting that mends it."""
    with pytest.raises(DataError, match=f"{samples} samples.*400.*min_seconds"):
        Teacher(str(save(family)), [1])(*pad([torch.zeros(samples)]))


def test_whisper_has_no_front_end_to_share(save: Save) -> None:
    """The student needs its own, or another teacher."""
    with pytest.raises(TeacherError, match=r"log-mel.*share or copy.*its own.*waveform teacher"):
        _ = Teacher(str(save("whisper")), [1]).feature_extractor


# Refused, with the mend


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ([], "No tap"),
        ([2, 1], "do not increase"),
        ([1, 1], "do not increase"),
        ([1, 4], "hidden states 0 to 3"),
        ([-1, 1], "hidden states 0 to 3"),
    ],
)
@pytest.mark.parametrize("family", ["hubert-base", "whisper"])
def test_taps_that_the_teacher_lacks_are_refused(
    family: str, taps: list[int], message: str, save: Save
) -> None:
    """Before its weights are read."""
    directory = save(family)
    (directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(TeacherError, match=message):
        Teacher(str(directory), taps)


def test_an_unknown_precision_is_refused(save: Save) -> None:
    """With those there are."""
    dtype: Any = "int8"
    with pytest.raises(TeacherError, match=r"int8.*bfloat16"):
        Teacher(str(save("hubert-base")), [1], dtype=dtype)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/teacher", "a/b/c"])
def test_a_directory_that_is_not_there_is_refused(name: str) -> None:
    """Without asking the hub for what can't be a hub id."""
    with pytest.raises(TeacherError, match=f"no teacher directory {name}"):
        Teacher(name, [1])


@pytest.mark.parametrize(
    ("file", "message"), [("config.json", "no config.json"), ("model.safetensors", "no weights")]
)
def test_an_incomplete_directory_is_refused(file: str, message: str, save: Save) -> None:
    """The message says what it lacks."""
    directory = save("hubert-base")
    (directory / file).unlink()
    with pytest.raises(TeacherError, match=message):
        Teacher(str(directory), [1])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_corrupt_file_is_refused(file: str, save: Save) -> None:
    """Cut off in mid-download, say."""
    directory = save("hubert-base")
    (directory / file).write_bytes(b'{"model_ty')
    with pytest.raises(TeacherError, match="can't be loaded"):
        Teacher(str(directory), [1])


@pytest.mark.parametrize("family", ["hubert-base", "whisper"])
def test_weights_that_would_start_out_random_are_refused(family: str, save: Save) -> None:
    """A teacher that is in part untrained must not pass for one."""
    directory = save(family)
    prefix = "encoder." if family == "whisper" else ""
    lost = "layers.1.fc1.weight" if family == "whisper" else "feature_projection.projection.weight"

    def lose(tensors: dict[str, Tensor]) -> None:
        del tensors[prefix + lost]

    edit_weights(directory, lose)
    with pytest.raises(TeacherError, match=rf"lack 1 tensors.*{lost}.*random"):
        Teacher(str(directory), [1])


def test_weights_of_another_size_are_refused(save: Save) -> None:
    """A config that does not belong to the weights."""
    directory = save("hubert-base")
    edit_json(directory / "config.json", intermediate_size=48)
    with pytest.raises(TeacherError, match="can't be loaded"):
        Teacher(str(directory), [1])


def test_a_width_that_the_heads_do_not_divide_is_refused(save: Save) -> None:
    """As transformers puts it."""
    directory = save("hubert-base")
    edit_json(directory / "config.json", num_attention_heads=5)
    with pytest.raises(TeacherError, match="divisible by num_heads"):
        Teacher(str(directory), [1])


@pytest.mark.parametrize("family", ["bert", None])
def test_a_model_of_another_kind_is_refused(family: str | None, save: Save) -> None:
    """With the kinds that can be a teacher."""
    directory = save("hubert-base")
    edit_json(directory / "config.json", model_type=family)
    with pytest.raises(TeacherError, match=r"hubert, wavlm, wav2vec2, data2vec-audio, whisper"):
        Teacher(str(directory), [1])


def test_a_hub_that_cannot_be_reached_is_named_with_the_way_around(tmp_path: Path) -> None:
    """An empty cache and no asking: what a machine without network sees."""
    with pytest.raises(TeacherError, match=r"org/teacher.*hub.*path of a local directory"):
        Teacher("org/teacher", [1], cache_dir=tmp_path, local_files_only=True)
