"""Ops with their positions sharded over 4 host devices; prints what they differ by, exchange and run, as JSON.

``python sequence_on_four_devices.py quick`` runs a few cases, ``full`` all of them.
"""

import functools
import json
import math
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseq.ops import (
    attention,
    causal_convolution,
    cells,
    delta_rule,
    linear_attention,
    linear_recurrence,
    masks,
    mlstm,
    positions,
    recurrence_with_projection,
    used_implementations,
)
from jaxseq.ops.attention.ring import count_live_pairs
from jaxseq.ops.linear.reference import MLSTMState

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

B, T, N, H, F = 2, 16, 2, 3, 4


def mesh(data: int, sequence: int, tensor: int = 1) -> Any:
    axes = ("data", "fsdp", "sequence", "tensor")
    devices = jax.devices()[: data * sequence * tensor]
    return jax.make_mesh((data, 1, sequence, tensor), axes, axis_types=(AxisType.Auto,) * 4, devices=devices)


def ids() -> np.ndarray:
    """Documents that cross the ends of segments, padding at ends, an id used twice, a segment of padding."""
    found = np.ones((B, T), np.int32)
    found[0, 3:9], found[0, 9:] = 2, 1
    found[1, 2:3], found[1, 4:8], found[1, 9:12], found[1, 13:] = 0, 0, 5, 0
    return found


class Case(NamedTuple):
    """An op, ``run(state, *arrays, *weights, segment_ids=ids) -> (state, ys)``; the arrays lead with ``[B, T]``."""

    run: Any
    state: Any
    arrays: tuple
    weights: tuple = ()


def make_cases(dtype: Any, length: int = T) -> dict[str, Case]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    def along(*shape: int) -> jax.Array:
        return normal(B, length, *shape)

    q, k, v = along(N, H), along(N, H) / 2, along(N, 5)
    by_head, by_channel = -jnp.abs(along(N)), -jnp.abs(along(N, H))
    beta, log_i = jax.nn.sigmoid(along(N)), along(N) * 2
    S = normal(B, N, H, 5)
    stabilised = MLSTMState(S, normal(B, N, H), jnp.abs(normal(B, N)))
    found = {
        "linear_recurrence": Case(linear_recurrence, normal(B, F), (along(F), along(F))),
        "linear_recurrence associative": Case(
            functools.partial(linear_recurrence, implementation="associative"), normal(B, F), (along(F), along(F))
        ),
        "linear_attention": Case(linear_attention, S, (q, k, v, by_head)),
        "linear_attention by channel": Case(linear_attention, S, (q, k, v, by_channel)),
        "delta_rule": Case(delta_rule, S, (q, k, v, beta, by_head)),
        "delta_rule by channel": Case(delta_rule, S, (q, k, v, beta, by_channel)),
        "mlstm": Case(mlstm, stabilised, (q, k, v, log_i, by_head)),
        "causal_convolution": Case(causal_convolution, normal(B, 3, F), (along(F),), (normal(4, F),)),
        "causal_convolution wide": Case(
            functools.partial(causal_convolution, dilation=5), normal(B, 10, F), (along(F),), (normal(3, F, 2),)
        ),
        "recurrence": Case(
            functools.partial(recurrence_with_projection, cells.lstm),
            cells.LSTMState(normal(B, F), normal(B, F)),
            (along(3),),
            (normal(3, 4 * F), normal(4 * F), normal(2, 2, 4, 2)),
        ),
    }
    return found | attention_cases(along, normal)


def attention_cases(along: Any, normal: Any) -> dict[str, Case]:
    q, k, v = along(4, H), along(2, H), along(2, 5)
    length = q.shape[1]
    places = jnp.broadcast_to(jnp.arange(length), (B, length))
    nothing = jnp.zeros((), q.dtype)

    def case(make_mask: Any, weights: tuple = (), cut: int = 0, **options: Any) -> Case:
        def run(state: Any, q: Any, k: Any, v: Any, *weights: Any, segment_ids: Any = None) -> tuple:
            bias = options["bias"](*weights) if weights else None
            mask = make_mask()
            if segment_ids is not None:
                own = masks.segments(segment_ids, segment_ids[:, cut:])
                mask = own if mask is None else mask & own
            rest = {name: value for name, value in options.items() if name != "bias"}
            return state, attention(q, k[:, cut:], v[:, cut:], mask=mask, bias=bias, **rest)

        return Case(run, nothing, (q, k, v), weights)

    dropout = {"dropout_rate": 0.4, "dropout_key": jax.random.key(3)}
    causal = masks.causal
    return {
        "attention causal": case(causal),
        "attention without a mask": case(lambda: None, soft_cap=2.0),
        "attention by position": case(lambda: masks.sliding_window(7, places, places)),
        "attention with a prefix": case(lambda: causal() | masks.prefix(jnp.asarray([3, 11]))),
        "attention with a dense mask": case(
            lambda: masks.dense(jnp.asarray(np.random.default_rng(1).random((B, length, length)) < 0.5))
        ),
        "attention with ALiBi": case(causal, (jnp.abs(normal(4)),), bias=positions.alibi),
        "attention with relative positions": case(
            causal,
            (normal(4, 8),),
            bias=functools.partial(positions.relative_bias, bidirectional=False, max_distance=16),
        ),
        "attention with a bias": case(causal, (normal(4, length, length),), bias=lambda bias: bias),
        "attention with dropout": case(causal, **dropout),
        "attention gathered": case(lambda: masks.prefix(4), cut=3, **dropout),
        "attention reference": case(causal, implementation="reference", **dropout),
    }


