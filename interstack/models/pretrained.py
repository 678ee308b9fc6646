"""Find and load a pretrained speech encoder, and say plainly why when that fails."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging
from transformers.utils.hub import cached_file

from interstack.errors import InterstackError, TeacherError, first_line
from interstack.models.preprocessing import PREPROCESSOR_FILES, read_feature_extractor

WAVEFORM_FAMILIES: Final = ("hubert", "wavlm", "wav2vec2", "data2vec-audio")
"""transformers model types whose encoder takes the raw waveform."""
FAMILIES: Final = (*WAVEFORM_FAMILIES, "whisper")
"""All transformers model types that can be a teacher."""
WEIGHT_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What transformers looks for in a model's directory."""


@dataclass(frozen=True)
class Pretrained:
    """A speech encoder as it was published: float32, in eval mode."""

    model: nn.Module
    """transformers' base model of a waveform family, or Whisper's encoder."""
    normalises_waveform: bool
    """Whether it expects waveforms of zero mean and unit variance."""


@dataclass(frozen=True)
class Source:
    """Where a pretrained model comes from.

    Args:
        name: hub id or local directory.
        revision: branch, tag or commit on the hub.
        cache_dir: where downloads are kept; transformers' default if None.
        local_files_only: never ask the hub.
        role: what the model is here, for messages.
        families: transformers model types that can be that.
    """

    name: str
    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    role: str = "teacher"
    families: tuple[str, ...] = FAMILIES

    @property
    def directory(self) -> Path | None:
        """The local directory, or None for a hub id."""
        directory = Path(self.name).expanduser()
        return directory if directory.is_dir() else None

    def read_config(self) -> PretrainedConfig:
        """Read the config alone, which is cheap.

        Raises:
            TeacherError: it can't be found or read, or names a family that can't be used here.
        """
        self._check_name()
        with self._explaining_failures():
            fields, _ = PretrainedConfig.get_config_dict(self._location, **self._options)
            family = fields.get("model_type")
            if family not in self.families:
                raise TeacherError(
                    f"{self.name} is a model of type {family!r}, which can't be a {self.role}; "
                    f"supported types: {', '.join(self.families)}."
                )
            config = AutoConfig.from_pretrained(self._location, **self._options)
            return cast(PretrainedConfig, config)

    def feature_extractor(self, config: PretrainedConfig) -> Any:  # noqa: ANN401, one of several
        """Return what prepares audio for the model: transformers' own object.

        Args:
            config: From `read_config`.

        Raises:
            TeacherError: it can't be read, or prepares audio in another way than is computed here,
                at another rate say.
        """
        with self._explaining_failures():
            return read_feature_extractor(self.name, self._location, config, self._options)

    def load(self, config: PretrainedConfig) -> Pretrained:
        """Read weights and preprocessing.

        Raises:
            TeacherError: something is missing, of the wrong size or unreadable, or weights of the
                encoder would start out random; or audio is to be prepared in another way than is
                computed here.
        """
        is_whisper = config.model_type == "whisper"
        extractor = self.feature_extractor(config)
        loader: Any = WhisperEncoder if is_whisper else AutoModel
        # Of a whole Whisper, transformers is to find the encoder; one saved alone needs no help.
        names = {"key_mapping": {r"^(model\.)?encoder\.": ""}} if is_whisper else {}
        with self._explaining_failures(), _quiet_transformers():
            model, report = loader.from_pretrained(
                self._location,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **names,
                **self._options,
            )
        # Other parts, as the mask embedding or an adapter, are not used and may well be missing.
        parts = () if is_whisper else ("feature_extractor.", "feature_projection.", "encoder.")
        missing = sorted(
            key for key in report["missing_keys"] if not parts or key.startswith(parts)
        )
        if missing:
            raise TeacherError(
                f"The weights of {self.name} lack {len(missing)} tensors of the encoder (first: "
                f"{missing[0]}), which would start out random. Give a complete checkpoint of the "
                "type that its config.json names."
            )
        return Pretrained(model.eval(), not is_whisper and bool(extractor.do_normalize))

    def files_digest(self) -> str | None:
        """SHA-256 of config, preprocessing and weights as they lie on the disk.

        Nothing is loaded or fetched. None if the model is neither a local directory nor in the
        hub's local cache.
        """
        directory = self.directory
        if directory is None:
            try:
                found = cached_file(
                    self.name,
                    "config.json",
                    _raise_exceptions_for_missing_entries=False,
                    _raise_exceptions_for_connection_errors=False,
                    **(self._options | {"local_files_only": True}),
                )
            except OSError:  # a path that does not exist, which can't be a name on the hub
                return None
            if found is None:
                return None
            directory = Path(found).parent
        digest = hashlib.sha256()
        kept = (
            "config.json",
            *PREPROCESSOR_FILES,
            "model*.safetensors",
            "pytorch_model*.bin",
        )
        for path in sorted(path for pattern in kept for path in directory.glob(pattern)):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def _location(self) -> str:
        return str(self.directory or self.name)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "revision": self.revision or "main",
            "cache_dir": self.cache_dir,
            "local_files_only": self.local_files_only,
        }

    def _check_name(self) -> None:
        if self.directory is None:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", self.name):
                raise TeacherError(
                    f"There is no {self.role} directory {self.name}; check the path, or give a "
                    "hub id such as facebook/hubert-base-ls960."
                )
            return
        if not (self.directory / "config.json").is_file():
            raise TeacherError(
                f"The {self.role} directory {self.name} has no config.json; give a directory that "
                "transformers' save_pretrained wrote."
            )
        if not any((self.directory / file).is_file() for file in WEIGHT_FILES):
            raise TeacherError(
                f"The {self.role} directory {self.name} has no weights; it needs one of "
                f"{', '.join(WEIGHT_FILES)}."
            )

    @contextmanager
    def _explaining_failures(self) -> Iterator[None]:
        """Turn the many ways in which loading fails into one that names the fix."""
        try:
            yield
        except InterstackError:
            raise
        # transformers raises a dozen kinds for a model that is absent, unreachable, malformed or
        # corrupt, and torch, pickle and safetensors their own
        except Exception as error:
            reason = first_line(error)
            if self.directory is not None:
                raise TeacherError(
                    f"The {self.role} in {self.name} can't be loaded: {reason}. Copy or download "
                    "it again."
                ) from error
            raise TeacherError(
                f"The {self.role} {self.name} is no directory here, nor can it be had from the "
                f"Hugging Face hub: {reason}. Check the name and the connection, or give the "
                "path of a local directory with its config.json and model.safetensors."
            ) from error


def bake_weight_norm(model: nn.Module) -> dict[nn.Module, bytes]:
    """Fold parametrised weights of a frozen model, to compute them once and not at every step.

    Returns:
        SHA-256 of the parameters that each folded weight was computed from. The weight itself is
        no witness: its norm is a sum whose last bit depends on the threads that computed it.
    """
    digests = {}
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            digests[module] = tensors_digest(module.state_dict())
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return digests


def tensors_digest(tensors: Mapping[str, Tensor], facts: bytes = b"") -> bytes:
    """Return the SHA-256 of some facts and of named tensors, the same on every machine."""
    digest = hashlib.sha256(facts)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.digest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no load report: what matters of it is checked and raised."""
    hf_logging: Any = logging  # untyped in part
    verbosity, had_bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if had_bar:
            hf_logging.enable_progress_bar()
