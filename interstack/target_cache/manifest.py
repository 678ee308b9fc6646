"""The record of a cache: the facts of teacher and format that a run has to agree with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from transformers import AutoConfig, PretrainedConfig

from interstack.errors import ConfigurationError
from interstack.models.config import StudentConfig, TeacherConfig, front_end_fields
from interstack.models.pretrained import Source
from interstack.models.pretrained_front_end import PretrainedFrontEnd, front_end_source
from interstack.models.teacher import Teacher
from interstack.target_cache.format import CacheDtype
from interstack.utils.atomic import write_whole
from interstack.utils.disk import unread

RECORD_FILE: Final = "cache.json"
_VERSION: Final = 1
_LOCATIONS: Final = ("source", "revision", "files", "front_end_source", "front_end_files")
"""Where models were found, which is not what they are."""


@dataclass(frozen=True)
class CacheRecord:
    """The facts of a cache, as they lie in its ``cache.json``.

    Attributes:
        dtype: Number format of what is stored.
        source: Where the teacher was found.
        revision: Its revision on the hub.
        files: Digest of its files, which `fit` compares without loading the model.
        weights: `Teacher.fingerprint`: architecture, kept weights and their precision.
        teacher_dtype: Precision that it computed in.
        taps: Which of its hidden states are stored.
        width: Channels of a hidden state.
        num_features: Channels of the front end's features, which come before the hidden states; 0
            if they are not stored.
        num_layers: Layers of the whole teacher.
        config: Its transformers configuration.
        normalises_waveform: See `Teacher`, as for the following.
        takes_waveform: As there.
        max_samples: As there.
        first_frame_centre: As there.
        frame_hop: As there.
        version: Of this file's form.
        has_final_norm: As there; False in a cache that was made before it was recorded, whose last
            hidden state of a pre-LN teacher lacks the final layer norm.
        pad_to_30s: See `Teacher`; caches of before it existed were made without.
        family: As there.
        front_end_source: Where the front end was found that is stored in place of the teacher's,
            with its features where there are any; None, as the next three: the teacher's.
        front_end_files: Digest of its model's files, as for the teacher's.
        front_end_weights: `PretrainedFrontEnd.fingerprint`.
        front_end_config: What a ``HubertConfig`` has to say of it.
        front_end_normalises_waveform: See `PretrainedFrontEnd`.
    """

    dtype: CacheDtype
    source: str
    revision: str | None
    files: str | None
    weights: str
    teacher_dtype: str
    taps: tuple[int, ...]
    width: int
    num_features: int
    num_layers: int
    config: dict[str, Any]
    normalises_waveform: bool
    takes_waveform: bool
    max_samples: int | None
    first_frame_centre: float
    frame_hop: int
    version: int = _VERSION
    has_final_norm: bool = False
    pad_to_30s: bool = False
    family: str | None = None
    front_end_source: str | None = None
    front_end_files: str | None = None
    front_end_weights: str | None = None
    front_end_config: dict[str, Any] | None = None
    front_end_normalises_waveform: bool = False

    @classmethod
    def of(
        cls,
        config: TeacherConfig,
        teacher: Teacher,
        dtype: CacheDtype,
        *,
        with_features: bool,
        front_end: PretrainedFrontEnd | None = None,
    ) -> Self:
        """Describe a cache that is to be made.

        Args:
            config: The teacher's settings.
            teacher: The teacher.
            dtype: Number format to store in.
            with_features: Store the front end's features too, for a student that shares it.
            front_end: That of ``model.student.front_end_source``; None: the teacher's.
        """
        extractor: Any = teacher if front_end is None else front_end
        fields = json.loads(teacher.config.to_json_string(use_diff=False))
        fields.pop("_name_or_path", None)  # may be a path of this machine
        return cls(
            dtype=dtype,
            source=config.source,
            revision=config.revision,
            files=_files_of(config),
            weights=teacher.fingerprint(),
            teacher_dtype=config.dtype,
            taps=teacher.taps,
            width=teacher.width,
            num_features=int(extractor.config.conv_dim[-1]) if with_features else 0,
            num_layers=teacher.num_layers,
            config=fields,
            normalises_waveform=teacher.normalises_waveform,
            takes_waveform=teacher.takes_waveform,
            max_samples=teacher.max_samples,
            first_frame_centre=teacher.first_frame_centre,
            frame_hop=teacher.frame_hop,
            has_final_norm=teacher.has_final_norm,
            pad_to_30s=teacher.pad_to_30s,
            family=config.family,
            **_front_end_facts(front_end),
        )

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read a cache's facts.

        Raises:
            ConfigurationError: If there are none, or they can't be parsed.
        """
        path = directory / RECORD_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            fields["taps"] = tuple(fields["taps"])
            record = cls(**fields)
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"there is no cache of targets in {directory} (no {RECORD_FILE}): make one with "
                "python -m interstack.cli cache, or remove data.target_cache"
            ) from error
        except OSError as error:
            raise ConfigurationError(unread(path, error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} can't be read as the facts of a cache ({error}): make the cache again "
                "in another directory"
            ) from error
        if record.version != _VERSION:
            raise ConfigurationError(
                f"the cache in {directory} is of form {record.version}, this version of interstack "
                f"reads form {_VERSION}: make it again in another directory"
            )
        pre_ln = bool(record.config.get("do_stable_layer_norm"))
        if pre_ln and record.taps[-1] == record.num_layers and not record.has_final_norm:
            raise ConfigurationError(
                f"the cache in {directory} holds hidden state {record.num_layers} of "
                f"{record.source} without its final layer norm, as earlier versions of interstack "
                "stored it: make it again in another directory"
            )
        return record

    def write(self, directory: Path) -> None:
        """Write the facts into a cache's directory.

        Raises:
            OSError: If that can't be done.
        """
        write_whole(directory / RECORD_FILE, json.dumps(asdict(self), indent=1).encode())

    @property
    def teacher_config(self) -> Any:  # noqa: ANN401, one of several families'
        """The teacher's transformers configuration, as transformers has it."""
        if self.family is not None:
            return PretrainedConfig(**self.config)
        return AutoConfig.for_model(**self.config)

    @property
    def num_channels(self) -> int:
        """Channels stored a frame: features, then one hidden state a tap."""
        return self.num_features + len(self.taps) * self.width

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what is stored, wherever the teacher was found."""
        fields = asdict(self)
        for location in _LOCATIONS:
            fields.pop(location)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def check_same(self, wanted: CacheRecord, directory: Path) -> None:
        """Refuse to add other targets to a cache than it holds.

        Args:
            wanted: The facts of what would be added.
            directory: The cache's, for the message.

        Raises:
            ConfigurationError: With what differs.
        """
        if self.fingerprint == wanted.fingerprint:
            return
        mine, other = asdict(self), asdict(wanted)
        differing = [name for name in mine if mine[name] != other[name] and name not in _LOCATIONS]
        if "front_end_weights" in differing:
            raise ConfigurationError(
                f"{directory} was made with {self._front_end_name}, which is not the front end of "
                f"model.student.front_end_source {wanted.front_end_source or 'null'}: give another "
                "--output"
            )
        raise ConfigurationError(
            f"{directory} holds other targets: {_differences(differing, mine, other)}: give "
            "another --output"
        )

    def check_teacher(self, config: TeacherConfig, taps: tuple[int, ...]) -> None:
        """Refuse a run whose teacher is not the cache's, without loading it.

        Where the teacher's files are at hand, they have to be the cache's; where they are not, as
        on a cluster that only has the cache, its name has to be.

        Args:
            config: The run's teacher.
            taps: Its taps.

        Raises:
            ConfigurationError: With what differs.
        """
        files = _files_of(config)
        known = files is not None and self.files is not None
        run = {
            "taps": list(taps),
            "dtype": config.dtype,
            "pad_to_30s": config.pad_to_30s,
            "family": config.family,
            "source": config.source if not known else files,
            "revision": config.revision if not known else None,
        }
        cache = {
            "taps": list(self.taps),
            "dtype": self.teacher_dtype,
            "pad_to_30s": self.pad_to_30s,
            "family": self.family,
            "source": self.source if not known else self.files,
            "revision": self.revision if not known else None,
        }
        differing = [name for name in run if run[name] != cache[name]]
        if known and "source" in differing:
            raise ConfigurationError(
                f"the cache of targets was made from other files than {config.source} now has "
                f"(it knew them as {self.source}): give that teacher, or make a new cache"
            )
        if differing:
            raise ConfigurationError(
                "the cache of targets was made with another model.teacher: "
                f"{_differences(differing, cache, run)}: give the same, or make a new cache"
            )

    @property
    def _front_end_name(self) -> str:
        if self.front_end_source is None:
            return f"the front end of the teacher {self.source}"
        return f"the front end of {self.front_end_source}"

    def has_front_end_of(self, name: str, local_files_only: bool) -> bool:
        """Return whether the cache holds the front end of a model.

        The model's files have to be the cache's where they are at hand, else its name.

        Args:
            name: ``model.student.front_end_source``.
            local_files_only: Never ask the hub.
        """
        if self.front_end_source is None:
            return False
        files = front_end_source(name, local_files_only=local_files_only).files_digest()
        if files is None or self.front_end_files is None:
            return name == self.front_end_source
        return files == self.front_end_files

    def check_front_end(self, student: StudentConfig, teacher: TeacherConfig) -> None:
        """Refuse a student that shares another front end than the one whose features are stored.

        Args:
            student: The run's student, of a shared front end.
            teacher: The run's teacher.

        Raises:
            ConfigurationError: With both front ends.
        """
        name = student.front_end_source
        if not self.num_features:
            return
        if name is None and self.front_end_source is None:
            return
        if name is not None and self.has_front_end_of(name, teacher.local_files_only):
            return
        raise ConfigurationError(
            f"model.student.front_end_source is {name or 'null'}, but the cache of targets holds "
            f"features of {self._front_end_name}: give model.student.front_end_source "
            f"{self.front_end_source or 'null'} with that model, or make a new cache"
        )


def _front_end_facts(front_end: PretrainedFrontEnd | None) -> dict[str, Any]:
    """Describe the front end that is stored in place of the teacher's."""
    if front_end is None:
        return {}
    fields = front_end_fields(front_end.config)
    return {
        "front_end_source": front_end.source.name,
        "front_end_files": front_end.source.files_digest(),
        "front_end_weights": front_end.fingerprint(),
        "front_end_config": json.loads(json.dumps(fields)),
        "front_end_normalises_waveform": front_end.normalises_waveform,
    }


def source_of(config: TeacherConfig) -> Source:
    """Return where a teacher's files are looked for."""
    return Source(config.source, config.revision, None, config.local_files_only)


def _files_of(config: TeacherConfig) -> str | None:
    """Return the digest of a teacher's files; those of a family of one's own are not known."""
    return source_of(config).files_digest() if config.family is None else None


def _differences(names: list[str], cache: dict[str, Any], run: dict[str, Any]) -> str:
    return "; ".join(f"{name} was {cache[name]!r} and is {run[name]!r}" for name in names)