def with_padding(case: Case, marks: np.ndarray) -> Case:
    """NaN at padded positions."""
    real = jnp.asarray(marks != 0)

    def hide(x: jax.Array) -> jax.Array:
        mask = jnp.broadcast_to(real.reshape(*real.shape, *(1,) * (x.ndim - 2)), x.shape)
        return jnp.where(mask, x, jnp.nan)

    return case._replace(arrays=tuple(map(hide, case.arrays)))


def evaluate(case: Case, marks: Any, where: Any = None) -> Any:
    """The outputs, the final state and all gradients, on a mesh or on one device."""

    def loss(state: Any, arrays: tuple, weights: tuple) -> tuple:
        last, ys = case.run(state, *arrays, *weights, segment_ids=marks)
        if isinstance(last, MLSTMState):  # m is a scale of the other two
            scale = jnp.exp(last.m)[..., None]
            last = last.C * jnp.expand_dims(scale, -1), last.n * scale
        total = (ys * jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)).sum()
        return total + sum(jnp.sin(x).sum() for x in jax.tree.leaves(last)), (last, ys)

    function = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    arguments = case.state, case.arrays, case.weights
    if where is None:
        return function(*arguments)
    along = NamedSharding(where, P(("data", "fsdp"), "sequence"))
    with jax.set_mesh(where):
        return function(case.state, jax.device_put(case.arrays, along), case.weights)


def difference(case: Case, marks: Any, shape: tuple[int, ...]) -> float:
    """The largest difference from one device, relative to the largest number of each array if that is above 1."""

    def differ(x: Any, y: Any) -> float:
        x, y = np.asarray(x), np.asarray(y)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return math.inf
        return float(np.abs(x - y).max(initial=0) / max(1, np.abs(x).max(initial=0)))

    marks = None if marks is None else jnp.asarray(marks)
    return max(jax.tree.leaves(jax.tree.map(differ, evaluate(case, marks), evaluate(case, marks, mesh(*shape)))))


def differences(names: list[str], dtype: Any, shapes: list[tuple[int, ...]]) -> dict[str, float]:
    found = {}
    cases = make_cases(dtype)
    for name in names:
        for marks, shape in zip((ids(), None), shapes, strict=False):
            case = cases[name] if marks is None else with_padding(cases[name], marks)
            found[f"{name}, {'documents' if marks is not None else 'one document'}, {shape}"] = difference(
                case, marks, shape
            )
    return found


def bfloat16_differences(names: list[str]) -> dict[str, float]:
    """Differences from one device for bfloat16 inputs and a float32 state, in units of the largest output."""
    found = {}
    for name in names:
        case = make_cases(jnp.float32)[name]
        arrays, weights = (tuple(x.astype(jnp.bfloat16) for x in part) for part in (case.arrays, case.weights))

        def run(case: Case = case, arrays: tuple = arrays, weights: tuple = weights) -> jax.Array:
            return case.run(case.state, *arrays, *weights, segment_ids=jnp.asarray(ids()))[1]

        expected = np.asarray(jax.jit(run)(), float)
        with jax.set_mesh(mesh(1, 4)):
            on_mesh = np.asarray(jax.jit(lambda run=run: run())(), float)
        found[name] = float(np.abs(on_mesh - expected).max() / np.abs(expected).max())
    return found


