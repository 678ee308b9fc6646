"""Loading a pretrained encoder: what serves, and what is refused with a reason."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from interstack.errors import TeacherError
from interstack.evaluation.superb.upstream import Upstream
from interstack.evaluation.upstreams import untrained
from interstack.models.pretrained import Source
from interstack.models.teacher import Teacher
from tests.models.families import (
    NUM_LAYERS,
    TRANSFORMER,
    edit_json,
    edit_weights,
    pad,
    read_speech,
    save,
)


def test_a_fine_tuned_checkpoint_serves_as_its_encoder(tmp_path: Path) -> None:
    """What is on top of it does not matter."""
    model: Any = HubertForCTC(HubertConfig(**TRANSFORMER))
    model.eval()
    model.save_pretrained(tmp_path)
    waveforms, num_samples = pad(read_speech(1.0))
    with torch.no_grad():
        expected = model.hubert(waveforms).last_hidden_state
    [ours] = Teacher(str(tmp_path), [NUM_LAYERS])(waveforms, num_samples).hidden_states
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_with_old_weight_norm_names_and_no_mask_embedding_loads(
    tmp_path: Path,
) -> None:
    """As HuBERT Base on the hub: renamed by transformers, and unused tensors may be missing."""
    directory = save("hubert-base", tmp_path)
    expected = Teacher(str(directory), [1]).fingerprint()

    def age(tensors: dict[str, Tensor]) -> None:
        del tensors["masked_spec_embed"]
        stem = "encoder.pos_conv_embed.conv"
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            tensors[f"{stem}.{old}"] = tensors.pop(f"{stem}.parametrizations.weight.{new}")

    edit_weights(directory, age)
    assert Teacher(str(directory), [1]).fingerprint() == expected


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/teacher", "a/b/c"])
def test_a_directory_that_is_not_there_is_refused(name: str) -> None:
    """Without asking the hub for what can't be a hub id."""
    with pytest.raises(TeacherError, match=f"no teacher directory {name}"):
        Teacher(name, [1])


@pytest.mark.parametrize(
    ("file", "message"), [("config.json", "no config.json"), ("model.safetensors", "no weights")]
)
def test_an_incomplete_directory_is_refused(file: str, message: str, tmp_path: Path) -> None:
    """The message says what it lacks."""
    directory = save("hubert-base", tmp_path)
    (directory / file).unlink()
    with pytest.raises(TeacherError, match=message):
        Teacher(str(directory), [1])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_corrupt_file_is_refused(file: str, tmp_path: Path) -> None:
    """Cut off in mid-download, say."""
    directory = save("hubert-base", tmp_path)
    (directory / file).write_bytes(b'{"model_ty')
    with pytest.raises(TeacherError, match="can't be loaded"):
        Teacher(str(directory), [1])


@pytest.mark.parametrize(
    "content", [b"no tensors", b"PK\x03\x04 cut off", pickle.dumps({"weight": print}), b""]
)
def test_weights_that_are_no_tensor_file_are_refused(content: bytes, tmp_path: Path) -> None:
    """Of the older kind, which is a pickle: text, half an archive, something else, nothing."""
    directory = save("hubert-base", tmp_path)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(TeacherError, match=rf"{directory.name} can't be loaded"):
        Teacher(str(directory), [1])


