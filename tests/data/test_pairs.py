"""Pairs in batches: each once an epoch, padded to few shapes, a pure function of the step."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import BucketedPairs, BucketedSources
from jaxseq.data.pairs import cut_by_length

IDS = st.lists(st.integers(1, 9), max_size=7)
PAIRS = st.lists(st.tuples(IDS.filter(len), IDS), min_size=1, max_size=25)


def some_pairs(count: int = 300, longest: int = 40, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, longest + 1, count).tolist()
    return [(random.integers(1, 9, size).tolist(), random.integers(1, 9, size + size % 3).tolist()) for size in sizes]


def pairs_in(batch, separator: int, end: list[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The pairs of a batch, read back; checks padding, shift and marks of each row."""
    assert all(part.dtype == np.int32 for part in batch)
    assert batch.source_tokens.shape == batch.source_segment_ids.shape
    assert batch.tokens.shape == batch.targets.shape == batch.segment_ids.shape
    found = []
    for source, source_segment_ids, tokens, targets, ids in zip(*batch, strict=True):
        for part, marks in [(source, source_segment_ids), (tokens, ids), (targets, ids)]:
            assert np.array_equal(marks, np.sort(marks)[::-1]) and set(marks.tolist()) <= {0, 1}
            assert not part[marks == 0].any()
        size = int(ids.sum())
        assert (size > 0) == (source_segment_ids.sum() > 0)
        if size:
            assert tokens[0] == separator and targets[size - 1] == separator
            assert np.array_equal(tokens[1:size], targets[: size - 1])
            text = source[source_segment_ids == 1].tolist()
            assert text[len(text) - len(end) :] == end
            found.append((tuple(text[: len(text) - len(end)]), tuple(targets[: size - 1].tolist())))
    return found


@given(PAIRS, st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.sampled_from([None, 0, 77]))
@settings(deadline=None, max_examples=60)
def test_an_epoch_takes_every_pair_exactly_once_in_few_shapes(pairs, batch_size, buckets, epoch, source_end):
    batch_size = min(batch_size, len(pairs))
    data = BucketedPairs(pairs, batch_size, separator=0, source_end=source_end, num_buckets=buckets, seed=3)
    steps = range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch)
    batches = [data(step) for step in steps]
    end = [] if source_end is None else [source_end]
    found = [pair for batch in batches for pair in pairs_in(batch, 0, end)]
    assert sorted(found) == sorted((tuple(source), tuple(target)) for source, target in pairs)
    shapes = {(batch.source_tokens.shape, batch.tokens.shape) for batch in batches}
    assert shapes == {((batch_size, S), (batch_size, T)) for S, T in data.shapes}
    assert len(data.shapes) <= buckets
    real = sum(int(batch.source_segment_ids.sum() + batch.segment_ids.sum()) for batch in batches)
    assert data.fill_ratio == pytest.approx(
        real / sum(batch.source_tokens.size + batch.tokens.size for batch in batches)
    )


def test_the_separator_and_the_sources_end_may_be_any_id():
    data = BucketedPairs(some_pairs(), 8, separator=9, source_end=10)
    found = [pair for step in range(data.steps_per_epoch) for pair in pairs_in(data(step), 9, [10])]
    assert sorted(found) == sorted((tuple(a), tuple(b)) for a, b in some_pairs())


def test_bucketed_pairs_are_a_pure_function_of_the_step():
    data, other = (BucketedPairs(some_pairs(60), 8, separator=0, num_buckets=3, seed=5) for _ in range(2))
    straight = [data(step) for step in range(4 * data.steps_per_epoch)]
    for step in np.random.default_rng(0).permutation(len(straight)):
        for a, b in zip(straight[step], other(int(step)), strict=True):
            assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="must not be negative, not -1"):
        data(-1)


def test_epochs_differ_and_mix_the_buckets():
    data = BucketedPairs(some_pairs(), 8, separator=0, num_buckets=3)
    orders = [data.order(epoch) for epoch in range(3)]
    for one, other in itertools.pairwise(orders):
        assert [bucket for bucket, _ in one] != [bucket for bucket, _ in other]
        assert not all(np.array_equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))
    switches = sum(a != b for (a, _), (b, _) in itertools.pairwise(orders[0]))
    assert switches > len(data.shapes)


