"""Memory tasks: targets follow from the inputs by the definition, baselines are those of predictions on samples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import Addition, CopyMemory, Dataset, TemporalOrder


@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_target_of_addition_is_the_sum_of_the_marked_values(length, batch_size, step):
    inputs, targets, counts = Addition(length, batch_size, seed=1)(step)
    assert inputs.shape == (batch_size, length, 2) and (inputs[..., 0] >= 0).all() and (inputs[..., 0] < 1).all()
    for row, target, counted in zip(inputs, targets, counts, strict=True):
        marked = [t for t in range(length) if row[t, 1] == 1]
        assert len(marked) == 2 and marked[0] < length // 2 <= marked[1]
        assert (np.delete(row[:, 1], marked) == 0).all()
        assert target[-1] == np.float32(row[marked[0], 0] + row[marked[1], 0])
        assert not target[:-1].any() and counted.tolist() == [False] * (length - 1) + [True]


@given(st.integers(1, 30), st.integers(1, 5), st.integers(2, 9), st.integers(1, 12), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_copy_asks_for_the_first_symbols_after_the_cue(blank, batch_size, symbols, recalled, step):
    data = CopyMemory(blank, batch_size, seed=2, num_symbols=symbols, num_recalled=recalled)
    inputs, targets, counts = data(step)
    assert inputs.shape == (batch_size, blank + 2 * recalled, symbols + 2) and (inputs.sum(-1) == 1).all()
    assert counts.all() and targets.shape == counts.shape
    for tokens, target in zip(inputs.argmax(-1).tolist(), targets.tolist(), strict=True):
        first = tokens[:recalled]
        assert all(token < symbols for token in first)
        assert tokens[recalled:] == [symbols] * (blank - 1) + [symbols + 1] + [symbols] * recalled
        assert target == [symbols] * (blank + recalled) + first


@given(st.integers(10, 60), st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_class_of_temporal_order_is_that_of_the_two_symbols(length, batch_size, step):
    inputs, targets, counts = TemporalOrder(length, batch_size, seed=3)(step)
    assert inputs.shape == (batch_size, length, 6) and (inputs.sum(-1) == 1).all()
    assert (counts == (np.arange(length) == length - 1)).all() and not targets[:, :-1].any()
    for tokens, target in zip(inputs.argmax(-1).tolist(), targets[:, -1].tolist(), strict=True):
        places = [t for t, token in enumerate(tokens) if token < 2]
        assert len(places) == 2
        assert length // 10 <= places[0] <= 2 * length // 10 and 4 * length // 10 <= places[1] <= length // 2
        assert target == ["AA", "AB", "BA", "BB"].index("".join("AB"[tokens[t]] for t in places))


def test_baselines_are_the_errors_of_predictions_without_memory():
    count = 20_000
    data = Addition(7, count)
    assert data.baseline == pytest.approx(np.mean((data(0).targets[:, -1] - 1) ** 2), rel=0.03)
    assert data.baseline == pytest.approx(0.167, abs=5e-4)
    copy = CopyMemory(25, 500)
    symbols = copy(0).targets != 8  # probability 1 for blank where blank comes, 1/8 for each symbol afterwards
    assert copy.baseline == pytest.approx(np.where(symbols, math.log(8), 0.0).mean())
    assert copy.baseline == pytest.approx(10 * math.log(8) / (25 + 20))
    assert np.allclose(np.bincount(copy(0).targets[:, -10:].ravel()) / 5000, 1 / 8, atol=0.02)
    order = TemporalOrder(20, count)
    shares = np.bincount(order(0).targets[:, -1], minlength=4) / count
    assert np.allclose(shares, 1 / 4, atol=0.015) and order.baseline == math.log(4)
    assert order.baseline == pytest.approx(-np.sum(shares * np.log(shares)), abs=1e-3)


@pytest.mark.parametrize("kind", [Addition, CopyMemory, TemporalOrder])
def test_a_batch_depends_on_seed_and_step_alone(kind):
    data, again, other = kind(20, 4, seed=5), kind(20, 4, seed=5), kind(20, 4, seed=6)
    assert isinstance(data, Dataset)
    for step in (7, 0, 7):
        assert all(np.array_equal(one, two) for one, two in zip(data(step), again(step), strict=True))
    assert data(0).inputs.shape[1:] == (data.length, data.width)
    assert not np.array_equal(data(0).inputs, data(1).inputs)
    assert not np.array_equal(data(0).inputs, other(0).inputs)
    prints = [data.fingerprint, other.fingerprint, kind(21, 4, seed=5).fingerprint, kind(20, 3, seed=5).fingerprint]
    assert again.fingerprint == prints[0] and len(set(prints)) == 4


def test_copies_of_other_alphabets_have_other_fingerprints():
    prints = [CopyMemory(9, 2, **options).fingerprint for options in ({}, {"num_symbols": 4}, {"num_recalled": 3})]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (Addition, {"length": 1, "batch_size": 2}, "length must be at least 2, not 1"),
        (Addition, {"length": 9, "batch_size": 0}, "batch_size must be at least 1, not 0"),
        (CopyMemory, {"blank": 0, "batch_size": 2}, "blank must be at least 1, not 0"),
        (CopyMemory, {"blank": 5, "batch_size": 2, "num_symbols": 1}, "num_symbols must be at least 2, not 1"),
        (CopyMemory, {"blank": 5, "batch_size": 2, "num_recalled": 0}, "num_recalled must be at least 1, not 0"),
        (TemporalOrder, {"length": 9, "batch_size": 2}, "length must be at least 10, not 9"),
        (TemporalOrder, {"length": 20, "batch_size": 2, "seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(kind, sizes, message):
    with pytest.raises(ValueError, match=message):
        kind(**sizes)
    with pytest.raises(ValueError, match="step must not be negative, not -1"):
        TemporalOrder(10, 1)(-1)
