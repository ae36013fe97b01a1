"""Attention: the fast form against the equation, values and gradients, for every mask and odd sizes."""

import importlib
import math
from functools import partial
from inspect import unwrap
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted
from small_tiles import tiled, unrolled

from jaxseq.ops import attention, attention_implementation, attention_reference, attention_weights, masked_softmax
from jaxseq.ops.attention.masks import (
    Mask,
    causal,
    dense,
    dense_by_head,
    padding,
    prefix,
    segments,
    sliding_window,
)
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.positions import alibi, alibi_slopes
from jaxseq.ops.attention.tile_grid import Plan
from jaxseq.ops.attention.tiled import Tiled
from jaxseq.ops.attention.tiles import choose_plan, tiled_attention

B, T, S, N, M, H, HV = 2, 21, 27, 4, 2, 6, 5


def _normal(seed: int, *shape: int, dtype: str = "float64") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _inputs(dtype: str = "float64", batch: int = B) -> tuple[jax.Array, ...]:
    shapes = (batch, T, N, H), (batch, S, M, H), (batch, S, M, HV), (batch, T, N, HV)
    return tuple(_normal(i, *shape, dtype=dtype) for i, shape in enumerate(shapes))


def _value_and_grads(function, query, key, value, cotangent, *parts):
    out, pullback = jax.vjp(lambda *qkv: function(*qkv, *parts), query, key, value)
    return out, *pullback(cotangent)


def _masks() -> dict[str, tuple[Mask | None, Tiled | None, float | None]]:
    """Mask, bias and soft cap by name."""
    rng = np.random.default_rng(1)
    q_ids = jnp.asarray(np.sort(rng.integers(0, 4, (B, T))))
    kv_ids = jnp.asarray(np.sort(rng.integers(0, 4, (B, S))))
    real = jnp.asarray(rng.random((B, S)) < 0.7)
    q_positions = jnp.asarray(rng.integers(0, 30, (B, T)))
    ring = jnp.asarray(rng.permuted(np.arange(-3, S - 3)[None].repeat(B, 0), axis=1))
    array = jnp.asarray(rng.random((B, T, S)) < 0.4)
    by_head = jnp.asarray(rng.random((B, N, T, S)) < 0.4)
    slopes = alibi_slopes(N)
    parts: dict[str, tuple] = {
        "none": (None,),
        "causal": (causal(),),
        "causal offset": (causal(offset=S - T),),
        "window": (sliding_window(4),),
        "causal ring": (causal(q_positions, ring),),
        "window ring": (sliding_window(7, q_positions, ring),),
        "prefix": (prefix(11),),
        "prefix or causal": (causal() | prefix(jnp.asarray([3, 20])),),
        "padding": (padding(real),),
        "segments": (segments(q_ids, kv_ids),),
        "segments causal window": (segments(q_ids, kv_ids) & causal() & sliding_window(9),),
        "dense": (dense(array),),
        "dense shared": (dense(array[0]),),
        "dense by head": (dense_by_head(by_head) | (padding(real) & causal(offset=2)),),
        "alibi": (causal(), alibi(slopes)),
        "alibi positions": (segments(q_ids, kv_ids), alibi(slopes, q_positions, ring)),
        "nothing": (prefix(0),),
        "soft cap": (None, None, 0.8),
        "soft cap, window, alibi": (sliding_window(9, offset=3), alibi(slopes), 0.5),
    }
    return {name: (*given, None, None)[:3] for name, given in parts.items()}


FURTHER_MASKS = ("causal offset", "prefix", "padding", "segments", "dense shared", "alibi")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name in FURTHER_MASKS else ()) for name in _masks()]
)
def test_tiles_equal_the_equation_in_value_and_gradients(name: str, x64: None) -> None:
    mask, bias, soft_cap = _masks()[name]

    @jitted
    def both(inputs, mask, bias):
        more = {"mask": mask, "bias": bias, "soft_cap": soft_cap}
        forms = tiled, unrolled, attention_reference
        return [_value_and_grads(lambda *qkv, f=f: f(*qkv, **more), *inputs) for f in forms]

    for fast, short, plain in zip(*both(_inputs(), mask, bias), strict=True):
        np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-10)
        np.testing.assert_allclose(short, plain, rtol=0, atol=1e-10)
        assert np.isfinite(plain).all()
        assert name == "nothing" or np.abs(plain).max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 1), (16, 18), (40, 7)])
