"""Loading a pretrained encoder: what serves, and what is refused with a reason."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import NUM_LAYERS, TRANSFORMER, edit_json, edit_weights, pad, read_speech, save
from torch import Tensor
from transformers import HubertConfig, HubertForCTC

from interstack.errors import TeacherError
from interstack.models.teacher import Teacher


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
    (directory / "preprocessor_config.json").write_text("[]")
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
