"""Weights of other libraries as parameters: layouts, and an account of every name."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxseq.weights import (
    Entry,
    WeightsError,
    convert_weights,
    convolution_kernel,
    dense_kernel,
    find_prefix,
    frozen_batch_norm,
)

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def tensors():
    chance = np.random.default_rng(0)
    made = {"conv.weight": chance.normal(size=(4, 3, 2, 5)), "fc.weight": chance.normal(size=(7, 4))}
    made |= {f"bn.{name}": chance.uniform(0.5, 2, 4) for name in STATISTICS} | {"fc.bias": chance.normal(size=7)}
    return {name: array.astype(np.float32) for name, array in made.items()} | {"bn.num_batches_tracked": np.array(3)}


ENTRIES = (
    Entry(("stem/conv/kernel",), ("conv.weight",), convolution_kernel),
    Entry(("stem/norm/scale", "stem/norm/bias"), tuple(f"bn.{name}" for name in STATISTICS), frozen_batch_norm(1e-3)),
    Entry(("head/kernel",), ("fc.weight",), dense_kernel),
    Entry(("head/bias",), ("fc.bias",)),
)
SHAPES = {
    "stem": {"conv": {"kernel": (2, 5, 3, 4)}, "norm": {"scale": (4,), "bias": (4,)}},
    "head": {"kernel": (4, 7), "bias": (7,)},
}
COUNTERS = r".*\.num_batches_tracked"


def fault(given, entries=ENTRIES, shapes=SHAPES, **options):
    with pytest.raises(WeightsError) as caught:
        convert_weights(given, entries, shapes, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_kernels_and_norms_compute_what_the_other_layout_does():
    given = tensors()
    made = convert_weights(given, ENTRIES, SHAPES, ignored=COUNTERS)
    image = np.random.default_rng(1).normal(size=(6, 7, 3)).astype(np.float32)
    kernel, weight = made["stem"]["conv"]["kernel"], given["conv.weight"]
    found = np.einsum("yxi,yxio->o", image[1:3, 2:7], kernel)
    assert np.allclose(found, [np.sum(image[1:3, 2:7].transpose(2, 0, 1) * weight[o]) for o in range(4)], atol=1e-5)
    normalized = (found - given["bn.running_mean"]) / np.sqrt(given["bn.running_var"] + 1e-3)
    norm, head = made["stem"]["norm"], made["head"]
    assert np.allclose(
        found * norm["scale"] + norm["bias"], normalized * given["bn.weight"] + given["bn.bias"], atol=1e-5
    )
    assert np.allclose(found @ head["kernel"] + head["bias"], given["fc.weight"] @ found + given["fc.bias"], atol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda array: array.dtype == np.float32 and array.flags.c_contiguous, made))


def test_statistics_are_folded_in_double_precision():
    chance = np.random.default_rng(2)
    weight, bias, mean, variance = chance.uniform(1, 2, (4, 1000)).astype(np.float32) * np.float32(
        [[1], [1e3], [1e3], [1]]
    )
    wide = [array.astype(np.float64) for array in (weight, bias, mean, variance)]
    scale, shift = frozen_batch_norm(1e-3)(weight, bias, mean, variance)
    factor = wide[0] / np.sqrt(wide[3] + 1e-3)
    assert np.array_equal(scale, factor.astype(np.float32))
    assert np.array_equal(shift, (wide[1] - wide[2] * factor).astype(np.float32))
    with pytest.raises(ValueError, match="not positive"):
        frozen_batch_norm(1e-3)(weight, bias, mean, -variance)


def test_parameters_take_the_dtypes_that_are_wanted():
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16), SHAPES, is_leaf=lambda x: type(x) is tuple
    )
    made = convert_weights(tensors(), ENTRIES, shapes, ignored=COUNTERS)
    assert jax.tree.structure(made) == jax.tree.structure(shapes)
    assert jax.tree.all(jax.tree.map(lambda array: array.dtype == ml_dtypes.bfloat16, made))
    shapes["head"]["bias"] = jax.ShapeDtypeStruct((7,), jnp.int32)
    assert "1 misshapen: head/bias (float32, not int32)" in fault(tensors(), shapes=shapes, ignored=COUNTERS)


def test_everything_that_does_not_fit_is_listed_in_one_error():
    given = tensors()
    del given["conv.weight"], given["bn.bias"]
    given |= {"extra.weight": np.zeros(2), "fc.weight": given["fc.weight"][:, 1:]}
    entries = (*ENTRIES, Entry(("tail/bias",), ("tail.bias",)), Entry(("head/bias",), ("fc.bias",)))
    shapes = SHAPES | {"other": {"bias": (2,)}}
    message = fault(given, entries, shapes)
    assert "3 missing: bn.bias, conv.weight, tail.bias" in message
    assert "2 superfluous: bn.num_batches_tracked, extra.weight" in message
    assert "1 misshapen: head/kernel ((3, 7), not (4, 7))" in message
    assert "1 parameters without an entry: other/bias" in message
    assert "1 entries without a parameter: tail/bias" in message
    assert "1 parameters with two entries: head/bias" in message


def test_arrays_that_cannot_be_converted_are_misshapen():
    given = tensors()
    given |= {"conv.weight": given["conv.weight"][0], "bn.running_mean": np.zeros(3, np.float32)}
    message = fault(given, ignored=COUNTERS)
    assert "3 misshapen: stem/conv/kernel (3 dimensions, not 4), stem/norm/scale (" in message


def test_long_lists_are_shortened_and_counted():
    given = tensors() | {f"layer{i}.weight": np.zeros(1) for i in range(300)}
    message = fault(given, ignored=COUNTERS)
    assert "300 superfluous: layer0.weight, layer1.weight" in message
    assert "layer7.weight and 292 more" in message
    assert len(message) < 300


def test_names_are_looked_up_below_a_prefix_and_ignored_by_their_whole_name():
    given = {f"module.{name}": array for name, array in tensors().items()} | {"optimizer.lr": np.array(0.1)}
    made = convert_weights(given, ENTRIES, SHAPES, prefix="module.", ignored=COUNTERS)
    plain = convert_weights(tensors(), ENTRIES, SHAPES, ignored=COUNTERS)
    assert jax.tree.all(jax.tree.map(np.array_equal, made, plain))
    assert "superfluous: bn.num_batches_tracked" in fault(tensors(), ignored="num_batches_tracked")
    assert re.search(r"7 missing: .*; 9 superfluous", fault(given, ignored=COUNTERS)) is None
    assert "7 missing" in fault(given)


def test_numbers_that_the_wanted_dtype_has_not_are_misshapen():
    def message(array, dtype):
        return fault({"a": np.array(array)}, [Entry(("p",), ("a",))], {"p": np.zeros(2, dtype)})

    large = np.array([1, 1e39])
    assert "p (numbers of float64 that float32 has not)" in message(large, np.float32)
    assert "p (numbers of float32 that float16 has not)" in message(np.array([1, 7e4], np.float32), np.float16)
    assert "p (numbers of int64 that int32 has not)" in message(np.array([1, 2**32]), np.int32)
    assert "p (complex64, not float32)" in message(np.array([1, 1j], np.complex64), np.float32)
    for kept in (np.array([np.inf, np.nan]), np.array([1, 0.1])):
        found = convert_weights({"a": kept}, [Entry(("p",), ("a",))], {"p": np.zeros(2, np.float32)})
        assert np.array_equal(found["p"], kept.astype(np.float32), equal_nan=True)


def test_a_prefix_with_which_all_tensors_are_there_is_named():
    given = {f"state_dict.module.{name}": array for name, array in tensors().items()}
    assert "prefix='state_dict.module.'" in fault(given)
    assert "prefix='state_dict.module.'" in fault(given, prefix="state_dict.")
    assert find_prefix(given, ENTRIES) == "state_dict.module." and find_prefix(tensors(), ENTRIES) == ""
    del given[min(given)]
    assert "prefix=" not in fault(given) and find_prefix(given, ENTRIES) is None
