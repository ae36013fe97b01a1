"""Attention over a memory against its equation, in values and gradients; its weights on request; packed documents."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
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


@pytest.mark.full
@EVERY
def test_nan_at_padding_of_queries_and_memory_reaches_no_gradient(name: str, fields: dict) -> None:
    layer = ReadMemory(ATTENTIONS[name](F, **fields))
    query, memory = (jnp.asarray(drawn(B, n, D, seed=n), jnp.float32) for n in (T, S))
    ids, own = jnp.asarray(IDS), jnp.asarray([[1, 1, 0, 2], [0, 0, 0, 1], [1, 0, 0, 0]], jnp.int32)
    variables = variables_of(layer, query, memory)

    @jitted
    def gradients(query: Any, memory: Any) -> Any:
        def loss(variables: Any, query: Any, memory: Any) -> Any:
            out = layer.apply(variables, query, memory, ids, own)
            return (jnp.where((own != 0)[..., None], out, 0) ** 2).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(variables, query, memory)

    clean, dirty = (
        gradients(jnp.where((own == 0)[..., None], filler, query), jnp.where((ids == 0)[..., None], filler, memory))
        for filler in (0, jnp.nan)
    )
    close(dirty, clean, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))


@pytest.mark.full
@EVERY
def test_empty_batches_queries_and_memories_give_empty_or_zero_results(name: str, fields: dict) -> None:
    layer = ReadMemory(ATTENTIONS[name](F, **fields))
    variables = variables_of(layer, jnp.ones((1, 2, D)), jnp.ones((1, 3, D)))

    def loss(variables: Any, query: Any, memory: Any) -> Any:
        out = layer.apply(variables, query, memory)
        return out.sum(), out

    gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
    for rows, steps, length in ((0, T, S), (B, 0, S), (B, T, 0)):
        query, memory = jnp.ones((rows, steps, D)), jnp.ones((rows, length, D))
        for run in (gradient, jax.vmap(gradient, (None, 0, 0))):
            (*_, d_memory), out = jax.eval_shape(run, variables, query, memory)
            assert out.shape[:2] == (rows, steps) and d_memory.shape[-2:] == (length, D)
    found = jitted(gradient)(variables, jnp.ones((B, T, D)), jnp.ones((B, 0, D)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.full
@pytest.mark.parametrize("name", ["additive", "multi_head"])
def test_dropout_of_weights_is_active_exactly_if_a_key_is_given(name: str) -> None:
    layer = ReadMemory(ATTENTIONS[name](F, attention_dropout=0.5))
    query, memory = (jnp.asarray(drawn(B, n, D, seed=n), jnp.float32) for n in (T, S))
    variables = variables_of(layer, query, memory)

    @jitted
    def run(variables: Any) -> Any:
        plain = ReadMemory(ATTENTIONS[name](F)).apply(variables, query, memory)
        same = layer.apply(variables, query, memory)
        keys = jax.random.split(jax.random.key(2), 2000)

        def dropped(key: Any) -> Any:
            rngs = {"dropout": key}
            read, weights = layer.apply(variables, query, memory, rngs=rngs, method="read")
            return layer.apply(variables, query, memory, rngs=rngs), read, weights

        once, again, other = (dropped(key)[0] for key in (keys[0], keys[0], keys[1]))
        every, read, weights = jax.vmap(dropped)(keys)
        return plain, same, (once, again, other), (every.mean(0), read.mean(0)), (weights[0], weights[1])

    plain, same, draws, means, weights = run(variables)
    close(plain, same, 0)
    close(draws[0], draws[1], 0)
    close(*weights, 0)
    assert np.abs(draws[0] - draws[2]).max() > 1e-2
    for mean in means:
        assert np.abs(mean - plain).max() < 0.1 * np.abs(plain).max()


@pytest.mark.full
@pytest.mark.parametrize("name", ["additive", "multi_head"])
def test_forward_mode_works_at_any_length(name: str, x64: None) -> None:
    """130 queries and positions: the tangent is a difference quotient."""
    layer = ReadMemory(ATTENTIONS[name](F, dtype=jnp.float64, param_dtype=jnp.float64))
    args = tuple(jnp.asarray(drawn(130, D, seed=seed)) for seed in (1, 2))
    variables = variables_of(layer, *args)
    primals = (variables, *args)
    along = jax.tree.map(lambda p: jnp.asarray(drawn(*p.shape, seed=p.size + 3)), primals)

    def moved(step: float) -> Any:
        return layer.apply(*jax.tree.map(lambda p, d: p + step * d, primals, along))

    tangent, quotient = jitted(lambda: (jax.jvp(layer.apply, primals, along)[1], (moved(1e-5) - moved(-1e-5)) / 2e-5))()
    close(tangent, quotient, 1e-5)


@pytest.fixture
def our_own_errors() -> Any:
    """Leaves annotations unchecked: a wrong shape reaches our own check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_errors_name_arguments_of_another_shape_or_dtype(our_own_errors: None) -> None:
    layer = ATTENTIONS["multi_head"](F)
    query, ids, memory = jnp.ones((8, T, D)), jnp.ones((8, T), jnp.int32), jnp.ones((8, S, 1, F))
    given = Memory(memory, memory, jnp.ones((8, S), jnp.int32))
    wrong: list[tuple] = [
        (
            r"MultiHeadAttention needs integer segment_ids .* \(8, 4\) .* not float32\(8, 4\)",
            query,
            given,
            ids.astype(jnp.float32),
        ),
        (r"MultiHeadAttention needs integer segment_ids .* not int32\(8, 3\)", query, given, ids[:, 1:]),
        (r"MultiHeadAttention needs floating-point inputs .* not int32\(8, 4\)", ids, given, None),
        (
            r"needs a memory whose leaves .* \(8,\) .* leaf \.keys has shape \(1,",
            query,
            given._replace(keys=memory[:1]),
            None,
        ),
        (
            r"for a memory, needs integer segment_ids .* \(8, 7\) .* not int32\(8, 6\)",
            query,
            given._replace(segment_ids=given.segment_ids[:, 1:]),
            None,
        ),
        (r"MultiHeadAttention needs a Memory, as project makes it, not tuple", query, tuple(given), None),
    ]
    for message, *arguments in wrong:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(layer.init, jax.random.key(0), *arguments)
    for bad in (jnp.ones((8, S)), jnp.ones((1, S), jnp.int32)):
        with pytest.raises(ValueError, match=r"MultiHeadAttention, for a memory, needs integer segment_ids"):
            jax.eval_shape(lambda bad=bad: layer.init(jax.random.key(0), jnp.ones((8, S, D)), bad, method="project"))
    with pytest.raises(ValueError, match=r"attention_dropout=-0\.1 is not in \[0, 1\)"):
        jax.eval_shape(ATTENTIONS["dot"](F, attention_dropout=-0.1).init, jax.random.key(0), query, given)


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
