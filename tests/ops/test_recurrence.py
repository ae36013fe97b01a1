"""The recurrence: its gradient against that of the plain scan, its weight product, and cells against their papers."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxseq.ops import cells, gru_reset_before, recurrence, recurrence_reference

B, T, F = 3, 7, 6
IDS = np.array([[1, 1, 2, 2, 1, 1, 1], [0, 3, 0, 3, 4, 0, 0], [0, 0, 0, 0, 0, 0, 0]], np.int32)


# Compiling is what these tests cost.
jitted = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case(NamedTuple):
    """A cell, what makes it (its own parameters bound), its number of gates and its state."""

    bind: Callable[[Any], Callable]
    own: tuple[int, ...]
    gates: int
    state: Any


CELLS = {
    "elman-tanh": Case(lambda own: cells.elman_tanh, (0,), 1, cells.Hidden),
    "elman-relu": Case(lambda own: cells.elman_relu, (0,), 1, cells.Hidden),
    "elman-identity": Case(lambda own: cells.elman_identity, (0,), 1, cells.Hidden),
    "gru": Case(lambda own: Partial(cells.gru, own[0]), (1, F), 3, cells.Hidden),
    "lstm": Case(lambda own: cells.lstm, (0,), 4, cells.LSTMState),
    "peephole-lstm": Case(lambda own: Partial(cells.peephole_lstm, cells.Peepholes(*own)), (3, F), 4, cells.LSTMState),
}


class Remembering(NamedTuple):
    """The state of a cell of one's own: what was put out, and the input behind it."""

    h: jax.Array
    x: jax.Array


def remembering(x, r, state: Remembering) -> Remembering:
    """Puts out a sum, and keeps one of its terms and the last input in the state."""
    return Remembering(jnp.tanh(x[0] + r[0] - 0.5 * state.x), x[0])


def products(scale, x, r, state: cells.Hidden) -> cells.Hidden:
    """A cell of one's own in five lines, with a parameter of its own and a product of the input and ``h R``."""
    gate = cells.sigmoid(x[0] + r[0])
    return cells.Hidden(gate * jnp.sin(scale * state.h) + (1 - gate) * x[1] * r[1])


OWN = {
    "own-state": Case(lambda own: remembering, (0,), 1, Remembering),
    "own-products": Case(lambda own: Partial(products, own), (F,), 2, cells.Hidden),
}


def arguments(case: Case, heads: int = 1, *, batch: tuple[int, ...] = (B,), time: int = T, seed: int = 0) -> tuple:
    """Random (own parameters, x, R, state)."""
    rng = np.random.default_rng(seed)
    size = F // heads
    shapes = case.own, (*batch, time, case.gates, F), (heads, size, case.gates, size)
    state = case.state(*(jnp.asarray(rng.normal(size=(*batch, F))) for _ in case.state._fields))
    return *(jnp.asarray(0.7 * rng.normal(size=shape)) for shape in shapes), state


def scalar(case: Case, run: Callable = recurrence, ids: Any = None, **options) -> Callable:
    """A random function of the outputs and of the last state."""

    def function(own, x, R, state):
        segment_ids = None if ids is None else jnp.asarray(ids)
        last, ys = run(case.bind(own), x, R, state, segment_ids=segment_ids, **options)
        mixed = jnp.sin(ys * jnp.arange(ys.size, dtype=ys.dtype).reshape(ys.shape)).sum()
        return mixed + sum((leaf**2).sum() for leaf in last)

    return function


