"""Batches by duration: the budget, the buckets, the shares of ranks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interstack.constants import SAMPLE_RATE
from interstack.data.bucketing import plan_batches
from interstack.errors import DataError
from tests.data.corpora import SPEECH, files_of

_BUDGET = 1000
_LENGTHS = st.lists(st.integers(1, _BUDGET), min_size=4, max_size=200)


@settings(deadline=None)
@given(_LENGTHS, st.integers(1, 12), st.integers(1, 4), st.integers(0, 3))
def test_every_utterance_is_in_one_batch_and_every_batch_in_the_budget(
    lengths: list[int], num_buckets: int, world_size: int, epoch: int
) -> None:
    """Whatever the lengths, buckets and ranks, an epoch is a partition of the corpus."""
    try:
        plan = plan_batches(lengths, _BUDGET, num_buckets, world_size=world_size)
    except DataError:
        assume(False)
    shares = plan.shuffled((0, epoch), world_size)
    batches = [batch for share in shares for batch in share]
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= _BUDGET for batch in batches)
    assert {len(share) for share in shares} == {len(plan.batches()) / world_size}


@settings(deadline=None)
@given(_LENGTHS, st.integers(1, 3))
def test_kept_order_is_kept(lengths: list[int], world_size: int) -> None:
    """Without sorting, batches are runs of the corpus, ready to be dealt out to ranks."""
    try:
        batches = plan_batches(lengths, _BUDGET, world_size=world_size, keep_order=True).batches()
    except DataError:
        assume(False)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= _BUDGET for batch in batches)
    assert len(batches) % world_size == 0


def test_an_epoch_is_a_function_of_its_key() -> None:
    """The same seed and epoch give the same batches, another epoch others, as many of them."""
    lengths = np.random.default_rng(0).integers(100, 400, size=300).tolist()
    plan = plan_batches(lengths, _BUDGET, 5)

    def epoch(*key: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan.shuffled(key)[0]]

    assert epoch(7, 0) == epoch(7, 0)
    assert epoch(7, 0) != epoch(7, 1)
    assert epoch(7, 0) != epoch(8, 0)
    assert len(epoch(7, 0)) == len(epoch(7, 1))
    memberships = [{frozenset(batch) for batch in epoch(7, number)} for number in (0, 1)]
    common = memberships[0] & memberships[1]
    assert len(common) < len(plan) / 10  # not the same batches in another order


@pytest.mark.parametrize("seconds", [32, 60])
def test_no_shuffle_of_real_speech_exceeds_the_budget(seconds: int) -> None:
    """Batches are sized for the longest that may come into them."""
    lengths = np.asarray([_length(path) for path in files_of(SPEECH)])
    budget = seconds * SAMPLE_RATE
    for num_buckets in (1, 30):
        plan = plan_batches(lengths.tolist(), budget, num_buckets)
        for number in range(50):
            sizes = [len(batch) * lengths[batch].max() for batch in plan.shuffled((0, number))[0]]
            assert max(sizes) <= budget


@pytest.mark.parametrize("seconds", [32, 60])
def test_little_of_a_small_corpus_is_padding_and_its_batches_change(seconds: int) -> None:
    """Under 5 % of the embedded speech, with its own budget and with the default one."""
    lengths = np.asarray([_length(path) for path in files_of(SPEECH)])
    plan = plan_batches(lengths.tolist(), seconds * SAMPLE_RATE, 30)
    epochs = [plan.shuffled((0, number))[0] for number in range(8)]
    padded = sum(len(batch) * int(lengths[batch].max()) for epoch in epochs for batch in epoch)
    assert 1 - len(epochs) * int(lengths.sum()) / padded < 0.05
    sets = [{frozenset(batch.tolist()) for batch in epoch} for epoch in epochs]
    common = [len(one & other) for one, other in pairwise(sets)]
    assert sum(common) / len(common) < 0.2 * len(plan)


def test_a_large_corpus_fills_its_batches_and_mixes_them() -> None:
    """There, little padding costs neither smaller batches nor much chance."""
    lengths = np.random.default_rng(0).integers(100, 400, size=5000)
    plan = plan_batches(lengths.tolist(), 4 * _BUDGET, 30)
    assert lengths.sum() / (4 * _BUDGET * len(plan)) > 0.9
    first, second = (plan.shuffled((0, number))[0] for number in (0, 1))
    companions = {index: set(batch.tolist()) for batch in first for index in batch}
    kept = [len(companions[index] & set(batch.tolist())) - 1 for batch in second for index in batch]
    others = [len(batch) - 1 for batch in second for _ in batch]
    assert sum(kept) / sum(others) < 0.1  # of those in one's batch, met again an epoch later


def _length(path: Path) -> int:
    return int(soundfile.info(path).frames)


def test_ranks_have_batches_alike_in_length_at_every_step() -> None:
    """No rank waits for one with far longer utterances."""
    lengths = np.random.default_rng(0).integers(10, 500, size=2000).tolist()
    shares = plan_batches(lengths, _BUDGET, 30, world_size=2).shuffled((0, 0), 2)
    longest = [[max(lengths[i] for i in batch) for batch in share] for share in shares]
    assert max(abs(a - b) for a, b in zip(*longest, strict=True)) < 150


def test_too_few_utterances_for_the_ranks_are_refused() -> None:
    """Three single utterances can't be shared by two ranks, nor one by two."""
    with pytest.raises(DataError, match="can't be shared evenly by 2 ranks"):
        plan_batches([900, 900, 900], _BUDGET, world_size=2)
    with pytest.raises(DataError, match="1 utterances in 1 batches"):
        plan_batches([900], _BUDGET, world_size=2)
