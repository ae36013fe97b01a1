"""Entries E1, E7, E8, E11, E13, E15 and E16: softmax, positions, masks, heads and the cost of attention."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxseq import ops
from jaxseq.analysis import program_flops
from jaxseq.layers import MultiHeadAttention
from jaxseq.ops import masks, positions
from jaxseq.typing import Array, Bool, Float

POSITIONS = 6
TYPES: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def soft_argmax_errors(t: float, draws: int = 1000, size: int = 6) -> tuple[Float[np.ndarray, " N"], ...]:
    """Of normal vectors x: the norm of the gradient of ``soft_argmax``, and the error of ``t i s_i (1 - s_i)``."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(draws, size)))
    gradient = _soft_argmax_gradient(x, jnp.asarray(t))
    s = scipy.special.softmax(t * np.asarray(x), axis=-1)
    common = t * np.arange(size) * s * (1 - s)
    return np.linalg.norm(gradient, axis=-1), np.linalg.norm(common - gradient, axis=-1)


@jax.jit
def _soft_argmax_gradient(x: Array, t: Array) -> Array:
    return jax.vmap(jax.grad(ops.soft_argmax), (0, None))(x, t)


def soft_argmax_gradient() -> dict[str, float]:
    """E1: the derivative of softmax has terms off its diagonal, which the commonly written gradient leaves out."""
    norms, errors = soft_argmax_errors(1.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=6))

    def plain(x: Array) -> Array:
        return (jnp.arange(6.0) * jax.nn.softmax(x)).sum()

    full = jax.jit(jax.grad(ops.soft_argmax))(x, jnp.asarray(1.0)) - jax.jit(jax.grad(plain))(x)
    steps = np.random.default_rng(1).normal(size=(1000, 6))
    moved = np.asarray(x) + 1e-9 * steps
    return {
        "e1_gradient_norm": float(norms[0]),
        "e1_error_of_common_form": float(errors[0]),
        "e1_median_relative_error": float(np.median(errors / norms)),
        "e1_error_of_full_form": float(jnp.linalg.norm(full)),
        "e1_changes_of_argmax": float((moved.argmax(-1) != int(x.argmax())).sum()),
    }