def test_more_buckets_never_pad_more():
    pairs = some_pairs(500)
    filled = [BucketedPairs(pairs, 16, separator=0, num_buckets=buckets).fill_ratio for buckets in (1, 2, 4, 8, 16)]
    assert filled == sorted(filled)
    assert filled[0] < 0.6 and filled[1] > filled[0] + 0.1 and filled[3] > 0.8


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=100)
def test_the_cut_is_the_cheapest_of_all(lengths, batch_size, buckets):
    array = np.array(lengths)

    def cost(groups) -> int:
        return sum(-(-len(g) // batch_size) * batch_size * int(array[g].max(axis=0).sum()) for g in groups)

    found = cut_by_length(array, batch_size=batch_size, num_buckets=buckets)
    order = np.concatenate(found)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert np.all(np.diff(array[order].sum(axis=1)) >= 0)
    assert 1 <= len(found) <= buckets and all(map(len, found))
    ways = [
        np.split(order, cuts)
        for count in range(min(buckets, len(lengths)))
        for cuts in itertools.combinations(range(1, len(lengths)), count)
    ]
    assert cost(found) == min(map(cost, ways))
    assert len(found) == min(len(way) for way in ways if cost(way) == cost(found))


def test_pairs_of_one_length_are_one_bucket():
    data = BucketedPairs([([1, 2], [3])] * 50, 8, separator=0, num_buckets=4)
    assert data.shapes == ((2, 2),)
    assert data.steps_per_epoch == 7


def test_a_fingerprint_of_pairs_changes_with_anything():
    pairs = [([1, 2], [3]), ([4], [5, 6])]
    made = [
        BucketedPairs(items, batch, separator=separator, source_end=end, num_buckets=buckets, seed=seed).fingerprint
        for items, batch, separator, end, buckets, seed in [
            (pairs, 1, 0, None, 2, 0),
            (pairs[::-1], 1, 0, None, 2, 0),
            ([([1, 2], [3]), ([4], [5, 7])], 1, 0, None, 2, 0),
            ([([1], [2, 3]), ([4], [5, 6])], 1, 0, None, 2, 0),
            (pairs, 2, 0, None, 2, 0),
            (pairs, 1, 9, None, 2, 0),
            (pairs, 1, 0, 9, 2, 0),
            (pairs, 1, 0, None, 1, 0),
            (pairs, 1, 0, None, 2, 1),
        ]
    ]
    assert len(set(made)) == len(made)


def test_pairs_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="larger than the data: 3 pairs, but there are only 2"):
        BucketedPairs([([1], [2])] * 2, 3, separator=0)
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=rf"at least 1, not {sizes[0]} and {sizes[1]}"):
            BucketedPairs([([1], [2])], sizes[0], separator=0, num_buckets=sizes[1])
        with pytest.raises(ValueError, match=rf"at least 1, not {sizes[0]} and {sizes[1]}"):
            BucketedSources([[1]], sizes[0], num_buckets=sizes[1])
    with pytest.raises(ValueError, match="the target of pair 1 contains the separator 7"):
        BucketedPairs([([7], [2]), ([1], [2, 7, 3])], 1, separator=7)
    with pytest.raises(ValueError, match="source 1 is empty"):
        BucketedPairs([([1], [2]), ([], [3])], 1, separator=0)
    with pytest.raises(ValueError, match="source 2 is empty"):
        BucketedSources([[1], [2], []], 1)
    with pytest.raises(ValueError, match="no sources"):
        BucketedSources([], 1)


@given(st.lists(IDS.filter(len), min_size=1, max_size=20), st.integers(1, 6), st.integers(1, 3), st.booleans())
@settings(deadline=None, max_examples=80)
def test_evaluation_yields_every_source_exactly_once_and_says_which(sources, batch_size, buckets, ends):
    data = BucketedSources(sources, batch_size, num_buckets=buckets, source_end=77 if ends else None)
    batches = list(data)
    assert len(batches) == len(data)
    answered = {}
    for batch in batches:
        assert batch.source_tokens.dtype == batch.source_segment_ids.dtype == batch.indices.dtype == np.int32
        assert batch.source_tokens.shape == batch.source_segment_ids.shape and len(batch.source_tokens) == batch_size
        assert (
            not batch.source_segment_ids[len(batch.indices) :].any()
            and not batch.source_tokens[batch.source_segment_ids == 0].any()
        )
        for index, source, ids in zip(
            batch.indices.tolist(), batch.source_tokens, batch.source_segment_ids, strict=False
        ):
            assert index not in answered
            answered[index] = source[ids == 1].tolist()
    assert [answered[index] for index in range(len(sources))] == [text + [77] * ends for text in sources]
    assert {batch.source_tokens.shape[1] for batch in batches} == set(data.shapes) and len(data.shapes) <= buckets
    again = list(data)
    assert all(np.array_equal(a.source_tokens, b.source_tokens) for a, b in zip(batches, again, strict=True))


@given(PAIRS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_the_first_step_of_each_shape_is_told(pairs, batch_size, num_buckets, start):
    data = BucketedPairs(pairs, min(batch_size, len(pairs)), separator=0, num_buckets=num_buckets)

    def shape(step):
        return data(step).source_tokens.shape[1], data(step).tokens.shape[1]

    told = data.shape_steps(start)
    assert sorted(map(shape, told)) == sorted(data.shapes)
    for step in told:
        earlier = {shape(other) for other in range(start, step) if other not in told}
        assert shape(step) not in earlier or len(set(data.shapes)) < len(data.shapes)
