"""Attention, forward and backward, against ``jax.nn.dot_product_attention`` and torch's flash kernel.

    python benchmarks/attention.py                # all cases, under 5 minutes on 2 CPU cores
    python benchmarks/attention.py --case masks   # some of them; their rows replace those of the results file
    python benchmarks/attention.py --quick        # seconds, small sizes, writes nothing

Batch 1, 8 heads of 64, float32 (bfloat16 too where there is a CUDA device). Cases:

- ``2048``, ``4096``, ``8192``: causal attention of that length against peers.
- ``masks``: window, packed documents and prefix at T = 8192 against causal attention over the whole, with what is
  left to do: the fraction of visible (query, key) pairs and of live tiles of 512, causal attention being 1.
- ``options``: dropout of weights, learned biases and forward mode at T = 1024: tiles against the equation, which stores
  all weights. Both drop the same weights.
- ``vmap``: a batch of 4 and ``jax.vmap`` of the unbatched call.
- ``decode``: one step of the ``Attention`` core with a cache of 1024 (donated) against the prefix all over again.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import (
    RESULTS,
    Candidate,
    Prepared,
    Row,
    compiled,
    deviation,
    device_name,
    matmul_ceiling,
    measure,
    parse_arguments,
    plain,
    report,
    unavailable,
)

from jaxseq.cores import Attention
from jaxseq.ops import attention, attention_weights
from jaxseq.ops.attention.masks import Mask, causal, prefix, segments, sliding_window
from jaxseq.ops.attention.positions import relative_bias

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


def inputs(length: int, dtype: Any = np.float32, batch: int = 1) -> list[tuple[np.ndarray, ...]]:
    """Two sets of query, key, value and cotangent."""
    shape = (batch, length, HEADS, HEAD_SIZE)
    sets = (np.random.default_rng(seed) for seed in (0, 1))
    return [tuple(rng.normal(size=shape).astype(dtype) for _ in range(4)) for rng in sets]


def against_peers(length: int, repeats: int) -> list[Row]:
    """Causal attention: ours, JAX's own, torch's."""
    mask, rows = causal(), []
    for dtype in ["float32"] + (["bfloat16"] if jax.default_backend() == "gpu" else []):
        peers = [compiled("jax.nn", with_gradients(partial(jax.nn.dot_product_attention, is_causal=True)))]
        peers += [torch_flash()] if dtype == "float32" and jax.default_backend() == "cpu" else []
        rows += measure(
            {"case": str(length), "T": length, "dtype": dtype},
            [compiled("jaxseq", with_gradients(partial(attention, mask=mask))), *peers],
            inputs(length, jnp.dtype(dtype)),
            reference=partial(reference, mask=mask),
            tolerance=1e-3 if dtype == "float32" else 3e-2,
            warmup=1 if length < 8192 else 0,
            repeats=repeats,
            budget_s=60 if length < 8192 else None,
        )
    for row in rows:
        if "median_s" in row:  # 7 products of a head's visible pairs: 2 forward, 5 backward
            flops = 7 * 2 * HEAD_SIZE * HEADS * length * (length + 1) / 2
            row["of_matmul_rate"] = flops / row["median_s"] / matmul_ceiling(row["dtype"])
    return rows


def against_own_causal(length: int, repeats: int) -> list[Row]:
    """Compares masks that exclude pairs with causal attention over the whole sequence.

    The candidates differ in what they compute, so each is checked by the tests instead of here.
    """
    ids = np.arange(length, dtype=np.int32)[None] // (length // 4) + 1
    masks: dict[str, Callable[[Any], Mask]] = {
        "causal": lambda ids: causal(),
        "window 256": lambda ids: sliding_window(256),
        "4 packed documents": lambda ids: causal() & segments(ids, ids),
        "prefix 1024": lambda ids: causal() | prefix(1024),
    }

    def masked(make: Callable[[Any], Mask]) -> Callable[..., Any]:
        def both(query: Any, key: Any, value: Any, cotangent: Any, ids: Any) -> tuple[Any, ...]:
            return with_gradients(partial(attention, mask=make(ids)))(query, key, value, cotangent)

        return both

    rows = measure(
        {"case": "masks", "T": length, "dtype": "float32"},
        [compiled(name, masked(make)) for name, make in masks.items()],
        [(*arrays, ids) for arrays in inputs(length)],
        reference=None,
        repeats=repeats,
        budget_s=40,
    )
    for row in rows:
        mask = masks[row["name"]](jnp.asarray(ids))
        for name, count in (("visible_pairs", _pairs), ("live_tiles", _live)):
            row[name] = count(mask, length) / count(causal(), length)
        if "median_s" in row and "median_s" in rows[0]:
            row["of_causal_time"] = row["median_s"] / rows[0]["median_s"]
    return rows


def with_options(length: int, repeats: int) -> list[Row]:
    """Options of causal attention, with the gradient of the bias, by tiles and by the equation."""
    rng = np.random.default_rng(2)
    bias = rng.normal(size=(HEADS, length, length)).astype(np.float32)
    table = rng.normal(size=(HEADS, 32)).astype(np.float32)
    options: dict[str, tuple[np.ndarray, Callable[[Any], dict[str, Any]]]] = {
        "none": (np.zeros(1, np.float32), lambda _: {}),
        "forward mode": (np.zeros(1, np.float32), lambda _: {}),
        "dropout": (np.zeros(1, np.float32), lambda _: {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}),
        "learned bias": (bias, lambda bias: {"bias": bias}),
        "relative_bias": (table, lambda table: {"bias": relative_bias(table, bidirectional=False)}),
    }

    def candidate(option: str, implementation: Any) -> Callable[..., Any]:
        def both(query: Any, key: Any, value: Any, cotangent: Any, weights: Any) -> tuple[Any, ...]:
            def run(query: Any, key: Any, value: Any, weights: Any) -> Any:
                more = options[option][1](weights)
                return attention(query, key, value, mask=causal(), implementation=implementation, **more)

            arrays = (query, key, value, weights)
            if option == "forward mode":
                return jax.jvp(run, arrays, (cotangent, query, key, weights))
            out, pullback = jax.vjp(run, *arrays)
            return out, *pullback(cotangent)

        return both

    rows = []
    for option, (weights, _) in options.items():
        rows += measure(
            {"case": "options", "T": length, "option": option, "dtype": "float32"},
            [compiled("tiles", candidate(option, "tiles")), compiled("equation", candidate(option, "reference"))],
            [(*arrays, weights) for arrays in inputs(length)],
            reference=candidate(option, "reference"),
            repeats=repeats,
            budget_s=15,
        )
    return rows


def _pairs(mask: Mask, length: int) -> int:
    return int(jax.jit(lambda mask: mask.materialize(length, length).sum())(mask))


def _live(mask: Mask, length: int) -> int:
    return int(np.asarray(mask.tiles(length, length, 512, 512).live).sum())


def under_vmap(length: int, repeats: int) -> list[Row]:
    """A batch, and ``vmap`` of the unbatched call, under one mask."""
    mask = causal()
    both = with_gradients(partial(attention, mask=mask))
    return measure(
        {"case": "vmap", "T": length, "B": 4, "dtype": "float32"},
        [compiled("batched", both), compiled("vmap", jax.vmap(both))],
        inputs(length, batch=4),
        reference=partial(reference, mask=mask),
        repeats=repeats,
        budget_s=20,
    )


def decoding(batch: int, features: int, context: int, repeats: int) -> list[Row]:
    """The last of ``context`` outputs: by one step with a cache of the others, and by the whole prefix."""
    core = Attention(features=features)
    apply: Any = core.apply
    rng = np.random.default_rng(0)
    sets = [(rng.normal(size=(batch, context, features)).astype(np.float32),) for _ in range(2)]
    parameters = core.init(jax.random.key(0), core.initial_carry((batch,)), sets[0][0][:, :1])

    def whole(xs: Any) -> Any:
        return apply(parameters, core.initial_carry((batch,)), xs)[1][:, -1]

    def prepare(inputs: Any) -> Prepared:
        before = [jax.device_put(xs[:, :-1]) for (xs,) in inputs]
        last = [jax.device_put(xs[:, -1:]) for (xs,) in inputs]
        empty = core.initial_carry((batch,), context=context - 1)
        carries = [jax.jit(apply)(parameters, empty, xs)[0] for xs in before]
        start = time.perf_counter()
        step = jax.jit(apply, donate_argnums=1).lower(parameters, carries[0], last[0]).compile()
        seconds = time.perf_counter() - start

        def check() -> float:
            carry = jax.tree.map(jnp.copy, carries[0])
            return deviation(step(parameters, carry, last[0])[1][:, 0], [np.asarray(whole(inputs[0][0]), np.float64)])

        def run(i: int) -> None:
            carries[i], out = step(parameters, carries[i], last[i])
            out.block_until_ready()

        memory = getattr(step.memory_analysis(), "temp_size_in_bytes", None)
        return Prepared(run, {"compile_s": seconds, "temp_bytes": memory}, check)

    return measure(
        {"case": "decode", "B": batch, "features": features, "cache": context},
        [Candidate("one step", prepare), compiled("whole prefix", whole)],
        sets,
        reference=None,
        repeats=repeats,
        budget_s=8,
    )


def _write(rows: list[Row]) -> None:
    """The results file with these rows in place of those of the same cases."""
    path = RESULTS / f"attention-{device_name()}.jsonl"
    path.parent.mkdir(exist_ok=True)
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    ran = {row["case"] for row in rows}
    rows = [row for row in old if row.get("case", "") in {*CASES} - ran] + rows
    rows.sort(key=lambda row: list(CASES).index(row["case"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"\nwritten: {path.relative_to(RESULTS.parent.parent)}")


CASES: dict[str, Callable[[], list[Row]]] = {
    "2048": lambda: against_peers(2048, 9),
    "4096": lambda: against_peers(4096, 7),
    "8192": lambda: against_peers(8192, 2),
    "masks": lambda: against_own_causal(8192, 7),
    "options": lambda: with_options(1024, 9),
    "vmap": lambda: under_vmap(2048, 9),
    "decode": lambda: [row for b in (1, 8) for f in (256, 512) for row in decoding(b, f, 1024, 15)],
}
QUICK: tuple[Callable[[], list[Row]], ...] = (
    lambda: against_peers(512, 3),
    lambda: against_own_causal(1024, 3),
    lambda: with_options(128, 3),
    lambda: under_vmap(256, 3),
    lambda: decoding(1, 64, 128, 3),
)


def main() -> None:
    """Run the cases; the JSON lines go to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), help="only these cases")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats, nothing written")
    options = parse_arguments(parser)
    if options.quick:
        rows = [row for case in QUICK for row in case()]
    else:
        rows = [row for name in options.case or CASES for row in CASES[name]()]
    _report(rows)
    if not options.quick:
        _write(rows)


def _report(rows: list[Row]) -> None:
    """The table of times, then what follows from them."""
    extra = ("of_matmul_rate", "of_causal_time", "visible_pairs", "live_tiles")
    plain_rows = [{name: value for name, value in row.items() if name not in extra} for row in rows]
    report("attention", plain_rows, baseline="jaxseq", write=False)
    print()
    for row in rows:
        facts = [f"{name} {row[name]:.3f}" for name in extra if name in row]
        if facts:
            print(f"  T={row['T']} {row['dtype']} {row['name']:24}{'  '.join(facts)}")


if __name__ == "__main__":
    main()
