"""Other libraries' layers as rows of the throughput benchmark: ``flax: lstm``, ``torch: attention``.

The same work: ``[B, T, D]`` to ``[B, T, F]`` with the input's projection, and the gradients of the input and of every
parameter. Each is checked as it is measured, on the same prefix, against itself in float64: what its equations are is
its own affair. haiku and equinox are there in float32 alone.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from harness import Candidate, Prepared, deviation, judged, unavailable
from jax import lax
from throughput_cases import Case, Inputs, Model, prepare_model
from throughput_costs import count_cost

from jaxseq.cores import make_core

FAMILIES = {"lstm": "nonlinear recurrence", "gru": "nonlinear recurrence", "attention": "attention"}


def peers(mixer: str, case: Case) -> list[Candidate]:
    """What there is of this mixer elsewhere; one that is not installed is a row that says so."""
    jax_peers: dict[tuple[str, str], Callable[[str, Case], tuple[Any, Callable]]] = {
        ("flax", "lstm"): _flax,
        ("flax", "gru"): _flax,
        ("flax", "attention"): _flax,
        ("jax.nn", "attention"): _flax,
        ("haiku", "lstm"): _haiku,
        ("haiku", "gru"): _haiku,
        ("equinox", "lstm"): _equinox,
    }
    found = []
    for (library, name), make in jax_peers.items():
        if name == mixer and (case.dtype == "float32" or make is _flax):
            found.append(Candidate(f"{library}: {name}", partial(_prepare_jax, library, mixer, make, case)))
    if mixer in FAMILIES:
        found += [_torch(mixer, case, compiled) for compiled in (False, True)]
    return found


def _facts(library: str, mixer: str, case: Case) -> dict[str, Any]:
    core = make_core(mixer, case.width, dtype=jnp.dtype(case.dtype))
    cost = count_cost(core, case.mode, case.batch, case.length, case.width)
    return {"family": FAMILIES[mixer], "peer": library, "flops": cost.flops, "bytes": cost.bytes}


def _prepare_jax(library: str, mixer: str, make: Callable, case: Case, inputs: Inputs) -> Prepared:
    with jax.default_device(jax.devices("cpu")[0]):
        variables, apply = make(f"{library}: {mixer}", case)
        variables = jax.tree.map(np.asarray, variables)
    key = (library, mixer, case.width, case.dtype)
    exact = partial(apply, dtype=jnp.float64)
    facts = _facts(library, mixer, case)
    return prepare_model(Model(variables, partial(apply, dtype=jnp.dtype(case.dtype)), exact, key, facts), case, inputs)


class _DotProductAttention(nn.Module):
    """Projections around ``jax.nn.dot_product_attention``."""

    features: int
    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, xs: jax.Array) -> jax.Array:
        def project(name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(self.features, use_bias=False, dtype=self.dtype, param_dtype=x.dtype, name=name)(x)

        heads = (*xs.shape[:-1], self.num_heads, -1)
        query, key, value = (project(name, xs).reshape(heads) for name in ("query", "key", "value"))
        out = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return project("out", out.reshape(xs.shape))


def _flax(name: str, case: Case) -> tuple[Any, Callable]:
    def layer(dtype: Any) -> nn.Module:
        features, heads = case.width, _heads(case.width)
        fields = {"dtype": dtype, "param_dtype": jnp.float64 if dtype == jnp.float64 else jnp.float32}
        match name:
            case "flax: lstm":
                return nn.RNN(nn.OptimizedLSTMCell(features, **fields))
            case "flax: gru":
                return nn.RNN(nn.GRUCell(features, **fields))
            case "flax: attention":
                return nn.MultiHeadDotProductAttention(heads, qkv_features=features, use_bias=False, **fields)
        return _DotProductAttention(features, heads, dtype)

    def apply(variables: Any, xs: jax.Array, *, dtype: Any) -> jax.Array:
        if name == "flax: attention":
            mask = nn.make_causal_mask(xs[..., 0])
            return layer(dtype).apply(variables, xs, mask=mask)  # type: ignore[return-value]
        return layer(dtype).apply(variables, xs)  # type: ignore[return-value]

    return layer(jnp.float32).init(jax.random.key(0), jnp.zeros((1, 2, case.width))), apply


def _haiku(name: str, case: Case) -> tuple[Any, Callable]:
    import haiku as hk

    def unroll(xs: jax.Array) -> jax.Array:
        core = {"haiku: lstm": hk.LSTM, "haiku: gru": hk.GRU}[name](case.width)
        return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[0]), time_major=False)[0]

    layer: Any = hk.without_apply_rng(hk.transform(unroll))
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 2, case.width)))
    return variables, lambda variables, xs, dtype: layer.apply(variables, xs)


def _equinox(name: str, case: Case) -> tuple[Any, Callable]:
    import equinox as eqx

    cell = eqx.nn.LSTMCell(case.width, case.width, key=jax.random.key(0))
    arrays, rest = eqx.partition(cell, eqx.is_array)

    def apply(variables: Any, xs: jax.Array, *, dtype: Any) -> jax.Array:
        mapped = jax.vmap(eqx.combine(variables, rest))

        def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            state = mapped(x, state)
            return state, state[0]

        zeros = jnp.zeros((xs.shape[0], case.width), xs.dtype)
        return jnp.swapaxes(lax.scan(step, (zeros, zeros), jnp.swapaxes(xs, 0, 1))[1], 0, 1)

    return arrays, apply


def _heads(width: int) -> int:
    """One head for every 64 features where that divides, as in jaxseq."""
    return width // 64 if width % 64 == 0 else 1


def _torch(mixer: str, case: Case, compiled: bool) -> Candidate:
    """torch's layer as it is, and through ``torch.compile``; on the GPU where JAX is."""
    name = f"torch.compile: {mixer}" if compiled else f"torch: {mixer}"
    try:
        import torch
    except ImportError:
        return unavailable(name, "torch is not installed (extra: peers)")
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"

    def prepare(inputs: Inputs) -> Prepared:
        torch.manual_seed(0)
        layer = _torch_layer(mixer, case.width)
        exact = copy.deepcopy(layer).double()
        layer = layer.to(device, getattr(torch, case.dtype))
        if compiled:
            torch._dynamo.reset()
            layer = torch.compile(layer)
        sets = [[_to_torch(x).to(device, getattr(torch, case.dtype)) for x in pair] for pair in inputs]
        gradients = case.mode == "forward+backward"

        def run(which: int) -> Any:
            out = _torch_results(layer, sets[which][0], sets[which][1], gradients=gradients)
            if device == "cuda":
                torch.cuda.synchronize()
            return out

        def check() -> float:
            rows, length = case.checked
            xs, cotangent = sets[0]
            masked = torch.zeros_like(cotangent)
            masked[:rows, :length] = cotangent[:rows, :length]
            got = _torch_results(layer, xs, masked, gradients=gradients)
            prefix = [x[:rows, :length].double().cpu() for x in (xs, cotangent)]
            expected = [x.detach().numpy() for x in _torch_results(exact, prefix[0], prefix[1], gradients=gradients)]
            got = [x.detach().double().cpu().numpy() for x in got]
            got[:2] = [x[:rows, :length] for x in got[:2]]
            errors = [deviation(got[:1], expected[:1])]
            errors += [deviation(got[1:], expected[1:], floor=1e-3)] if gradients else []
            return judged(max(errors), case.tolerance)

        facts = _facts(name.split(":")[0], mixer, case)
        facts["checked"] = "as jaxseq's rows, against itself in float64"
        return Prepared(run, facts, check)

    return Candidate(name, prepare)


def _to_torch(x: jax.Array) -> Any:
    import torch

    return torch.tensor(np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x))


def _torch_results(layer: Any, xs: Any, cotangent: Any, *, gradients: bool) -> Sequence[Any]:
    """``(ys,)``, or ``(ys, d_xs, *d_parameters)``."""
    import torch

    if not gradients:
        with torch.no_grad():
            return [layer(xs)]
    xs = xs.detach().requires_grad_()
    ys = layer(xs)
    return [ys, *torch.autograd.grad(ys, (xs, *layer.parameters()), cotangent)]


def _torch_layer(mixer: str, width: int) -> Any:
    import torch

    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[mixer]
            self.layer = kind(width, width, batch_first=True)

        def forward(self, xs: Any) -> Any:
            return self.layer(xs)[0]

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(width, 3 * width, bias=False)
            self.out = torch.nn.Linear(width, width, bias=False)

        def forward(self, xs: Any) -> Any:
            heads = (*xs.shape[:-1], _heads(width), -1)
            query, key, value = (x.reshape(heads).transpose(1, 2) for x in self.project(xs).chunk(3, -1))
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return self.out(out.transpose(1, 2).reshape(xs.shape))

    return Attention() if mixer == "attention" else Recurrent()
