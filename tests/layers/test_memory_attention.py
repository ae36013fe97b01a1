"""Attention over a memory against its equation, in values and gradients; its weights on request; packed documents."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.layers import ATTENTIONS, Memory, MemoryAttention, ProductAttention, Projections, capture_weights

B, T, S, D, F = 3, 4, 7, 6, 6
IDS = np.array([[1] * 7, [1, 1, 0, 1, 0, 0, 0], [0] * 7], np.int32)
CASES: dict[str, dict[str, Any]] = {name: {} for name in ATTENTIONS}
CASES["multi_head"] = {"num_heads": 2}
SIZED = {name: fields | {"value_features": 10} for name, fields in CASES.items()}
SIZED["multi_head"] |= {"key_features": 8}
EVERY = pytest.mark.parametrize(
    ("name", "fields"),
    [pytest.param(name, fields, id=name) for name, fields in CASES.items()]
    + [pytest.param(name, fields, id=f"{name} sized") for name, fields in SIZED.items()],
)


class ReadMemory(nn.Module):
    """Projects a memory and attends to it."""

    attention: MemoryAttention

    def __call__(self, query: Any, memory: Any, ids: Any = None, query_ids: Any = None) -> Any:
        return self.attention(query, self.attention.project(memory, ids), query_ids)

    def mix(self, weights: Any, memory: Any, ids: Any = None) -> Any:
        """The contexts that belong to weights."""
        return self.attention.mix(weights, self.attention.project(memory, ids))

    def read(self, query: Any, memory: Any, ids: Any = None) -> Any:
        """Contexts and weights."""
        return self.attention.read(query, self.attention.project(memory, ids))


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def variables_of(layer: nn.Module, *args: Any) -> dict[str, Any]:
    """Random parameters, without compiling their initializers."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), *args)
    return {"params": {}} | jax.tree.map(lambda p: jnp.asarray(drawn(*p.shape, seed=p.size), p.dtype), shapes)


def on_paper(name: str, fields: dict, params: dict, query: Any, memory: Any, ids: np.ndarray) -> Any:
    """The equation, a row and a head at a time."""

    def dense(part: str, x: Any) -> Any:
        y = x @ params[part]["kernel"]
        return y + jnp.broadcast_to(params[part].get("bias", 0.0), y.shape)

    rows = []
    for row in range(query.shape[0]):
        q, real = query[row], np.flatnonzero(ids[row])
        k = v = memory[row][real]
        heads = fields.get("num_heads", 1)
        if name == "additive":
            hidden = jnp.tanh(dense("query", q)[:, None] + dense("key", k)[None])
            scores = [hidden @ params["score"]]
        elif name == "multi_head":
            split = [jnp.split(dense(part, x), heads, -1) for part, x in (("query", q), ("key", k))]
            scores = [a @ b.T / np.sqrt(a.shape[-1]) for a, b in zip(*split, strict=True)]
        else:
            keys = dense("key", k) if name == "general" else k
            scores = [q @ keys.T / (np.sqrt(q.shape[-1]) if name == "scaled_dot" else 1.0)]
        values = dense("value", v) if "value" in params else v
        if not len(real):
            mixed = [jnp.zeros((q.shape[0], part.shape[-1])) for part in jnp.split(values, heads, -1)]
        else:
            mixed = [jax.nn.softmax(s, -1) @ w for s, w in zip(scores, jnp.split(values, heads, -1), strict=True)]
        out = jnp.concatenate(mixed, -1)
        rows.append(dense("out", out) if "out" in params else out)
    return jnp.stack(rows)


@EVERY
def test_every_kind_is_its_equation_in_values_and_gradients(name: str, fields: dict, x64: None) -> None:
    types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    layer = ReadMemory(ATTENTIONS[name](F, **fields, **types))
    query, memory = jnp.asarray(drawn(B, T, D)), jnp.asarray(drawn(B, S, D, seed=1))
    params = variables_of(layer, query, memory)["params"] or {"attention": {}}

    def gradient(params: Any, query: Any, memory: Any, ours: bool) -> Any:
        def loss(params: Any, query: Any, memory: Any) -> Any:
            if ours:
                dirty = jnp.where(IDS[..., None] == 0, jnp.nan, memory)
                out = layer.apply({"params": params}, query, dirty, jnp.asarray(IDS))
            else:
                out = on_paper(name, fields, params["attention"], query, memory, IDS)
            return (out * drawn(*out.shape, seed=5)).sum(), out

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, query, memory)

    @jitted
    def both(*args: Any) -> Any:
        return gradient(*args, True), gradient(*args, False)

    found, expected = both(params, query, memory)
    close(found, expected, 1e-10)


