"""Attention, forward and backward, against ``jax.nn.dot_product_attention`` and torch's flash kernel.

    python benchmarks/attention.py            # about 2 minutes on 2 CPU cores
    python benchmarks/attention.py --quick    # seconds, T = 512 only, writes nothing

Causal at T = 512, 2048, 4096, batch 1, 8 heads of 64, float32 (bfloat16 too where there is a CUDA device);
then a sliding window of 256 and four packed documents against causal attention over the whole at T = 4096.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Candidate, Row, compiled, measure, plain, report, unavailable

from jaxseq.ops.attention import attention, attention_weights
from jaxseq.ops.masks import Mask, causal, segments, sliding_window

HEADS, HEAD_SIZE = 8, 64


def with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """``(query, key, value, cotangent) -> (out, dq, dk, dv)``."""

    def both(query: Any, key: Any, value: Any, cotangent: Any) -> tuple[Any, ...]:
        out, pullback = jax.vjp(function, query, key, value)
        return out, *pullback(cotangent)

    return both


def reference(query: Any, key: Any, value: Any, cotangent: Any, *, mask: Mask) -> tuple[Any, ...]:
    """The equation and its gradients written down, one head after the other: T × T in float64 is large."""

    def head(inputs: Any) -> Any:
        q, k, v, do = (x[:, :, None] for x in inputs)
        p = attention_weights(q, k, mask=mask)[:, 0]
        q, k, v, do = (x[:, :, 0] for x in (q, k, v, do))
        dp = do @ v.mT
        out = p @ v
        ds = p * (dp - (out * do).sum(-1, keepdims=True)) / math.sqrt(q.shape[-1])
        return out, ds @ k, ds.mT @ q, p.mT @ do

    heads_first = [jnp.moveaxis(x, 2, 0) for x in (query, key, value, cotangent)]
    return tuple(jnp.moveaxis(x, 0, 2) for x in jax.lax.map(head, heads_first))


def torch_flash() -> Candidate:
    """torch's ``scaled_dot_product_attention`` and its gradients, causal."""
    try:
        import torch
    except ImportError:
        return unavailable("torch", "torch is not installed (extra: peers)")

    def convert(x: np.ndarray) -> Any:
        return torch.tensor(x).transpose(1, 2).contiguous().requires_grad_()

    def both(query: Any, key: Any, value: Any, cotangent: Any) -> list[np.ndarray]:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        grads = torch.autograd.grad(out, (query, key, value), cotangent)
        return [x.detach().transpose(1, 2).numpy() for x in (out, *grads)]

    return plain("torch", both, convert)


def inputs(length: int, dtype: Any = np.float32) -> list[tuple[np.ndarray, ...]]:
    """Two sets of query, key, value and cotangent."""
    shape = (1, length, HEADS, HEAD_SIZE)
    sets = (np.random.default_rng(seed) for seed in (0, 1))
    return [tuple(rng.normal(size=shape).astype(dtype) for _ in range(4)) for rng in sets]


def against_peers(length: int, dtype: str, repeats: int) -> list[Row]:
    """Causal attention: ours, JAX's own, torch's."""
    mask = causal()
    peers = [compiled("jax.nn", with_gradients(partial(jax.nn.dot_product_attention, is_causal=True)))]
    peers += [torch_flash()] if dtype == "float32" and jax.default_backend() == "cpu" else []
    return measure(
        {"T": length, "mask": "causal", "dtype": dtype},
        [compiled("jaxseq", with_gradients(partial(attention, mask=mask))), *peers],
        inputs(length, jnp.dtype(dtype)),
        reference=partial(reference, mask=mask),
        tolerance=1e-3 if dtype == "float32" else 3e-2,
        repeats=repeats,
    )


def against_own_causal(length: int, repeats: int) -> list[Row]:
    """What a mask that leaves tiles empty saves: window and packed documents against causal over the whole.

    The candidates differ in what they compute, so each is checked by the tests instead of here.
    """
    ids = np.arange(length, dtype=np.int32)[None] // (length // 4) + 1

    def packed(query: Any, key: Any, value: Any, cotangent: Any, ids: Any) -> tuple[Any, ...]:
        mask = causal() & segments(ids, ids)
        return with_gradients(partial(attention, mask=mask))(query, key, value, cotangent)

    def masked(mask: Mask) -> Callable[..., Any]:
        both = with_gradients(partial(attention, mask=mask))
        return lambda query, key, value, cotangent, ids: both(query, key, value, cotangent)

    return measure(
        {"T": length, "mask": "by name", "dtype": "float32"},
        [
            compiled("causal", masked(causal())),
            compiled("window 256", masked(sliding_window(256))),
            compiled("4 packed documents", packed),
        ],
        [(*arrays, ids) for arrays in inputs(length)],
        reference=None,
        repeats=repeats,
    )


def main() -> None:
    """Run the cases; the JSON lines go to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="T = 512 only, few repeats, nothing written")
    quick = parser.parse_args().quick
    lengths, repeats = ((512,), 3) if quick else ((512, 2048, 4096), 9)
    dtypes = ["float32"] + (["bfloat16"] if jax.default_backend() == "gpu" else [])
    rows = [row for dtype in dtypes for length in lengths for row in against_peers(length, dtype, repeats)]
    rows += against_own_causal(lengths[-1], repeats)
    report("attention", rows, baseline="jaxseq", write=not quick)


if __name__ == "__main__":
    main()
