"""The layer types of "Attention is all you need": programs that cost what formulas say, and paths of that length."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq import ops
from jaxseq.analysis import path_length, program_flops, sequential_depth
from jaxseq.ops import masks
from jaxseq.pipelines.layer_kinds import layer_kinds, windowed_attention

KINDS = {kind.name: kind for kind in layer_kinds(kernel=3, window=8)}
SLOW = {"recurrence (LSTM)", "attention, stored scores", "linear recurrence, tree"}
CASES = [pytest.param(name, marks=pytest.mark.full) if name in SLOW else name for name in KINDS]


@pytest.mark.parametrize("name", CASES)
def test_flops_equal_the_formulas(name):
    kind = KINDS[name]
    for batch, n, d in ((1, 16, 6), (3, 24, 128)):
        mixing, layer = kind.counted(batch, n, d), kind.layer(batch, n, d)
        by_hand = kind.flops(n, d)
        assert program_flops(mixing.function, *mixing.args, elementwise=kind.elementwise) == batch * by_hand[0]
        assert program_flops(layer.function, *layer.args) == batch * by_hand[1]


@pytest.mark.parametrize("name", CASES)
def test_paths_equal_the_formulas(name):
    kind = KINDS[name]
    layers, values = kind.signal(24, 3, 0)
    assert path_length(itertools.islice(layers, 48), values, key=jax.random.key(0)) == kind.path(24)


def test_sequential_operations_are_those_of_the_table():
    depth = {}
    for name, n in itertools.product(sorted(set(KINDS) - SLOW), (16, 32)):
        function, args = KINDS[name].counted(1, n, 4)
        depth[name, n] = [sequential_depth(function, *args, counted=c) for c in ("products", "arithmetic")]
        if KINDS[name].claims.depth == "1":
            assert depth[name, n] == depth[name, 16]
    assert depth["recurrence (Elman)", 32][0] == 32 and depth["linear recurrence, loop", 32] == [0, 2 * 32]
    assert depth["attention", 32][0] == 2 and depth["convolution", 32][0] == 1


def test_windowed_attention_is_attention_under_a_sliding_window():
    arrays = np.random.default_rng(0).normal(size=(3, 2, 24, 2, 4)).astype(np.float32)
    query, key, value = map(jnp.asarray, arrays)
    reference = partial(ops.attention, mask=masks.sliding_window(8), implementation="reference")
    found = jitted(partial(windowed_attention, window=8))(query, key, value)
    np.testing.assert_allclose(found, jitted(reference)(query, key, value), atol=1e-6)
    with pytest.raises(ValueError, match="length=24 is not a multiple of window=7"):
        windowed_attention(query, key, value, window=7)


def test_path_formulas_are_those_of_the_table():
    assert [KINDS["dilated convolution"].path(3**p) for p in (1, 2, 5)] == [1, 2, 5]
    assert [KINDS["convolution"].path(n) for n in (3, 4, 5)] == [1, 2, 2]
    assert KINDS["restricted attention"].path(800) == math.ceil(799 / 7)
