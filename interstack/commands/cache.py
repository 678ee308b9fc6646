"""cache: the teacher's targets of a corpus, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from interstack.commands.dry_run import describe_run
from interstack.commands.options import choose_device
from interstack.data.base import Split
from interstack.distillation.module import Distillation
from interstack.distillation.precision import check_precision_option
from interstack.errors import ConfigurationError
from interstack.models.factory import load_front_end, load_teacher
from interstack.models.precision import device_format
from interstack.target_cache.build import CacheOptions, make_cache
from interstack.target_cache.format import CacheDtype
from interstack.target_cache.partition import Share
from interstack.utils.disk import deferred_writes


def run_cache(arguments: Sequence[str]) -> None:
    """Parse the command's options and compute what is missing.

    Args:
        arguments: The words after ``cache``.

    Raises:
        InterstackError: As `make_cache` does.
    """
    run = describe_run("cache", arguments, _add_options)
    datamodule, module = run.datamodule, run.module
    options = _options(run.config, datamodule.target_cache, module)
    if options.dtype == "float32" and device_format(options.device) == "float32":
        check_precision_option(run.trainer, module, cached=False)
    datamodule.target_cache = None  # it is not filled yet
    source = module.student_config.front_end_source
    if source is not None:
        only_local = module.teacher_config.local_files_only
        options = replace(options, front_end=load_front_end(source, local_files_only=only_local))
    if options.share.index == 0:
        datamodule.prepare_data()
    for stage in ("fit", "test") if "test" in options.splits else ("fit",):
        datamodule.setup(stage)
    teacher = load_teacher(module.teacher_config, module.initial_depth)
    with deferred_writes():
        remaining = make_cache(datamodule, module.teacher_config, teacher, options)
    if remaining:
        print(
            f"share {options.share.index} of {options.share.total} is done; {remaining} utterances "
            "are still to come from the others"
        )
    else:
        print(
            f"the cache is in {options.output}: train with\n"
            f"  python -m interstack.cli fit --config … --data.target_cache {options.output}"
        )


def _add_options(parser: LightningArgumentParser) -> None:
    parser.add_argument(
        "--output", type=str | None, default=None, help="directory; default: data.target_cache"
    )
    parser.add_argument(
        "--dtype",
        type=CacheDtype,
        default="float16",
        help="number format: float32 is exact, int8 the smallest",
    )
    parser.add_argument(
        "--splits", type=list[Split], default=["train", "validation"], help="what is computed"
    )
    parser.add_argument(
        "--share",
        type=str | None,
        default=None,
        help="this process' part, as 3/8 (from 0/8 to 7/8); default: torchrun's rank, or all",
    )
    parser.add_argument(
        "--device",
        type=Literal["auto", "cpu", "cuda"],
        default="auto",
        help="where the teacher computes",
    )
    parser.add_argument(
        "--shard_megabytes", type=float, default=256, help="size from which on a shard is written"
    )


def _options(config: Namespace, target_cache: str | None, module: Distillation) -> CacheOptions:
    output = config.output or target_cache
    if output is None:
        raise ConfigurationError("data.target_cache is null: give --output a directory")
    if config.shard_megabytes <= 0:
        raise ConfigurationError(f"--shard_megabytes {config.shard_megabytes} must be above 0")
    return CacheOptions(
        output=Path(output),
        dtype=config.dtype,
        with_features=module.student_config.front_end == "shared",
        splits=tuple(dict.fromkeys(config.splits)),
        share=Share.parse(config.share),
        device=choose_device(config.device),
        shard_bytes=int(config.shard_megabytes * 1e6),
        precision_check=module.precision_check,
    )