def test_odd_lengths_and_one_head(shape: tuple[int, int], x64: None) -> None:
    t, s = shape
    inputs = _normal(0, 1, t, 1, 3), _normal(1, 1, s, 1, 3), _normal(2, 1, s, 1, 3), _normal(3, 1, t, 1, 3)
    mask = causal(offset=max(s - t, 0))
    forms = partial(tiled, tiles=(16, 16)), unrolled, attention_reference
    all_of_them = jitted(lambda *x: [_value_and_grads(partial(f, mask=mask), *x) for f in forms])
    for fast, short, plain in zip(*all_of_them(*inputs), strict=True):
        np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-10)
        np.testing.assert_allclose(short, plain, rtol=0, atol=1e-10)


def test_programs_side_by_side_and_larger_tiles_give_the_same(x64: None) -> None:
    mask, bias, _ = _masks()["alibi positions"]
    plain = jitted(attention_reference)(*_inputs()[:3], mask=mask, bias=bias)
    batch = (B,)
    parts = Parts(mask.flatten_batch(batch), bias.flatten_batch(batch))
    for programs in (1, B * M):
        fast = jitted(tiled_attention, static_argnums=4)
        out = fast(*_inputs()[:3], parts, Plan(1 / math.sqrt(H), 32, 16, programs))
        np.testing.assert_allclose(out, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["dense by head", pytest.param("alibi positions", marks=pytest.mark.full)])
def test_parts_of_the_batch_after_one_another_give_the_same(
    name: str, x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("jaxseq.ops.attention.unrolled")  # the package has a function of this name
    monkeypatch.setattr(module, "MAX_SCORES", N * T * S)
    mask, bias, _ = _masks()[name]

    @jitted
    def both(inputs, mask, bias):
        return [
            _value_and_grads(lambda *qkv, f=f: f(*qkv, mask=mask, bias=bias), *inputs)
            for f in (unrolled, attention_reference)
        ]

    for parts, plain in zip(*both(_inputs(), mask, bias), strict=True):
        np.testing.assert_allclose(parts, plain, rtol=0, atol=1e-10)


def test_tiles_that_a_causal_mask_leaves_empty_are_not_computed() -> None:
    x = jax.ShapeDtypeStruct((1, 512, 1, 16), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 512), jnp.int32)

    def flops(mask_of) -> float:
        def f(q, k, v, ids):
            return attention(q, k, v, mask=mask_of(ids), implementation="unrolled")

        return jax.jit(f).lower(x, x, x, ids).cost_analysis()["flops"]

    assert flops(lambda ids: causal()) <= 0.7 * flops(lambda ids: None)
    assert flops(lambda ids: causal() & segments(ids, ids)) <= 0.8 * flops(lambda ids: segments(ids, ids))