def test_preprocessing_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    """A list, say."""
    directory = save("hubert-base", tmp_path)
    (directory / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(TeacherError, match="can't be loaded"):
        Teacher(str(directory), [1])


@pytest.mark.parametrize("family", ["hubert-base", "whisper"])
def test_weights_that_would_start_out_random_are_refused(family: str, tmp_path: Path) -> None:
    """A teacher that is in part untrained must not pass for one."""
    directory = save(family, tmp_path)
    prefix = "encoder." if family == "whisper" else ""
    lost = "layers.1.fc1.weight" if family == "whisper" else "feature_projection.projection.weight"

    def lose(tensors: dict[str, Tensor]) -> None:
        del tensors[prefix + lost]

    edit_weights(directory, lose)
    with pytest.raises(TeacherError, match=rf"lack 1 tensors.*{lost}.*random"):
        Teacher(str(directory), [1])


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    """A config that does not belong to the weights."""
    directory = save("hubert-base", tmp_path)
    edit_json(directory / "config.json", intermediate_size=48)
    with pytest.raises(TeacherError, match="can't be loaded"):
        Teacher(str(directory), [1])


def test_a_width_that_the_heads_do_not_divide_is_refused(tmp_path: Path) -> None:
    """As transformers puts it."""
    directory = save("hubert-base", tmp_path)
    edit_json(directory / "config.json", num_attention_heads=5)
    with pytest.raises(TeacherError, match="divisible by num_heads"):
        Teacher(str(directory), [1])


@pytest.mark.parametrize("family", ["bert", None])
def test_a_model_of_another_kind_is_refused(family: str | None, tmp_path: Path) -> None:
    """With the kinds that can be a teacher."""
    directory = save("hubert-base", tmp_path)
    edit_json(directory / "config.json", model_type=family)
    with pytest.raises(TeacherError, match=r"hubert, wavlm, wav2vec2, data2vec-audio, whisper"):
        Teacher(str(directory), [1])


def test_a_hub_that_cannot_be_reached_is_named_with_the_way_around(tmp_path: Path) -> None:
    """An empty cache and no asking: what a machine without network sees."""
    with pytest.raises(TeacherError, match=r"org/teacher.*hub.*path of a local directory"):
        Teacher("org/teacher", [1], cache_dir=tmp_path, local_files_only=True)


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
    family: str, taps: list[int], message: str, tmp_path: Path
) -> None:
    """Before its weights are read."""
    directory = save(family, tmp_path)
    (directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(TeacherError, match=message):
        Teacher(str(directory), taps)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    """With those there are."""
    dtype: Any = "int8"
    with pytest.raises(TeacherError, match=r"int8.*bfloat16"):
        Teacher(str(save("hubert-base", tmp_path)), [1], dtype=dtype)


def save_processor(directory: Path, **settings: Any) -> None:  # noqa: ANN401
    """Save what fine-tuning leaves: a processor, as transformers 5 writes it, and nothing else."""
    (directory / "vocab.json").write_text('{"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}')
    extractor: Any = Wav2Vec2FeatureExtractor(**settings)
    tokenizer = Wav2Vec2CTCTokenizer(str(directory / "vocab.json"))
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(directory)
    assert (directory / "processor_config.json").exists()
    assert not (directory / "preprocessor_config.json").exists()


@pytest.mark.parametrize("normalises", [True, False])
def test_a_fine_tuned_teacher_is_normalised_as_its_processor_says(
    normalises: bool, tmp_path: Path
) -> None:
    """Transformers 5 saves a processor to processor_config.json alone; the kind does not decide."""
    directory = save("hubert-base" if normalises else "hubert-large", tmp_path)
    source = Source(str(directory))
    bare = source.files_digest()
    save_processor(directory, do_normalize=normalises)
    assert Teacher(str(directory), [1]).normalises_waveform is normalises
    assert source.files_digest() != bare
    assert untrained(str(directory), "random")._model.normalises_waveform is normalises


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_a_teacher_of_another_rate_is_refused(file: str, tmp_path: Path) -> None:
    """By its name, with the rate, wherever that is written, and before its weights are read."""
    directory = save("hubert-base", tmp_path)
    (directory / "model.safetensors").write_bytes(b"")
    if file == "processor_config.json":
        save_processor(directory, sampling_rate=8_000)
    else:
        edit_json(directory / file, sampling_rate=8_000)
    with pytest.raises(TeacherError, match=rf"sampling_rate .*{directory} is 8000, .* 16000: give"):
        Teacher(str(directory), [1])
    with pytest.raises(TeacherError, match="sampling_rate"):
        Upstream.find(str(directory))


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("whisper", {"feature_size": 128}, "feature_size .* is 128, .* be 80"),
        ("whisper", {"hop_length": 320}, "hop_length .* is 320, .* be 160"),
        ("hubert-base", {"feature_size": 2}, "feature_size .* is 2, .* be 1"),
        (
            "hubert-base",
            {"feature_extractor_type": "WhisperFeatureExtractor"},
            "is a WhisperFeatureExtractor, .* Wav2Vec2FeatureExtractor",
        ),
    ],
)
def test_a_feature_extractor_that_is_not_computed_here_is_refused(
    family: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Features of another kind would be silently wrong."""
    directory = save(family, tmp_path)
    edit_json(directory / "preprocessor_config.json", **fields)
    with pytest.raises(TeacherError, match=message):
        Teacher(str(directory), [1])


@pytest.mark.parametrize(
    ("family", "assumption"),
    [
        ("hubert-base", "waveforms as they are at 16000 Hz"),
        ("wavlm-large", "normalised waveforms at 16000 Hz"),
        ("whisper", "log-mel features of 80 bins at 16000 Hz"),
    ],
)
def test_what_is_assumed_of_a_model_without_preprocessor_is_said(
    family: str, assumption: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with the files that would say it."""
    directory = save(family, tmp_path)
    with caplog.at_level("WARNING", "interstack"):
        for _ in range(2):
            Teacher(str(directory), [1])
    (line,) = [each for each in caplog.messages if str(directory) in each]
    assert assumption in line
    assert "preprocessor_config.json or processor_config.json" in line