@EVERY
def test_weights_on_request_are_those_the_context_is_mixed_by(name: str, fields: dict) -> None:
    layer = ReadMemory(ATTENTIONS[name](F, **fields))
    query, memory = (jnp.asarray(drawn(B, n, D, seed=n), jnp.float32) for n in (T, S))
    ids = jnp.asarray(IDS)
    variables = variables_of(layer, query, memory, ids)
    assert set(variables) <= {"params"}

    @jitted
    def found(variables: Any) -> Any:
        weights = capture_weights(layer, variables, query, memory, ids)["attention"]
        mixed = layer.apply(variables, weights, memory, ids, method="mix")
        read = layer.apply(variables, query, memory, ids, method="read")
        same = capture_weights(layer, variables, query, memory, ids, method="read")["attention"]
        return layer.apply(variables, query, memory, ids), weights, mixed, read, same

    context, weights, mixed, read, same = found(variables)
    assert weights.shape == (B, fields.get("num_heads", 1), T, S)
    sums = np.asarray(weights.sum(-1))
    close(sums, np.broadcast_to((IDS.any(-1))[:, None, None], sums.shape).astype(np.float32), 1e-6)
    assert not np.asarray(weights).swapaxes(1, 3)[IDS == 0].any()
    close(mixed, context, 1e-5)
    close((*read, same), (context, weights, weights), 1e-5)


@EVERY
def test_packed_documents_see_their_own_memory(name: str, fields: dict) -> None:
    layer = ReadMemory(ATTENTIONS[name](F, **fields))
    memory, query = (jnp.asarray(drawn(n, D, seed=n), jnp.float32) for n in (S, S + 1))
    ids, own = np.array([1, 1, 1, 0, 2, 2, 2]), np.array([1, 1, 0, 2, 2, 3, 1, 2])
    variables = variables_of(layer, query, memory)
    run = jitted(layer.apply)
    dirty = jnp.where(own[:, None] == 0, jnp.nan, query)
    packed = run(variables, dirty, memory, jnp.asarray(ids), jnp.asarray(own))
    assert np.isfinite(np.asarray(packed)).all()
    for document in (1, 2):
        alone = run(variables, query[own == document], memory[ids == document])
        close(packed[own == document], alone, 1e-5)


class Bilinear(ProductAttention):
    """``e = q W · k``: an attention as a user adds one."""

    def projections(self) -> Projections:
        """W."""
        return Projections(query=self.dense(self.features))


def test_a_new_kind_of_attention_gives_its_layers_alone(key: jax.Array) -> None:
    query, memory = jnp.asarray(drawn(T, 4), jnp.float32), jnp.asarray(drawn(S, D, seed=1), jnp.float32)
    layer = Bilinear(D)
    variables = {"params": {"query": {"kernel": jnp.asarray(drawn(4, D, seed=2), jnp.float32)}}}
    read = Memory(memory[:, None], memory[:, None], None)
    want = jax.nn.softmax(query @ variables["params"]["query"]["kernel"] @ memory.T) @ memory
    close(layer.apply(variables, query, read), want, 1e-5)
    with pytest.raises(TypeError, match="abstract"):
        MemoryAttention(D)  # type: ignore[abstract]


def test_what_does_not_fit_is_named(key: jax.Array) -> None:
    query, memory = jnp.ones((T, D)), jnp.ones((S, D + 1))
    with pytest.raises(ValueError, match="one width: the query has 6, the keys 7"):
        jax.eval_shape(ReadMemory(ATTENTIONS["dot"](F)).init, key, query, memory)
    with pytest.raises(ValueError, match="num_heads=4 does not divide the widths of keys, 6, and values, 6"):
        jax.eval_shape(ReadMemory(ATTENTIONS["multi_head"](F, num_heads=4)).init, key, query, memory)
