"""Echoes of a lag, and sequences cut into chunks."""

import numpy as np
import pytest

from jaxseq.data import LaggedEcho, RandomCrops, SequenceChunks
from jaxseq.training import StreamBatches


@pytest.mark.parametrize(("length", "lag"), [(7, 3), (5, 1), (2, 6)])
def test_each_target_is_the_token_of_lag_steps_ago(length, lag):
    for step in range(3):
        batch = LaggedEcho(4, length, lag=lag, vocab_size=5)(step)
        assert batch.tokens.shape == batch.targets.shape == (4, length)
        assert np.array_equal(batch.targets[:, lag:], batch.tokens[:, : max(length - lag, 0)])
        assert (batch.segment_ids == 1).all() and {*batch.tokens.ravel()} <= {*range(5)}


def test_steps_seeds_and_held_out_sequences_differ():
    made = [LaggedEcho(3, 9, lag=2, **options) for options in ({}, {"seed": 1}, {"held_out": True})]
    rows = [data(step).tokens.tobytes() for data in made for step in range(3)]
    assert len(set(rows)) == 9 and len({data.fingerprint for data in made}) == 3


@pytest.mark.parametrize("cut", [1, 3, 4, 12])
def test_chunks_joined_are_the_sequences_in_order(cut):
    data = RandomCrops(np.arange(100), 2, 12)
    chunks = SequenceChunks(data, cut)
    assert isinstance(chunks, StreamBatches)
    n = 12 // cut
    for index in range(3):
        steps = range(index * n, (index + 1) * n)
        for whole, *parts in zip(data(index), *map(chunks, steps), strict=True):
            assert np.array_equal(whole, np.concatenate(parts, axis=1))
        assert {chunks.stream_start(step) for step in steps} == {index * n}
    assert len({chunks.fingerprint, data.fingerprint, SequenceChunks(data, 6).fingerprint}) == 3


def test_sizes_that_do_not_fit_are_refused():
    for wrong in ({"lag": 0}, {"batch_size": 0}, {"length": 0}, {"vocab_size": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            LaggedEcho(**({"batch_size": 2, "length": 3, "lag": 1} | wrong))
    for cut in (0, 5, 24, -3):
        with pytest.raises(ValueError, match=f"cut={cut} must divide the length 12"):
            SequenceChunks(RandomCrops(np.arange(100), 2, 12), cut)
