"""Modules and functions that s3prl's downstream experts need and today's packages lack.

They are patched in while the experts run; no file of s3prl is changed. The experts use what newer
packages have dropped (``torchaudio.sox_effects``, ``torchaudio.load`` without torchcodec), what
s3prl's wheel lacks (the corpora of its ctc recipe), and small parts of large packages: one function
of librosa, and names of catalyst and pysox that are imported and never called. Two experts cache
lists of files inside the installed package, where the next run with other data would read them, and
one requires twelve processes and a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import torch
from joblib import Parallel
from torch import Tensor
from torch.utils.data import DistributedSampler

from interstack.constants import SAMPLE_RATE
from interstack.data.audio_files import supported_audio
from interstack.errors import ConfigurationError, DataError
from interstack.evaluation.superb.corpora import LibriPhoneDataset, SnipsDataset
from interstack.evaluation.superb.sox_effects import apply_effects_file, load, read

_KEEP_LISTS: Final = {
    "s3prl.downstream.voxceleb1.dataset": ("CACHE_PATH", "{}/"),
    "s3prl.downstream.sv_voxceleb1.dataset": ("__file__", "{}/dataset.py"),
}
"""Where experts cache lists of files: a module's variable, and its value for a directory."""


def find_files(directory: str | Path) -> list[str]:
    """Return audio files as ``librosa.util.find_files`` does: all below, absolute, sorted."""
    return supported_audio(Path(directory).absolute())


class NotDistributed(DistributedSampler[Any]):
    """Stands for catalyst's sampler of distributed jobs, which ours are not."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigurationError(
            "a SUPERB job runs in one process: distribute whole jobs over processes with --share"
        )


class NoTransformer:
    """Stands for pysox's class, which s3prl imports and never uses."""


def threads(n_jobs: int) -> Parallel:
    """Return joblib's ``Parallel`` with threads, one a processor at most.

    The verification expert requires twelve processes to read audio, each of which would import
    torch; reading releases the interpreter, so that threads are enough.
    """
    return Parallel(n_jobs=min(n_jobs, os.cpu_count() or 1), prefer="threads")


@contextmanager
def s3prl_supplied(scratch: Path) -> Iterator[None]:
    """Make s3prl's downstream experts importable and runnable.

    Args:
        scratch: A directory for the lists of files that some of them cache.

    Raises:
        ConfigurationError: If s3prl is not installed.
    """
    if importlib.util.find_spec("s3prl") is None:
        raise ConfigurationError(
            "SUPERB needs s3prl's maintained fork: install interstack[superb], or espnet-s3prl"
        )
    with ExitStack() as supplied:
        supplied.enter_context(warnings.catch_warnings())
        for kind in (DeprecationWarning, FutureWarning, ResourceWarning, UserWarning):
            warnings.simplefilter("ignore", kind)  # s3prl's own, which can't be fixed here
        for name, content in _SUPPLIED.items():
            supplied.enter_context(_importable(name, content))
        supplied.enter_context(patch("torchaudio.load", load))
        if not torch.cuda.is_available():
            # the speaker verification expert moves its mask there, whatever the job's device
            supplied.enter_context(patch.object(Tensor, "cuda", lambda self, *_, **__: self))
        diarization = importlib.import_module("s3prl.downstream.diarization.dataset")
        supplied.enter_context(patch.object(diarization, "sf", SimpleNamespace(read=read)))
        verification = importlib.import_module("s3prl.downstream.sv_voxceleb1.dataset")
        supplied.enter_context(patch.object(verification, "Parallel", threads))
        for name, (variable, pattern) in _KEEP_LISTS.items():
            module = importlib.import_module(name)
            supplied.enter_context(patch.object(module, variable, pattern.format(scratch)))
        yield


@contextmanager
def without_unreadable(report: Callable[[str], None]) -> Iterator[None]:
    """Make the verification expert skip what can't be decoded, while it is constructed.

    It reads the length of every file and skips those that are too short; a file that can't be
    decoded gets the length 0.

    Args:
        report: Called with what is wrong with each.
    """

    def measured(path: str, effects: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
        try:
            return apply_effects_file(path, effects)
        except DataError as error:
            report(str(error))
            return torch.zeros(1, 0), SAMPLE_RATE

    verification = importlib.import_module("s3prl.downstream.sv_voxceleb1.dataset")
    with patch.object(verification, "apply_effects_file", measured):
        yield


@contextmanager
def _importable(name: str, content: Mapping[str, object]) -> Iterator[None]:
    """Make a module, and the packages above it, importable unless they are already."""
    parts = name.split(".")
    modules = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    missing = [module for module in modules if not _can_be_found(module)]
    for module in missing:
        sys.modules[module] = ModuleType(module)
        sys.modules[module].__path__ = []
    if missing:
        vars(sys.modules[name]).update(content)
    try:
        yield
    finally:
        for module in missing:
            del sys.modules[module]


def _can_be_found(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


_SUPPLIED: Final[Mapping[str, Mapping[str, object]]] = {
    "torchaudio.sox_effects": {"apply_effects_file": apply_effects_file},
    "librosa.util": {"find_files": find_files},
    "catalyst.data.sampler": {"DistributedSamplerWrapper": NotDistributed},
    "sox": {"Transformer": NoTransformer},
    "s3prl.downstream.ctc.corpus.libriphone": {"LibriPhoneDataset": LibriPhoneDataset},
    "s3prl.downstream.ctc.corpus.snips": {"SnipsDataset": SnipsDataset},
}
