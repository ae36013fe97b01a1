import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.analysis import alignment_accuracy


def attention(target, source, seed=0):
    """Random weights whose rows sum to one."""
    values = np.exp(3 * np.random.default_rng(seed).normal(size=(target, source)))
    return values / values.sum(-1, keepdims=True)


def test_accuracy_is_the_share_of_expected_positions_found():
    sizes = np.random.default_rng(1).integers(1, 9, (20, 2))
    tables = [attention(*size, seed=i) for i, size in enumerate(sizes.tolist())]
    wanted = [np.random.default_rng(i).integers(-1, size[1], size[0]) for i, size in enumerate(sizes)]
    found = []
    for table, positions in zip(tables, wanted, strict=True):
        for row, position in zip(table, positions, strict=True):
            if position >= 0:
                found.append(all(row[position] >= value for value in row))
    assert alignment_accuracy(tables, wanted) == np.mean(found)


def test_one_alignment_a_stacked_batch_and_a_list_are_scored_alike():
    tables, wanted = np.stack([attention(5, 4, seed) for seed in range(3)]), np.arange(15).reshape(3, 5) % 5 - 1
    stacked = alignment_accuracy(jnp.asarray(tables), jnp.asarray(wanted))
    assert stacked == alignment_accuracy(list(tables), list(wanted))
    assert alignment_accuracy(tables[0], wanted[0]) == alignment_accuracy(tables[:1], wanted[:1])
    assert alignment_accuracy(jnp.eye(4, dtype=jnp.bfloat16), jnp.arange(4)) == 1


def test_ignored_positions_may_be_nan_or_the_whole_alignment():
    tables, wanted = [attention(4, 5), attention(3, 2)], [np.array([1, -1, 4, -1]), np.array([-1, 0, 1])]
    clean = alignment_accuracy(tables, wanted)
    dirty = [np.where(positions[:, None] < 0, np.nan, table) for table, positions in zip(tables, wanted, strict=True)]
    assert alignment_accuracy(dirty, wanted) == clean
    empty = [(np.zeros((0, 3)), np.zeros(0, np.int32)), (np.zeros((2, 0)), np.array([-1, -1]))]
    more = [*tables, *(table for table, _ in empty)], [*wanted, *(positions for _, positions in empty)]
    assert alignment_accuracy(*more) == clean


def test_alignments_that_cannot_be_scored_are_named():
    table = attention(2, 3)
    with pytest.raises(ValueError, match="position 3 is not in a source of 3"):
        alignment_accuracy(table, np.array([0, 3]))
    with pytest.raises(ValueError, match="position -2 is not"):
        alignment_accuracy(table, np.array([0, -2]))
    with pytest.raises(ValueError, match=r"are \(3,\), weights \(2, 3\)"):
        alignment_accuracy(table, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="no target position"):
        alignment_accuracy(table, np.array([-1, -1]))
    with pytest.raises(ValueError, match="2 alignments, but expected positions of 1"):
        alignment_accuracy([table, table], [np.array([0, 1])])
    with pytest.raises(ValueError, match="a weight is nan"):
        alignment_accuracy(table * np.nan, np.array([0, 1]))