def test_the_equation_is_the_textbook_one(x64: None) -> None:
    query, key, value, _ = _inputs()
    mask = causal(offset=3)
    expected = np.zeros((B, T, N, HV))
    for b in range(B):
        for n in range(N):
            scores = 2 * np.tanh(np.asarray(query[b, :, n] @ key[b, :, n // 2].T) / np.sqrt(H) / 2)
            weights = np.exp(scores) * (np.arange(S) <= np.arange(T)[:, None] + 3)
            expected[b, :, n] = weights / weights.sum(-1, keepdims=True) @ value[b, :, n // 2]
    np.testing.assert_allclose(attention_reference(query, key, value, mask=mask, soft_cap=2.0), expected, atol=1e-12)
    weights = attention_weights(query, key, mask=mask, soft_cap=2.0)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-12)
    assert weights.shape == (B, N, T, S)


def test_the_equation_keeps_forward_mode_and_second_derivatives(x64: None) -> None:
    query, key, value = (x[:, :5] for x in _inputs()[:3])

    def f(q: jax.Array) -> jax.Array:
        return attention_reference(q, key, value, mask=sliding_window(2)).sum()

    forward, reverse = jitted(lambda q: (jax.jacfwd(jax.grad(f))(q), jax.jacrev(jax.grad(f))(q)))(query)
    np.testing.assert_allclose(forward, reverse, atol=1e-12)


def test_a_row_with_nothing_to_see_gives_zeros_and_zero_gradients(x64: None) -> None:
    mask = causal(offset=-4)
    for implementation in ("reference", "tiles", "unrolled"):
        f = partial(attention, mask=mask, implementation=implementation)
        out, dq, dk, dv = jitted(partial(_value_and_grads, f))(*_inputs())
        assert (out[:, :4] == 0).all()
        assert (dq[:, :4] == 0).all()
        assert all(np.isfinite(x).all() for x in (out, dq, dk, dv))


def test_vmap_is_the_batch(x64: None) -> None:
    mask, _, _ = _masks()["segments causal window"]
    inputs = _inputs()
    batched = jitted(partial(_value_and_grads, partial(tiled, mask=mask)))(*inputs)

    def one(query, key, value, cotangent, mask):
        f = partial(attention, mask=mask, implementation="tiles")
        return _value_and_grads(f, query, key, value, cotangent)

    for a, b in zip(jitted(jax.vmap(one))(*inputs, mask), batched, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)

    def shared(q: jax.Array) -> jax.Array:
        return attention(q, inputs[1][0], inputs[2][0], mask=causal(), implementation="tiles")

    separate = jnp.stack([jitted(shared)(q) for q in inputs[0]])
    np.testing.assert_allclose(jitted(jax.vmap(shared))(inputs[0]), separate, rtol=0, atol=1e-12)


def test_vmap_adds_no_loop_and_no_branch() -> None:
    """A batch under vmap is more programs in the same loops, so it costs what a batched call costs."""
    inputs = _inputs("float32")
    f = partial(_value_and_grads, partial(attention, mask=causal(), implementation="tiles"))
    mapped, batched = (jax.jit(g).lower(*inputs).as_text() for g in (jax.vmap(f), f))
    for name in ("stablehlo.while", "stablehlo.case", "stablehlo.dot_general"):
        assert mapped.count(name) == batched.count(name)


@pytest.mark.full
def test_memory_grows_with_the_length() -> None:
    def temporary(implementation: str, length: int) -> int:
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        f = partial(attention, mask=causal(), implementation=implementation)
        return jax.jit(partial(_value_and_grads, f)).lower(x, x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary("tiles", 4096) * 10 <= temporary("reference", 4096)
    assert temporary("tiles", 4096) <= 2.2 * temporary("tiles", 2048)


@pytest.mark.parametrize("implementation", ["reference", "decode", "unrolled", "tiles"])
def test_nan_in_what_is_ruled_out_poisons_nothing(implementation: str, x64: None) -> None:
    inputs = _inputs()
    q_ids = jnp.asarray([[0] * 3 + [1] * 18, [2] * 21])
    kv_ids = jnp.asarray([[1] * 20 + [0] * 7, [0] * 2 + [2] * 25])
    mask = segments(q_ids, kv_ids) & padding(kv_ids > 0)
    f = jitted(partial(_value_and_grads, partial(attention, mask=mask, implementation=implementation)))
    clean = f(*inputs)
    dead_q, dead_k = q_ids[..., None, None] == 0, kv_ids[..., None, None] == 0
    dirty = f(*(jnp.where(dead, jnp.nan, x) for dead, x in zip((dead_q, dead_k, dead_k, dead_q), inputs, strict=True)))
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    for dead, gradient in zip((dead_q, dead_k, dead_k), clean[1:], strict=True):
        assert (jnp.where(dead, gradient, 0.0) == 0).all()


def test_bfloat16_stays_close_to_float32() -> None:
    inputs = _inputs("float32")
    f = jitted(partial(_value_and_grads, partial(attention, mask=causal(), implementation="tiles")))
    narrow = f(*(x.astype(jnp.bfloat16) for x in inputs))
    for a, b in zip(narrow, f(*inputs), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * float(jnp.abs(b).max()))


def test_any_batch_dims_and_scale(x64: None) -> None:
    query, key, value, _ = _inputs()
    ids = jnp.arange(T)[None] // 8 + 1
    mask = segments(ids, jnp.pad(ids, [(0, 0), (0, S - T)]))

    @partial(jitted, static_argnums=3)
    def three_ways(query, key, value, implementation):
        f = partial(attention, scale=0.3, implementation=implementation)
        whole = f(query, key, value, mask=mask)
        more = f(*(x[:, None] for x in (query, key, value)), mask=mask)
        one = f(query[0], key[0], value[0], mask=segments(mask.q_ids[0], mask.kv_ids[0]))
        return whole, more[:, 0], one

    for implementation in ("reference", "tiles"):
        whole, more, one = three_ways(query, key, value, implementation)
        np.testing.assert_allclose(more, whole, atol=1e-12)
        np.testing.assert_allclose(one, whole[0], atol=1e-12)


@pytest.mark.parametrize("name", ["none", "dense by head", "alibi positions", "soft cap, window, alibi"])
def test_the_form_for_few_queries_equals_the_equation(name: str, x64: None) -> None:
    mask, bias, soft_cap = _masks()[name]

    @jitted
    def both(inputs, mask, bias):
        few, plain = (
            partial(attention, mask=mask, bias=bias, soft_cap=soft_cap, implementation=i)
            for i in ("decode", "reference")
        )
        one = jax.vmap(lambda *x: attention(*x, soft_cap=soft_cap, implementation="decode"))(*inputs[:3])
        whole = attention(*inputs[:3], soft_cap=soft_cap, implementation="decode")
        return _value_and_grads(few, *inputs), _value_and_grads(plain, *inputs), one, whole

    few, plain, one, whole = both(_inputs(), mask, bias)
    for a, b in zip((*few, one), (*plain, whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("implementation", ["tiles", "unrolled", "decode"])
@pytest.mark.full
def test_no_queries_keys_rows_heads_or_features(implementation: str) -> None:
    query, key, value, _ = _inputs("float32")
    f = partial(attention, implementation=implementation)
    assert f(query[:, :0], key, value).shape == (B, 0, N, HV)
    np.testing.assert_array_equal(f(query, key[:, :0], value[:, :0]), jnp.zeros((B, T, N, HV)))
    assert f(query[:0], key[:0], value[:0]).shape == (0, T, N, HV)
    assert f(query[:, :, :0], key[:, :, :0], value[:, :, :0]).shape == (B, T, 0, HV)
    assert f(query, key, value[..., :0]).shape == (B, T, N, 0)
    mean = f(query[..., :0], key[..., :0], value)
    np.testing.assert_allclose(
        mean, jnp.broadcast_to(value.mean(1, keepdims=True)[:, :, [0, 0, 1, 1]], mean.shape), atol=1e-6
    )


@pytest.mark.parametrize(
    "implementation", ["tiles", *(pytest.param(x, marks=pytest.mark.full) for x in ("decode", "reference", "unrolled"))]
)
def test_vmap_over_no_rows_and_gradients_of_no_rows(implementation: str) -> None:
    none = tuple(x[:0] for x in _inputs("float32"))
    ids = jnp.ones((0, T), jnp.int32), jnp.ones((0, S), jnp.int32)
    bias = jnp.zeros((0, N, T, S))

    def gradients(bias, q_ids, kv_ids, query, key, value, cotangent):
        f = partial(attention, mask=segments(q_ids, kv_ids), implementation=implementation)
        return jax.vjp(lambda *x: f(*x[:3], bias=x[3]), query, key, value, bias)[1](cotangent)

    for transformed in (gradients, jax.vmap(gradients)):
        found = jax.jit(transformed).lower(bias, *ids, *none).out_info
        assert [x.shape for x in found] == [x.shape for x in (*none[:3], bias)]


@pytest.mark.full
@pytest.mark.parametrize("implementation", ["decode", "tiles"])
def test_a_scale_that_is_learned_has_its_gradient(implementation: str, x64: None) -> None:
    query, key, value, cotangent = _inputs()
    query = query.at[:, -1].set(jnp.nan)
    mask = segments(jnp.ones((B, T), int).at[:, -1].set(0), jnp.ones((B, S), int))

    def of_scale(implementation: str, scale: jax.Array) -> jax.Array:
        options = {"mask": mask, "soft_cap": 2.0, "implementation": implementation}
        return (attention(query, key, value, scale=scale, **options) * cotangent).sum()

    both = {
        name: jitted(jax.value_and_grad(partial(of_scale, name)))(jnp.float32(0.3))
        for name in ("reference", implementation)
    }
    np.testing.assert_allclose(both[implementation], both["reference"], rtol=1e-6)
    np.testing.assert_allclose(both[implementation][0], of_scale("reference", 0.3), rtol=1e-6)


def test_a_narrow_window_gets_small_tiles_and_the_same_numbers() -> None:
    """The plan is chosen from mask and lengths, and not by the batch, which vmap hides."""
    query, key, value = (_normal(i, 2, 600, 4, 8, dtype="float32") for i in range(3))
    ids = jnp.arange(600)[None] // 400 + 1
    mask = sliding_window(20) & segments(ids, ids)

    def row_tile(query: jax.Array, key: jax.Array, mask: Mask) -> int:
        return choose_plan(query, key, mask, 1.0, None).row_tile

    assert row_tile(query, key, mask) == row_tile(query[0], key[0], mask) == 128
    assert row_tile(query, key, causal()) == row_tile(query, key, mask | causal()) > 128
    fast, plain = (
        jitted(partial(attention, mask=mask, implementation=i))(query, key, value) for i in ("tiles", "reference")
    )
    np.testing.assert_allclose(fast, plain, atol=3e-6)


@pytest.mark.full
def test_cudnn_is_given_what_the_mask_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up CUDA device whose cuDNN is XLA's form of the same function: window, lengths, grouped heads."""
    device = SimpleNamespace(
        platform="gpu", client=SimpleNamespace(platform_version="cuda 12"), compute_capability="8.6"
    )
    query, key, value = (
        _normal(i, 2, 9, heads, 8, dtype="float32").astype(jnp.bfloat16) for i, heads in enumerate((4, 2, 2))
    )
    masks = [None, causal(), sliding_window(3), prefix(4), causal() & prefix(jnp.asarray([0, 7])), prefix(0) & causal()]
    expected = [attention(query, key, value, mask=mask, implementation="reference") for mask in masks]
    theirs = jax.numpy_dtype_promotion("standard")(jax.nn.dot_product_attention)
    with monkeypatch.context() as patched:
        patched.setattr(jax, "devices", lambda: [device])
        patched.setattr(jax.nn, "dot_product_attention", lambda *x, **kw: theirs(*x, **{**kw, "implementation": "xla"}))
        for mask, out in zip(masks, expected, strict=True):
            assert attention_implementation(query, key, value, mask) == "cudnn"
            ours = attention(query, key, value, mask=mask)
            np.testing.assert_allclose(ours.astype(jnp.float32), out.astype(jnp.float32), atol=0.03)
        refused = {
            "one of each": causal() | prefix(4),
            "without offset": causal(offset=1),
            "no sliding window with a prefix": sliding_window(3) & prefix(4),
        }
        for reason, mask in refused.items():
            with pytest.raises(ValueError, match=reason):
                attention(query, key, value, mask=mask, implementation="cudnn")
        with pytest.raises(ValueError, match=r"no soft cap of the scores, here 5\.0"):
            attention(query, key, value, soft_cap=5.0, implementation="cudnn")
        with pytest.raises(ValueError, match="no bias here"):
            attention(query, key, value, bias=jnp.zeros((9, 9)), implementation="cudnn")
        dropped = {"dropout_rate": 0.5, "dropout_key": jax.random.key(0)}
        with pytest.raises(ValueError, match=r"no dropout of weights here, and the rate is 0\.5"):
            attention(query, key, value, **dropped, implementation="cudnn")
        assert attention_implementation(query, key, value, dropout_rate=0.5) != "cudnn"
        wide = jnp.zeros((1, 4, 1, 136), jnp.bfloat16)
        with pytest.raises(ValueError, match="multiple of 8 up to 128, not 136"):
            attention(wide, wide, wide, implementation="cudnn")


def test_auto_says_what_it_takes_and_takes_it() -> None:
    query, key, value, _ = _inputs("float32")
    assert attention_implementation(query[:, :1], key, value, causal(offset=S)) == "decode"
    assert attention_implementation(query[:, :1], key[:, :1], value[:, :1]) == "reference"
    long = jnp.zeros((1, 1024, N, H))
    assert attention_implementation(long, long, long, causal()) == "unrolled"
    assert attention_implementation(*[long.astype(jnp.bfloat16)] * 3, causal()) == "tiles"
    assert attention_implementation(long, long, long, sliding_window(64)) == "tiles"
    ids = jnp.ones((1, 1024), jnp.int32)
    packed = causal() & segments(ids, ids)
    assert attention_implementation(long, long, long, packed) == "tiles"
    short = long[:, :512]
    assert attention_implementation(short, short, short, causal() & segments(ids[:, :512], ids[:, :512])) == "unrolled"
    longer = jnp.zeros((1, 1025, N, H))
    assert attention_implementation(longer, longer, longer, causal()) == "tiles"
    auto, plain = attention(query, key, value), attention(query, key, value, implementation="reference")
    np.testing.assert_array_equal(auto, plain)


def test_wrong_calls_say_what_is_wrong() -> None:
    query, key, value, _ = _inputs("float32")
    with pytest.raises(ValueError, match="4 query heads are no multiple of 3"):
        attention(query, jnp.zeros((B, S, 3, H)), jnp.zeros((B, S, 3, HV)))
    with pytest.raises(ValueError, match="'cudnn' cannot do this call: the default device is no CUDA device"):
        attention(query, key, value, implementation="cudnn")
    with pytest.raises(ValueError, match=r"kv_real has shape \(2, 9\)"):
        attention(query, key, value, mask=padding(jnp.ones((B, 9), bool)))
    with pytest.raises(ValueError, match=r"float32, bfloat16"):
        attention(query, key.astype(jnp.bfloat16), value)
    with pytest.raises(ValueError, match=r"soft cap of the scores must be positive, got 0\.0"):
        attention(query, key, value, soft_cap=0.0)
    with pytest.raises(
        ValueError, match=r"bias has shape \(2, 1, 4, 21\), but must end in \(4, 21, 27\), where each may"
    ):
        attention(query, key, value, bias=jnp.zeros((2, 1, 4, 21)))
    with pytest.raises(ValueError, match=r"dropout_rate must be in \[0, 1\), got 1\.0"):
        attention(query, key, value, dropout_rate=1.0, dropout_key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"dropout_rate=0\.5 needs a dropout_key"):
        attention(query, key, value, dropout_rate=0.5)
    with pytest.raises(ValueError, match="slopes has shape"):
        attention(query, key, value, bias=alibi(alibi_slopes(3)))


def test_wrong_shapes_are_refused_without_a_type_checker_too() -> None:
    query, key, value, _ = _inputs("float32")
    plain = unwrap(attention)
    with pytest.raises(ValueError, match="head size, 6 and 5"):
        plain(query, key[..., :5], value)
    with pytest.raises(ValueError, match=r"key \(2, 27, 2, 6\), value \(2, 26, 2, 5\)"):
        plain(query, key, value[:, 1:])
    with pytest.raises(ValueError, match="same batch dims"):
        plain(query[:1], key, value)
    with pytest.raises(TypeError, match=r"dense\(array\) makes one"):
        plain(query, key, value, mask=jnp.ones((T, S), bool))
    with pytest.raises(TypeError, match="alibi or relative_bias; got Band"):
        plain(query, key, value, bias=causal())
    with pytest.raises(TypeError, match="an array of bool"):
        plain(query, key, value, bias=jnp.ones((T, S), bool))
    with pytest.raises(TypeError, match="typed key"):
        plain(query, key, value, dropout_rate=0.5, dropout_key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(TypeError, match=r"typed key .*got int"):
        plain(query, key, value, dropout_rate=0.5, dropout_key=3)
    with pytest.raises(ValueError, match=r"one key, got keys of shape \(2,\)"):
        plain(query, key, value, dropout_rate=0.5, dropout_key=jax.random.split(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"scale must be a number, not an array of shape \(4, 1, 1\)"):
        plain(query, key, value, scale=jnp.ones((4, 1, 1)))
    with pytest.raises(ValueError, match=r"bias has shape \(1, 3, 5\), but must end in \(2, 3, 4\)"):
        unwrap(masked_softmax)(jnp.zeros((2, 3, 4)), None, jnp.zeros((3, 5)))
    with pytest.raises(TypeError, match=r"dense\(array\) makes one"):
        unwrap(masked_softmax)(jnp.zeros((2, 3, 4)), jnp.ones((3, 4), bool))
    with pytest.raises(ValueError, match="one floating-point dtype, got int32"):
        plain(*(x.astype(jnp.int32) for x in (query, key, value)))


def test_torch_agrees() -> None:
    torch = pytest.importorskip("torch")
    query, key, value = (_normal(i, 2, 40, 3, 8, dtype="float32") for i in range(3))
    ours = jitted(partial(attention, mask=causal(), implementation="tiles"))(query, key, value)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(np.asarray(x)).transpose(1, 2) for x in (query, key, value)), is_causal=True
    )
    np.testing.assert_allclose(ours, theirs.transpose(1, 2).numpy(), atol=2e-6)