def wavelength(base: float, features: int = 512) -> float:
    """The longest wavelength of a sinusoidal encoding, in positions, from the angle of its slowest sine at 1."""
    encoding = positions.sinusoid(jnp.array([1]), features, base=base)[0]
    return 2 * math.pi / math.asin(float(encoding[features // 2 - 1]))


def encoding_similarities(base: float, distances: np.ndarray, features: int = 512) -> Float[np.ndarray, " L"]:
    """The cosine of the angle between the encodings of position 0 and of the positions at these distances."""
    encodings = np.asarray(positions.sinusoid(jnp.asarray(np.concatenate([[0], distances])), features, base=base))
    return encodings[1:] @ encodings[0] / (features / 2)


def encoding_base() -> dict[str, float]:
    """E7: the base is 10000; with 1000 the slowest wave repeats ten times earlier."""
    near_1000 = np.arange(950, 1050)
    return {
        "e7_longest_wavelength_base_1000": wavelength(1000.0),
        "e7_longest_wavelength_base_10000": wavelength(10000.0),
        "e7_similarity_at_1000_base_1000": float(encoding_similarities(1000.0, near_1000).mean()),
        "e7_similarity_at_1000_base_10000": float(encoding_similarities(10000.0, near_1000).mean()),
    }


def encoder_gives_keys_and_values() -> dict[str, float]:
    """E8: with queries of the decoder, there is one output for each of its positions."""
    decoder_length, encoder_length = 3, 5
    query = jax.random.normal(jax.random.key(0), (decoder_length, 8), jnp.float64)
    encoded = jax.random.normal(jax.random.key(1), (encoder_length, 8), jnp.float64)
    attention = MultiHeadAttention(8, num_heads=2, **TYPES)

    def read(module: MultiHeadAttention, query: Array, encoded: Array) -> tuple[Array, Array]:
        return module.read(query, module.project(encoded))

    @jax.jit
    def run(query: Array, encoded: Array) -> Any:
        return attention.init_with_output(jax.random.key(2), query, encoded, method=read)[0]

    outputs, weights = run(query, encoded)
    swapped = jax.eval_shape(run, encoded, query)
    return {
        "e8_decoder_positions": float(decoder_length),
        "e8_outputs": float(outputs.shape[0]),
        "e8_keys_of_each_query": float(weights.shape[-1]),
        "e8_outputs_if_the_encoder_gave_queries": float(swapped[0].shape[0]),
    }


def common_mask(length: int = POSITIONS) -> Bool[np.ndarray, "T T"]:
    """The positions that remain visible after ``scores[t, t:-1] = -inf`` at each position t."""
    visible = np.ones((length, length), bool)
    for t in range(length):
        visible[t, t:-1] = False
    return visible


def mask_weights() -> tuple[Float[np.ndarray, "T T"], Float[np.ndarray, "T T"]]:
    """Attention weights of random queries and keys under the common mask and under the causal one."""

    @jax.jit
    def weights(key: Array) -> tuple[Array, ...]:
        q, k = jax.random.normal(key, (2, POSITIONS, 1, 8), jnp.float64)
        both = masks.dense(jnp.asarray(common_mask())), masks.causal()
        return tuple(ops.attention_weights(q, k, mask=mask)[0] for mask in both)

    common, causal = weights(jax.random.key(3))
    return np.asarray(common), np.asarray(causal)


def mask_columns() -> dict[str, float]:
    """E11: the columns from t + 1 on are hidden; ``t:-1`` hides the position itself and leaves the last one."""
    visible, causal = (
        common_mask(),
        np.asarray(masks.causal().materialize(POSITIONS, POSITIONS)).reshape(2 * (POSITIONS,)),
    )
    before_last = np.arange(POSITIONS - 1)
    common_weights, causal_weights = mask_weights()
    return {
        "e11_positions_that_see_the_last": float(visible[before_last, -1].sum()),
        "e11_positions_hidden_from_themselves": float((~visible.diagonal()).sum()),
        "e11_causal_positions_that_see_the_future": float(np.triu(causal, 1).any(-1).sum()),
        "e11_causal_positions_hidden_from_themselves": float((~causal.diagonal()).sum()),
        "e11_weight_on_the_future": float(np.triu(common_weights, 1).sum(-1)[:-1].mean()),
        "e11_causal_weight_on_the_future": float(np.triu(causal_weights, 1).sum()),
    }


def concatenated_outputs(heads: int = 4, features: int = 16) -> dict[str, float]:
    """E13: heads have their own softmax; their outputs are concatenated and projected by ``W_O``."""
    attention, size = MultiHeadAttention(features, num_heads=heads, **TYPES), features // heads

    def attend(module: MultiHeadAttention, x: Array) -> Array:
        return module(x, module.project(x))

    @jax.jit
    def errors(x: Array) -> tuple[Array, ...]:
        found, variables = attention.init_with_output(jax.random.key(5), x, method=attend)
        q, k, v = (x @ variables["params"][name]["kernel"] for name in ("query", "key", "value"))
        W_O = variables["params"]["out"]["kernel"]
        parts = [slice(n * size, (n + 1) * size) for n in range(heads)]
        outputs = [jax.nn.softmax(q[:, p] @ k[:, p].T / math.sqrt(size)) @ v[:, p] for p in parts]
        summed = jnp.stack([output @ W_O[p] for output, p in zip(outputs, parts, strict=True)]).sum(0)
        single = jax.nn.softmax(q @ k.T / math.sqrt(features)) @ v @ W_O
        others = summed, jnp.concatenate(outputs, -1), single
        return tuple(jnp.linalg.norm(other - found) / jnp.linalg.norm(found) for other in others)

    names = "sum_over_heads", "outputs_without_projection", "concatenated_matrices"
    found = errors(jax.random.normal(jax.random.key(4), (5, features), jnp.float64))
    return {f"e13_error_of_{name}": float(error) for name, error in zip(names, found, strict=True)}


def attention_flops(length: int, width: int) -> float:
    """FLOPs of ``softmax(q k^T) v`` over all positions, without projections."""
    rows = jax.ShapeDtypeStruct((length, 1, width), jnp.float32)
    return program_flops(lambda q, k, v: ops.attention(q, k, v, implementation="reference"), rows, rows, rows)


def projected_attention_flops(length: int, width: int) -> float:
    """FLOPs of multi-head attention with its four projections."""
    return attention_flops(length, width) + 4 * projection_flops(length, width)


def projection_flops(length: int, width: int) -> float:
    """FLOPs of one matrix product of every position, ``[n d] [d d]``."""
    shapes = jax.ShapeDtypeStruct((length, width), jnp.float32), jax.ShapeDtypeStruct((width, width), jnp.float32)
    return program_flops(jnp.matmul, *shapes)


def recurrence_flops(length: int, width: int) -> float:
    """FLOPs of ``h_t = tanh(x_t W + h_{t-1} R)`` over all positions, counted through the loop."""

    def run(xs: Array, W: Array, R: Array) -> Array:
        return jax.lax.scan(lambda h, x: (jnp.tanh(x @ W + h @ R),) * 2, jnp.zeros_like(xs[0]), xs)[1]

    square = jax.ShapeDtypeStruct((width, width), jnp.float32)
    return program_flops(run, jax.ShapeDtypeStruct((length, width), jnp.float32), square, square)


def convolution_flops(length: int, width: int, size: int = 3) -> float:
    """FLOPs of a convolution over time with a kernel of ``size`` positions and full matrices."""
    images = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    kernel = jax.ShapeDtypeStruct((1, size, width, width), jnp.float32)
    return program_flops(ops.convolve_2d, images, kernel)


def cost_of_attention(width: int = 64) -> dict[str, float]:
    """E15: attention costs O(n² d), a recurrence O(n d²), a convolution O(k n d²)."""
    recurrence = {n: recurrence_flops(n, width) for n in (width // 8, width, 8 * width)}
    return {
        "e15_ratio_at_n_equal_d_over_8": attention_flops(width // 8, width) / recurrence[width // 8],
        "e15_ratio_at_n_equal_d": attention_flops(width, width) / recurrence[width],
        "e15_ratio_at_n_equal_8_d": attention_flops(8 * width, width) / recurrence[8 * width],
        "e15_ratio_with_projections_at_n_equal_d": projected_attention_flops(width, width) / recurrence[width],
        "e15_convolution_ratio": convolution_flops(width, width) / recurrence[width],
    }


def softmax_and_variance() -> dict[str, float]:
    """E16: the derivative of softmax is a full matrix; zero covariance is not independence; rows of weights add up."""
    generator = np.random.default_rng(2)
    scores = jnp.asarray(generator.normal(size=6))
    jacobian = np.asarray(jax.jit(jax.jacfwd(jax.nn.softmax))(scores))
    off_diagonal = jacobian - np.diag(np.diagonal(jacobian))
    q, k = generator.normal(size=(2, 100_000, 16))
    dependent = generator.choice([-1.0, 1.0], size=(100_000, 1)) * q
    rows = generator.normal(size=(2, 4, 1, 16))
    weights = np.asarray(jax.jit(ops.attention_weights)(*rows))[0]
    return {
        "e16_off_diagonal_part": float(np.linalg.norm(off_diagonal) / np.linalg.norm(jacobian)),
        "e16_variance_independent": float((q * k).sum(-1).var()),
        "e16_variance_uncorrelated": float((q * dependent).sum(-1).var()),
        "e16_largest_covariance": float(np.abs(q.T @ dependent / len(q)).max()),
        "e16_error_of_row_sums": float(np.abs(weights.sum(1) - 1).max()),
        "e16_largest_column_sum": float(weights.sum(0).max()),
    }