def close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """All leaves equal, to ``tolerance``."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize("ids", [None, IDS], ids=["whole", "ragged"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", [*CELLS, *OWN])
def test_values_and_gradients_are_those_of_the_plain_scan(name: str, heads: int, ids: Any, x64: None) -> None:
    case = {**CELLS, **OWN}[name]
    args = arguments(case, heads)
    functions = [
        scalar(case, recurrence_reference, ids),
        scalar(case, recurrence, ids),
        *([scalar(case, recurrence, ids, residuals="chunks")] if heads == 1 else []),
    ]
    both = jitted(lambda *args: [jax.value_and_grad(f, (0, 1, 2, 3))(*args) for f in functions])
    want, *others = both(*args)
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(want) if g.size)
    for got in others:
        close(got, want)


@pytest.mark.parametrize("residuals", ["activations", "chunks"])
@pytest.mark.parametrize("name", ["elman-tanh", "peephole-lstm"])
def test_forward_mode_and_second_derivatives_are_open(name: str, residuals: str, x64: None) -> None:
    case = CELLS[name]
    args = arguments(case, batch=(1,), time=3)
    along = arguments(case, batch=(1,), time=3, seed=1)

    def derivatives(function: Callable) -> tuple:
        def slope(*args):
            return jax.jvp(function, args, along)[1]

        gradient = jax.grad(function, (0, 1, 2, 3))
        return slope(*args), jax.jvp(gradient, args, along)[1], jax.grad(slope, (0, 1, 2, 3))(*args)

    functions = scalar(case, residuals=residuals), scalar(case, recurrence_reference)
    fast, plain = jitted(lambda: [derivatives(f) for f in functions])()
    close(fast, plain)
    close(fast[1], fast[2])


def test_jacobians_and_hessians_are_open(x64: None) -> None:
    case = CELLS["elman-tanh"]
    own, x, R, state = arguments(case, batch=(1,), time=3)
    functions = [scalar(case, run) for run in (recurrence, recurrence_reference)]

    def derivatives(R, function):
        of = lambda R: function(own, x, R, state)  # noqa: E731
        return jax.jacfwd(of)(R), jax.hessian(of)(R)

    close(*jitted(lambda R: [derivatives(R, f) for f in functions])(R))


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def carried_by_scans(jaxpr: Any) -> list[tuple[int, ...]]:
    """The shapes of all that scans carry along."""
    shapes = []
    for equation in equations(jaxpr):
        if equation.primitive.name == "scan":
            # What is carried leaves a scan as it leaves its body; everything else is stacked along time.
            pairs = zip(equation.outvars, equation.params["jaxpr"].jaxpr.outvars, strict=True)
            shapes += [after.aval.shape for after, out in pairs if after.aval.shape == out.aval.shape]
    return shapes


def gradient_jaxpr(name: str, run: Callable, heads: int) -> Any:
    case = CELLS[name]
    return jax.make_jaxpr(jax.grad(scalar(case, run), (0, 1, 2, 3)))(*arguments(case, heads)).jaxpr


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", CELLS)
def test_no_scan_carries_a_gradient_of_the_weights(name: str, heads: int) -> None:
    size = F // heads
    weights = {(heads, size, CELLS[name].gates, size), (heads, size, size), (size, size), (1, size, size)}
    assert weights & set(carried_by_scans(gradient_jaxpr(name, recurrence_reference, heads))), "the test cannot fail"
    carried = carried_by_scans(gradient_jaxpr(name, recurrence, heads))
    assert (B, F) in carried and not weights & set(carried), carried


@pytest.mark.parametrize("heads", [1, 2])
def test_vmap_leaves_one_weight_product(heads: int) -> None:
    case, size = CELLS["lstm"], F // heads
    _, x, R, state = arguments(case, heads, batch=(5,))

    def mean(R: jax.Array, x: jax.Array, state: Any) -> jax.Array:
        one = lambda x, state: recurrence(cells.lstm, x, R, state)[1].sum()  # noqa: E731
        return jax.vmap(one)(x, state).mean()

    shapes = [
        variable.aval.shape
        for equation in equations(jax.make_jaxpr(jax.grad(mean))(R, x, state).jaxpr)
        for variable in equation.outvars
    ]
    assert (size, size) in shapes or (heads, size, size) in shapes
    per_example = {(5, *s) for s in (R.shape, (heads, size, size), (size, size), (1, size, size))}
    assert not per_example & set(shapes)
    batched = jax.grad(lambda R: recurrence(cells.lstm, x, R, state)[1].sum() / 5)(R)
    close(jax.grad(mean)(R, x, state), batched, 1e-5)


@pytest.mark.parametrize("residuals", ["activations", "chunks"])
@pytest.mark.parametrize("time", [0, 1, 2])
def test_the_shortest_sequences_work(time: int, residuals: str, x64: None) -> None:
    case = CELLS["lstm"]
    args = arguments(case, time=time)
    functions = scalar(case, residuals=residuals), scalar(case, recurrence_reference)
    close(*jitted(lambda *args: [jax.value_and_grad(f, (1, 2, 3))(*args) for f in functions])(*args))


def test_chunks_take_less_memory() -> None:
    case = CELLS["lstm"]
    args = arguments(case, time=1024, batch=(2,))
    memory = {
        residuals: jax.jit(jax.grad(scalar(case, residuals=residuals), 2))
        .lower(*args)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for residuals in ("activations", "chunks")
    }
    assert memory["chunks"] < 0.75 * memory["activations"], memory


def test_half_precision_weights_keep_the_state_wide() -> None:
    case = CELLS["gru"]
    own, x, R, state = arguments(case)
    low = jnp.bfloat16

    def loss(*args):
        last, ys = recurrence(case.bind(args[0]), *args[1:])
        return last.h.sum() + ys.astype(jnp.float32).sum(), (last, ys)

    run = jitted(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
    (_, (last, ys)), gradients = run(own, x.astype(low), R.astype(low), state)
    (_, (want_last, want_ys)), wanted = run(own, x, R, state)
    assert last.h.dtype == jnp.float32 and ys.dtype == low
    assert [g.dtype for g in jax.tree.leaves(gradients)] == [jnp.float32, low, low, jnp.float32]
    close((last, ys.astype(jnp.float32)), (want_last, want_ys), 0.03)
    close(jax.tree.map(lambda g: g.astype(jnp.float32), gradients), wanted, 0.1)


def test_errors_name_the_value() -> None:
    _, x, R, state = arguments(CELLS["lstm"])
    run = functools.partial(recurrence, cells.lstm)
    with pytest.raises(ValueError, match=r"R of shape \(2, 6, 4, 6\).*x of shape \(3, 7, 4, 6\)"):
        run(x, jnp.concatenate([R, R]), state)
    with pytest.raises(ValueError, match=r"state of shape \(2, 6\).*needs \(3, 6\)"):
        run(x, R, jax.tree.map(lambda s: s[:2], state))
    with pytest.raises(ValueError, match=r"residuals='everything'; known: activations, chunks"):
        run(x, R, state, residuals="everything")
    with pytest.raises(ValueError, match=r"implementation='fast'; known: auto, fused, reference"):
        run(x, R, state, implementation="fast")


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def on_paper(name: str, own: np.ndarray, x: np.ndarray, R: np.ndarray, h: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The papers' equations, one step after another, one example; x is ``[T, G, F]`` and R ``[F, G, F]``."""
    out = []
    for x_t in x:
        r = np.einsum("f,fgk->gk", h, R)
        if name == "elman-tanh":
            h = np.tanh(x_t[0] + r[0])
        elif name == "gru":
            reset, update = sigmoid(x_t[0] + r[0]), sigmoid(x_t[1] + r[1])
            h = (1 - update) * np.tanh(x_t[2] + reset * (r[2] + own[0])) + update * h
        elif name == "gru-reset-before":
            reset, update = sigmoid(x_t[0] + r[0]), sigmoid(x_t[1] + r[1])
            h = (1 - update) * np.tanh(x_t[2] + (reset * h) @ R[:, 2]) + update * h
        else:
            peep = own if name == "peephole-lstm" else np.zeros((3, F))
            i, f = sigmoid(x_t[0] + r[0] + peep[0] * c), sigmoid(x_t[1] + r[1] + peep[1] * c)
            c = f * c + i * np.tanh(x_t[2] + r[2])
            h = sigmoid(x_t[3] + r[3] + peep[2] * c) * np.tanh(c)
        out.append(h)
    return np.stack(out)