def causality(names: list[str]) -> dict[str, bool]:
    """Whether outputs before position 9 are the same, bit for bit, if all inputs from there on change."""
    found = {}
    for name in names:
        case = make_cases(jnp.float32)[name]
        with jax.set_mesh(mesh(1, 4)):
            run = jax.jit(lambda arrays, case=case: case.run(case.state, *arrays, *case.weights)[1][:, :9])
            changed = tuple(x.at[:, 9:].set(x[:, 9:] * 3 - 1) for x in case.arrays)
            found[name] = bool((run(case.arrays) == run(changed)).all())
    return found


def compiled_text(case: Case, gradient: bool) -> str:
    """The program of a device for arguments and results that are sharded."""
    where = mesh(1, 4)
    along, whole = NamedSharding(where, P(("data", "fsdp"), "sequence")), NamedSharding(where, P())

    def run(state: Any, arrays: tuple, weights: tuple) -> Any:
        return case.run(state, *arrays, *weights)

    def loss(*arguments: Any) -> Any:
        return sum(x.sum() for x in jax.tree.leaves(run(*arguments)))

    with jax.set_mesh(where):
        function = jax.grad(loss, (0, 1, 2)) if gradient else run
        out = (whole, along, whole) if gradient else (whole, along)
        jitted = jax.jit(function, in_shardings=(whole, along, whole), out_shardings=out)
        return jitted.lower(case.state, case.arrays, case.weights).compile().as_text()


def collectives(text: str) -> dict[str, int]:
    """The bytes of the results of each kind of collective."""
    found: dict[str, int] = {}
    for shapes, kind in re.findall(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)\(", text):
        sizes = (
            math.prod(map(int, dims.split(","))) * int(bits) // 8 if dims else int(bits) // 8
            for bits, dims in re.findall(r"[fsu](\d+)\[([\d,]*)\]", shapes)
        )
        found[kind] = found.get(kind, 0) + sum(sizes)
    return found


def traffic(names: list[str], gradient: bool) -> dict[str, list[dict[str, int]]]:
    return {
        name: [collectives(compiled_text(make_cases(jnp.float32, n)[name], gradient)) for n in (64, 128)]
        for name in names
    }


def implementations() -> dict[str, Any]:
    """The implementations for 16 positions, 15, and 1, and inside ``jax.shard_map``."""
    case = make_cases(jnp.float32)["linear_recurrence"]

    def used(steps: int) -> Any:
        return used_implementations(
            lambda *xs: linear_recurrence(case.state, *xs), *(x[:, :steps] for x in case.arrays)
        )

    def inside() -> Any:
        run = jax.shard_map(
            lambda *xs: linear_recurrence(case.state, *xs)[1], in_specs=(P(), P()), out_specs=P(), check_vma=False
        )
        return used_implementations(run, *case.arrays)

    with jax.set_mesh(mesh(1, 4)):
        return {str(steps): used(steps) for steps in (16, 15, 1)} | {"inside": inside()}


def main(which: str) -> None:
    names = list(make_cases(jnp.float32))
    ops = [name for name in names if not name.startswith("attention")]
    report: dict[str, Any]
    if which == "quick":
        core = ["linear_recurrence", "causal_convolution", "attention causal"]
        report = {
            "float64": differences(core, jnp.float64, [(1, 4)]),
            "implementations": implementations(),
            "live": [count_live_pairs(masks.causal(), 16 * n, n).tolist() for n in (2, 4, 8)],
        }
    elif which == "full":
        others = ["linear_attention", "delta_rule", "mlstm", "recurrence", "attention with dropout"]
        report = {
            "float64": differences(others, jnp.float64, [(1, 4)]),
            "bfloat16": bfloat16_differences(["linear_attention", "causal_convolution", "attention causal"]),
            "causality": causality(["linear_attention", "causal_convolution", "recurrence", "attention causal"]),
            "forward": traffic(["linear_recurrence", "causal_convolution"], False),
            "gradient": traffic(["linear_recurrence", "causal_convolution", "recurrence", "attention causal"], True),
        }
    else:
        causal = [*ops, "attention causal", "attention by position", "attention with ALiBi"]
        one_a_family = [n for n in ops if "by channel" not in n] + ["attention causal", "attention with dropout"]
        heads = [
            "linear_recurrence",
            "linear_attention",
            "recurrence",
            "attention with dropout",
            "attention with a bias",
        ]
        report = {
            "float64": differences(names, jnp.float64, [(1, 4), (2, 2)]) | differences(heads, jnp.float64, [(1, 2, 2)]),
            "float32": differences(one_a_family, jnp.float32, [(1, 4)]),
            "causality": causality(causal),
            "forward": traffic(ops, False),
            "gradient": traffic([n for n in ops if n != "linear_recurrence associative"], True),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
