"""Entries E9, E10, E12 and E18: dropout, layer normalization, embeddings and convolutions of one pixel."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import ops
from jaxseq.layers import Embedding, LayerNorm, Sublayer


def dropout_place() -> dict[str, float]:
    """E9: dropout comes before the sum and the norm; after the norm it takes away half of the normalized features."""
    types: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    key, dropout_key = jax.random.split(jax.random.key(0))

    @jax.jit
    def outputs(xs: jax.Array) -> Any:
        dropped = Sublayer("post", dropout=0.5, **types)
        before, _ = dropped.init_with_output({"params": key, "dropout": dropout_key}, jnp.sin, xs)
        normalized, _ = Sublayer("post", **types).init_with_output(key, jnp.sin, xs)
        dropout = nn.Dropout(0.5, deterministic=False)
        return before, dropout.apply({}, normalized, rngs={"dropout": dropout_key})

    before, after = map(np.asarray, outputs(jax.random.normal(jax.random.key(1), (200, 64), jnp.float64)))
    return {
        "e9_mean_square_before": float((before**2).mean()),
        "e9_zeros_before": float((before == 0).mean()),
        "e9_mean_square_after": float((after**2).mean()),
        "e9_zeros_after": float((after == 0).mean()),
    }


def layer_norm_axes() -> dict[str, float]:
    """E10: a token's norm does not depend on the other tokens."""
    xs = np.random.default_rng(3).normal(size=(7, 16))
    changed = np.concatenate([xs[:1], 5 * xs[1:]])

    @jax.jit
    def per_token(xs: jax.Array) -> Any:
        return LayerNorm(jnp.float64, jnp.float64).init_with_output(jax.random.key(4), xs)[0]

    def over_the_sequence(xs: np.ndarray) -> np.ndarray:
        return (xs - xs.mean()) / xs.std()

    def change(function: Callable[[np.ndarray], Any]) -> float:
        return float(np.abs(np.asarray(function(changed)[0]) - np.asarray(function(xs)[0])).max())

    return {
        "e10_change_per_token": change(per_token),
        "e10_change_over_the_sequence": change(over_the_sequence),
    }


def embedding_arguments(vocab_size: int = 50, features: int = 8, length: int = 7) -> dict[str, float]:
    """E12: a table has a row for each entry of the vocabulary, whatever the length of the text."""
    tokens = jnp.arange(vocab_size)
    embedding, by_length = Embedding(vocab_size, features), Embedding(length, features)
    params: Any = jax.jit(embedding.init)(jax.random.key(5), tokens[:length])
    short = jax.jit(by_length.init)(jax.random.key(6), tokens[:length])
    found = jax.jit(by_length.apply)(short, tokens)
    longer: Any = jax.eval_shape(embedding.apply, params, tokens)
    return {
        "e12_parameters": float(sum(leaf.size for leaf in jax.tree.leaves(params))),
        "e12_outputs_of_a_longer_text": float(longer.shape[0]),
        "e12_tokens_without_a_row_if_the_length_is_given": float(jnp.isnan(found).any(-1).sum()),
    }


def one_by_one_filters() -> dict[str, float]:
    """E18: a feature map 3 x 3 x 64 and 32 filters 1 x 1 of depth 64."""
    generator = np.random.default_rng(3)
    features = jnp.asarray(generator.normal(size=(3, 3, 64)))
    kernels = {size: jnp.asarray(generator.normal(size=(size, size, 64, 32))) for size in (1, 3)}
    mixed = jax.jit(ops.convolve_2d)(features, kernels[1])
    dense = np.asarray(features).reshape(9, 64) @ np.asarray(kernels[1])[0, 0]
    return {
        "e18_output_height_and_width": float(mixed.shape[0]),
        "e18_output_channels": float(mixed.shape[-1]),
        "e18_weights_of_one_filter": float(kernels[1][..., 0].size),
        "e18_weights_1x1": float(kernels[1].size),
        "e18_weights_3x3": float(kernels[3].size),
        "e18_weights_fully_connected": float(features.size * mixed.size),
        "e18_error_as_a_layer_of_each_pixel": float(np.abs(np.asarray(mixed).reshape(9, 32) - dense).max()),
    }