@pytest.mark.parametrize("name", ["elman-tanh", "gru", "gru-reset-before", "lstm", "peephole-lstm"])
def test_cells_are_their_papers_equations(name: str, x64: None) -> None:
    case = CELLS["gru" if name == "gru-reset-before" else name]
    own, x, R, state = arguments(case)
    if name == "gru-reset-before":
        last, ys = gru_reset_before(x, R[0], state)
    else:
        last, ys = recurrence(case.bind(own), x, R, state)
    for b in range(B):
        want = on_paper(name, *map(np.asarray, (own, x[b], R[0], state.h[b], state[-1][b])))
        close(ys[b], want, 1e-12)
        close(last.h[b], want[-1], 1e-12)


def test_reset_before_has_the_laws_of_the_others(x64: None) -> None:
    _, x, R, state = arguments(CELLS["gru"])
    _, packed = gru_reset_before(x[:1], R[0], jax.tree.map(lambda s: s[:1], state), segment_ids=jnp.asarray(IDS[:1]))
    fresh = cells.Hidden(jnp.zeros((1, F)))
    for part, begin in ((slice(0, 2), cells.Hidden(state.h[:1])), (slice(2, 4), fresh), (slice(4, 7), fresh)):
        close(packed[:, part], gru_reset_before(x[:1, part], R[0], begin)[1], 1e-12)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_gates_stand_in_torchs_order(name: str) -> None:
    torch = pytest.importorskip("torch")
    case, rng, D = CELLS[name], np.random.default_rng(0), 5
    layer = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name](D, F, batch_first=True)
    w, r, b, b_r = (p.detach().numpy() for p in layer.parameters())
    xs, h, c = (rng.normal(size=s).astype(np.float32) for s in ((B, T, D), (B, F), (B, F)))
    begin = torch.tensor(h)[None], torch.tensor(c)[None]
    with torch.no_grad():
        want, _ = layer(torch.tensor(xs), begin if name == "lstm" else begin[0])
    bias, own = b.copy(), np.zeros((1, F), np.float32)
    if name == "gru":  # torch's second bias stands inside the reset for the candidate, beside the first elsewhere
        bias[: 2 * F] += b_r[: 2 * F]
        own[0] = b_r[2 * F :]
    else:
        bias += b_r
    x = (xs @ w.T + bias).reshape(B, T, case.gates, F)
    R = r.reshape(case.gates, F, F).transpose(2, 0, 1)[None]
    state = case.state(*map(jnp.asarray, (h, c)[: len(case.state._fields)]))
    _, ys = recurrence(case.bind(jnp.asarray(own)), jnp.asarray(x), jnp.asarray(R), state)
    close(ys, want.numpy(), 1e-5)
