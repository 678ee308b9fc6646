"""Hugging Face datasets, as streams."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from interstack.data import HubDataset
from interstack.errors import ConfigurationError, DataError
from tests.data.corpora import (
    SPEECH,
    files_of,
    hub_over,
    ids_of,
    make_stream_module,
)


def test_corrupt_audio_in_a_stream_is_named_or_skipped(tmp_path: Path) -> None:
    """Something that is no audio at all among a dataset's rows."""
    files = files_of(SPEECH, "dev-clean")
    audio = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    audio[4] = {"bytes": b"no audio", "path": "broken.flac"}
    table = datasets.Dataset.from_dict({"sound": audio})
    for name in ("train", "validation"):
        table.to_parquet(tmp_path / f"{name}.parquet")
    module = make_stream_module(hub_over(tmp_path))
    with pytest.raises(DataError, match="broken"):
        list(module.train_dataloader())
    module = make_stream_module(hub_over(tmp_path), on_corrupt="skip")
    expected = {file.stem for file in files} - {files[4].stem}
    assert set(ids_of(module.val_dataloader())) == expected
    assert module.report()["skipped"] == 1


def test_rows_may_name_files_instead_of_holding_audio(corpus: Path, tmp_path: Path) -> None:
    """A table of paths; the files name the utterances where no column does."""
    files = files_of(corpus)[:6]
    (tmp_path / "table").mkdir()
    kinds = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = {"sound": [{"bytes": None, "path": str(file)} for file in files]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"sound": kinds}))
    for name in ("train", "validation"):
        table.to_parquet(tmp_path / "table" / f"{name}.parquet")
    ids = ids_of(make_stream_module(hub_over(tmp_path / "table")).val_dataloader())
    assert sorted(ids) == [file.stem for file in files]


def test_what_is_wrong_with_a_dataset_is_said(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such split, no such column, no hub."""
    source = hub_over(hub_folder)
    source.splits["train"] = ("elsewhere",)
    with pytest.raises(DataError, match=r"'elsewhere' of the dataset .* can't be opened"):
        make_stream_module(source)
    source = hub_over(hub_folder)
    source.audio_column = "audio"
    with pytest.raises(
        DataError, match=r"audio_column is 'audio', but .* has the columns id, sound"
    ):
        make_stream_module(source)
    source = hub_over(hub_folder)
    source.id_column = "name"
    with pytest.raises(DataError, match=r"data\.source\.id_column is 'name', but .* id, sound"):
        make_stream_module(source)
    with pytest.raises(
        ConfigurationError, match=r"data\.source\.revision is main, which has no eff"
    ):
        HubDataset(str(hub_folder), revision="main")
    source.splits["train"] = ()
    with pytest.raises(DataError, match="no split is named for train"):
        make_stream_module(source)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'nobody/nothing' can't be opened.*local copy"):
        make_stream_module(HubDataset("nobody/nothing"))
