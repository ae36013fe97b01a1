"""cuDNN's attention through ``jax.nn.dot_product_attention``, and the check that it can compute a call."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxseq.ops.attention.biases import Bias
from jaxseq.ops.attention.masks import And, Band, Mask, Prefix
from jaxseq.typing import Array


def attention_cudnn(query: Array, key: Array, value: Array, mask: Mask | None, scale: float) -> Array:
    """cuDNN's attention with a mask that ``why_not_cudnn`` accepts; no array is copied."""
    bands = [part for part in _conjuncts(mask) if isinstance(part, Band)]
    window = (bands[0].window - 1, 0) if bands and bands[0].window is not None else None
    run = partial(
        jax.nn.dot_product_attention,
        *(x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)),
        scale=scale,
        is_causal=bool(bands),
        local_window_size=window,
        implementation="cudnn",
    )
    prefixes = [part for part in _conjuncts(mask) if isinstance(part, Prefix)]
    if not prefixes:
        return run().reshape(query.shape)
    given = prefixes[0].size if prefixes[0].sizes is None else prefixes[0].sizes
    lengths = jnp.broadcast_to(jnp.asarray(given, jnp.int32), query.shape[:-3]).reshape(-1)
    # cuDNN gets no row without keys: such rows are set to zero afterwards, and so are their gradients.
    out = run(key_value_seq_lengths=jnp.clip(lengths, 1, key.shape[-3]))
    return jnp.where((lengths > 0)[:, None, None, None], out, jnp.zeros((), out.dtype)).reshape(query.shape)


def _conjuncts(mask: Mask | None) -> list[Mask]:
    """The masks that ``mask`` is the conjunction of."""
    if isinstance(mask, And):
        return _conjuncts(mask.left) + _conjuncts(mask.right)
    return [] if mask is None else [mask]


def why_not_cudnn(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask | None,
    bias: Bias | Array | None,
    soft_cap: float | None,
    dropout_rate: float,
) -> str | None:
    """None if cuDNN's attention can compute this call on the default device, else the reason."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda") or "rocm" in device.client.platform_version.lower():
        return f"the default device is no CUDA device but {device.platform}"
    if query.dtype not in (jnp.float16, jnp.bfloat16):
        return f"it takes float16 and bfloat16, not {query.dtype}"
    if bias is not None:
        return "it has no bias here"
    if dropout_rate:
        return f"it has no dropout of weights here, and the rate is {dropout_rate}"
    if soft_cap is not None:
        return f"it has no soft cap of the scores, here {soft_cap}"
    limit = 256 if float(device.compute_capability) >= 9 else 128
    if query.shape[-1] != value.shape[-1] or query.shape[-1] % 8 or query.shape[-1] > limit:
        return f"it needs one head size, a multiple of 8 up to {limit}, not {query.shape[-1]} and {value.shape[-1]}"
    return _why_not_mask(mask, query.shape[-3], key.shape[-3])


def _why_not_mask(mask: Mask | None, num_queries: int, num_keys: int) -> str | None:
    parts = _conjuncts(mask)
    bands = [part for part in parts if isinstance(part, Band)]
    prefixes = [part for part in parts if isinstance(part, Prefix)]
    if len(bands) + len(prefixes) < len(parts) or max(len(bands), len(prefixes)) > 1:
        return "of the masks it has causal, sliding_window and prefix only, one of each, joined by &"
    if any(jax.tree.leaves(band) or band.offset for band in bands):
        return "its causal mask goes by index, without offset or positions"
    if bands and prefixes and bands[0].window is not None:
        return "it has no sliding window with a prefix"
    if bands and num_queries != num_keys:
        return f"its causal mask needs as many queries as keys here, not {num_queries} and {num_keys}"
    return None
