"""The recurrence: its gradient against that of the plain scan, its weight product, and cells against their papers."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import QUICK, jitted
from jax.tree_util import Partial

from jaxseq.ops import cells, gru_reset_before, recurrence, recurrence_reference, recurrence_with_projection

B, T, F = 3, 7, 6
IDS = np.array([[1, 1, 2, 2, 1, 1, 1], [0, 3, 0, 3, 4, 0, 0], [0, 0, 0, 0, 0, 0, 0]], np.int32)


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


def remembering(state: Remembering, x, r) -> Remembering:
    """Puts out a sum, and keeps one of its terms and the last input in the state."""
    return Remembering(jnp.tanh(x[0] + r[0] - 0.5 * state.x), x[0])


def products(scale, state: cells.Hidden, x, r) -> cells.Hidden:
    """A cell of one's own in five lines, with a parameter of its own and a product of the input and ``h R``."""
    gate = cells.sigmoid(x[0] + r[0])
    return cells.Hidden(gate * jnp.sin(scale * state.h) + (1 - gate) * x[1] * r[1])


def scaled(scale, state: cells.Hidden, x, r) -> cells.Hidden:
    """A cell whose parameter's gradient reads what its Jacobian does not."""
    return cells.Hidden(jnp.tanh(scale * x[0] + scale * r[0]))


def normed(gain, state: cells.Hidden, x, r) -> cells.Hidden:
    """A cell that mixes its units."""
    both = jnp.concatenate([x[0] + r[0], r[1]])
    both = (both - both.mean()) * jax.lax.rsqrt(both.var() + 1)
    left, right = jnp.split(both, 2)
    return cells.Hidden(jnp.tanh(gain * left + x[1]) + 0.5 * right * state.h)


OWN = {
    "own-norm": Case(lambda own: Partial(normed, own), (F,), 2, cells.Hidden),
    "own-state": Case(lambda own: remembering, (0,), 1, Remembering),
    "own-products": Case(lambda own: Partial(products, own), (F,), 2, cells.Hidden),
    "own-on-inputs": Case(lambda own: Partial(scaled, own), (F,), 1, cells.Hidden),
    "own-closed-over": Case(lambda own: lambda state, x, r: scaled(own, state, x, r), (F,), 1, cells.Hidden),
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
        last, ys = run(case.bind(own), state, x, R, segment_ids=segment_ids, **options)
        mixed = jnp.sin(ys * jnp.arange(ys.size, dtype=ys.dtype).reshape(ys.shape)).sum()
        return mixed + sum((leaf**2).sum() for leaf in last)

    return function


def cases() -> Iterator[Any]:
    """Every cell with one head and two, without and with segment ids; most of them are further options."""
    for name in (*CELLS, *OWN):
        for heads in (1, 2):
            for ids in (None, IDS):
                ordinary = name == "lstm" if ids is None else heads == 1 or name in ("gru", "lstm", "own-norm")
                marks = () if ordinary else pytest.mark.full
                yield pytest.param(
                    name, heads, ids, marks=marks, id=f"{name}-{heads}-{'whole' if ids is None else 'ragged'}"
                )


@pytest.mark.parametrize(("name", "heads", "ids"), list(cases()))
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


@pytest.mark.parametrize("groups", [1, 2, pytest.param(3, marks=pytest.mark.full)])
def test_groups_of_rows_give_the_same(groups: int, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxseq.ops.row_groups.count_cores", lambda: groups)
    monkeypatch.setattr("jaxseq.ops.row_groups.MIN_ROWS", 1)
    case, ids = CELLS["lstm"], np.concatenate([IDS, IDS[:2]])
    args = arguments(case, batch=(5,))
    want, got = jitted(lambda *a: [jax.value_and_grad(scalar(case, run, ids), (0, 1, 2, 3))(*a) for run in RUNS])(*args)
    close(got, want)


RUNS = recurrence_reference, recurrence


@pytest.mark.parametrize(
    ("name", "residuals"),
    [
        ("elman-tanh", "chunks"),
        pytest.param("peephole-lstm", "activations", marks=pytest.mark.full),
        pytest.param("own-norm", "activations", marks=pytest.mark.full),
    ],
)
def test_forward_mode_and_second_derivatives_are_open(name: str, residuals: str, x64: None) -> None:
    case = {**CELLS, **OWN}[name]
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


@pytest.mark.full
def test_jacobians_and_hessians_are_open(x64: None) -> None:
    case = CELLS["elman-tanh"]
    own, x, R, state = arguments(case, batch=(1,), time=3)
    functions = [scalar(case, run) for run in (recurrence, recurrence_reference)]

    def derivatives(R, function):
        of = lambda R: function(own, x, R, state)  # noqa: E731
        return jax.jacfwd(of)(R), jax.hessian(of)(R)

    close(*jitted(lambda R: [derivatives(R, f) for f in functions])(R))


@pytest.mark.full
@pytest.mark.parametrize(("name", "residuals"), [("gru", "activations"), ("peephole-lstm", "chunks")])
def test_derivatives_with_constant_weights_are_those_of_the_plain_scan(name: str, residuals: Any, x64: None) -> None:
    """By the state and by the input alone: several tangents at once, reverse mode, and reverse over forward."""
    case = CELLS[name]
    own, x, R, state = arguments(case, batch=(1,), time=3)

    def derivatives(function: Callable, state: Any, x: jax.Array) -> tuple:
        of = lambda state, x: function(own, x, R, state)  # noqa: E731
        forward = jax.jacfwd(of, (0, 1))
        return forward(state, x), jax.jacrev(of, (0, 1))(state, x), jax.jacrev(forward)(state, x)

    functions = scalar(case, residuals=residuals), scalar(case, recurrence_reference)
    fast, plain = jitted(lambda state, x: [derivatives(f, state, x) for f in functions])(state, x)
    close(fast, plain)
    close(fast[0], fast[1])


@pytest.mark.full
def test_tangents_of_the_state_share_what_does_not_depend_on_them() -> None:
    """A product of R with the state and one with all tangents, and none with tangents of the weights."""
    case = CELLS["elman-tanh"]
    own, x, R, state = arguments(case, batch=(1,), time=1)
    jaxpr = jax.make_jaxpr(jax.jacfwd(lambda state: scalar(case)(own, x, R, state)))(state).jaxpr
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general" and e.invars[1].aval.shape == (F, F)]
    rows = sorted(math.prod(e.invars[0].aval.shape[:-1]) for e in products)
    assert rows == [1, F], rows


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
def test_no_loop_over_steps_carries_a_gradient_of_the_weights(name: str, heads: int) -> None:
    size = F // heads
    weights = {(heads, size, CELLS[name].gates, size), (heads, size, size), (size, size), (1, size, size)}
    assert weights & set(carried_by_scans(gradient_jaxpr(name, recurrence_reference, heads))), "the test cannot fail"
    carried = carried_by_scans(gradient_jaxpr(name, recurrence, heads))
    assert (B, F) in carried and not weights & set(carried), carried


@pytest.mark.parametrize("heads", [1, pytest.param(2, marks=pytest.mark.full)])
def test_vmap_is_the_batched_program(heads: int) -> None:
    """No product and no sum for each example: what is compiled does the same work as with a batch."""
    case, D = CELLS["lstm"], 5
    _, _, R, state = arguments(case, heads, batch=(9,), time=40)
    xs, kernel, bias = (jnp.asarray(np.random.default_rng(1).normal(size=s)) for s in ((9, 40, D), (D, 4 * F), (4 * F)))

    def mean(R: jax.Array, kernel: jax.Array, bias: jax.Array, mapped: bool) -> jax.Array:
        one = lambda xs, state: recurrence_with_projection(cells.lstm, state, xs, kernel, bias, R)[1]  # noqa: E731
        return (jax.vmap(one) if mapped else one)(xs, state).mean()

    programs = [jax.jit(jax.grad(functools.partial(mean, mapped=m), (0, 1, 2))).lower(R, kernel, bias) for m in (0, 1)]
    batched, mapped = ([line.split(" = stablehlo.")[-1] for line in p.as_text().splitlines()] for p in programs)
    products = [sorted(line.split(",", 2)[-1] for line in text if "dot_general" in line) for text in (batched, mapped)]
    assert len(products[0]) >= 5 and products[0] == products[1]
    compiler_options = QUICK
    close(*(p.compile(compiler_options)(R, kernel, bias) for p in programs), 1e-5)


@pytest.mark.full
def test_vmap_over_anything_gives_the_same(x64: None) -> None:
    """Mapped weights, per-example gradients and forward mode, for which nothing is merged."""
    case = CELLS["gru"]
    own, x, R, state = arguments(case)
    function = scalar(case)
    per_example = jax.grad(lambda own, R, x, state: function(own, x, R, state), (0, 1, 2))
    along = jnp.ones((2, *R.shape))
    steps = jnp.asarray([0.5, 2.0])

    def check(own, x, R, state):
        mapped = (
            jax.vmap(per_example, (None, None, 0, 0))(own, R, x[:, None], jax.tree.map(lambda s: s[:, None], state)),
            jax.vmap(lambda c: function(own, x, c * R, state))(steps),
            jax.vmap(lambda d: jax.jvp(lambda R: function(own, x, R, state), (R,), (d,))[1])(along),
        )
        rows = [per_example(own, R, x[b : b + 1], jax.tree.map(lambda s: s[b : b + 1], state)) for b in range(B)]  # noqa: B023
        wanted = (
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows),
            jnp.stack([function(own, x, c * R, state) for c in steps]),
            jnp.stack([jax.jvp(lambda R: function(own, x, R, state), (R,), (d,))[1] for d in along]),
        )
        return mapped, wanted

    close(*jitted(check)(own, x, R, state))


@pytest.mark.parametrize("name", ["lstm", pytest.param("gru", marks=pytest.mark.full)])
def test_chunks_with_a_rest_are_the_plain_scan(name: str, x64: None) -> None:
    """37 steps: two whole chunks and a rest, the projection inside, documents and padding across their ends."""
    case, D, time = {**CELLS, **OWN}[name], 5, 37
    rng = np.random.default_rng(2)
    own, _, R, state = arguments(case, batch=(2, 2), time=1)
    xs, kernel, bias = (
        jnp.asarray(0.7 * rng.normal(size=s)) for s in ((2, 2, time, D), (D, case.gates * F), case.gates * F)
    )
    ids = jnp.asarray(np.repeat(rng.integers(0, 3, (2, 2, 13)), 3, axis=-1)[..., :time], jnp.int32)

    def both(own, xs, kernel, bias, R, state):
        def loss(*args, **options):
            own, xs, kernel, bias, R, state = args
            last, ys = recurrence_with_projection(
                case.bind(own), state, xs, kernel, bias, R, segment_ids=ids, **options
            )
            return jnp.sin(ys * jnp.arange(ys.size, dtype=ys.dtype).reshape(ys.shape)).sum() + (last.h**2).sum()

        options = ({"implementation": "reference"}, {}, {"residuals": "chunks"})
        return [
            jax.value_and_grad(functools.partial(loss, **o), range(6))(own, xs, kernel, bias, R, state) for o in options
        ]

    want, *others = jitted(both)(own, xs, kernel, bias, R, state)
    for got in others:
        close(got, want)


def test_an_infinite_state_is_forgotten_at_a_document_start(x64: None) -> None:
    case = CELLS["lstm"]
    _, x, R, state = arguments(case, batch=(1,))
    ids = jnp.asarray([[1, 1, 2, 2, 2, 2, 2]])
    run = lambda x: recurrence(cells.lstm, state, x, R, segment_ids=ids)[1][:, 2:].sum()  # noqa: E731
    slope = jitted(jax.value_and_grad(run))
    found, wanted = (slope(x.at[:, 0, 1].set(v)) for v in (jnp.inf, 0.0))
    close(found, wanted)


@pytest.mark.parametrize(
    ("time", "residuals"),
    [(0, "activations"), (1, "chunks"), (2, "activations")]
    + [pytest.param(*option, marks=pytest.mark.full) for option in ((0, "chunks"), (1, "activations"), (2, "chunks"))],
)
def test_the_shortest_sequences_work(time: int, residuals: str, x64: None) -> None:
    case = CELLS["lstm"]
    args = arguments(case, time=time)
    functions = scalar(case, residuals=residuals), scalar(case, recurrence_reference)
    close(*jitted(lambda *args: [jax.value_and_grad(f, (1, 2, 3))(*args) for f in functions])(*args))


@pytest.mark.full
def test_the_projection_and_its_gradient_never_exist_whole() -> None:
    """Memory is about one array per gate and per part of the state; with residuals="chunks", a fraction of one."""
    batch, time, size = 4, 512, 16
    rng = np.random.default_rng(0)
    shapes = (batch, time, size), (size, 4 * size), (4 * size,), (1, size, 4, size)
    args = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
    zeros = jnp.zeros((batch, size))

    def held(**options: Any) -> float:
        def loss(*args):
            return recurrence_with_projection(cells.lstm, cells.LSTMState(zeros, zeros), *args, **options)[1].sum()

        memory = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*args).compile().memory_analysis()
        return memory.temp_size_in_bytes / args[0].nbytes

    assert held() < 9 and held(residuals="chunks") < 4, (held(), held(residuals="chunks"))


def test_half_precision_weights_keep_the_state_wide() -> None:
    case = CELLS["gru"]
    own, x, R, state = arguments(case)
    low = jnp.bfloat16

    def loss(*args):
        own, x, R, state = args
        last, ys = recurrence(case.bind(own), state, x, R)
        return last.h.sum() + ys.astype(jnp.float32).sum(), (last, ys)

    run = jitted(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
    (_, (last, ys)), gradients = run(own, x.astype(low), R.astype(low), state)
    (_, (want_last, want_ys)), wanted = run(own, x, R, state)
    assert last.h.dtype == jnp.float32 and ys.dtype == low
    assert [g.dtype for g in jax.tree.leaves(gradients)] == [jnp.float32, low, low, jnp.float32]
    close((last, ys.astype(jnp.float32)), (want_last, want_ys), 0.03)
    close(jax.tree.map(lambda g: g.astype(jnp.float32), gradients), wanted, 0.1)


def test_errors_name_the_value(unchecked: None) -> None:
    _, x, R, state = arguments(CELLS["lstm"])
    run = functools.partial(recurrence, cells.lstm)
    with pytest.raises(ValueError, match=r"R of shape \(2, 6, 4, 6\).*x of shape \(3, 7, 4, 6\)"):
        run(state, x, jnp.concatenate([R, R]))
    with pytest.raises(ValueError, match=r"state of shape \(2, 6\).*needs \(3, 6\)"):
        run(jax.tree.map(lambda s: s[:2], state), x, R)
    with pytest.raises(ValueError, match=r"residuals='everything'; known: activations, chunks"):
        run(state, x, R, residuals="everything")


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
        last, ys = gru_reset_before(state, x, R[0])
    else:
        last, ys = recurrence(case.bind(own), state, x, R)
    for b in range(B):
        want = on_paper(name, *map(np.asarray, (own, x[b], R[0], state.h[b], state[-1][b])))
        close(ys[b], want, 1e-12)
        close(last.h[b], want[-1], 1e-12)


def test_reset_before_has_the_laws_of_the_others(x64: None) -> None:
    _, x, R, state = arguments(CELLS["gru"])
    run = jitted(gru_reset_before)
    _, packed = run(jax.tree.map(lambda s: s[:1], state), x[:1], R[0], segment_ids=jnp.asarray(IDS[:1]))
    fresh = cells.Hidden(jnp.zeros((1, F)))
    for part, begin in ((slice(0, 2), cells.Hidden(state.h[:1])), (slice(2, 4), fresh), (slice(4, 7), fresh)):
        close(packed[:, part], run(begin, x[:1, part], R[0])[1], 1e-12)


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
    _, ys = recurrence(case.bind(jnp.asarray(own)), state, jnp.asarray(x), jnp.asarray(R))
    close(ys, want.numpy(), 1e-5)


@pytest.mark.parametrize("residuals", ["activations", "chunks"])
@pytest.mark.parametrize("time", [0, 1, 20])
def test_vmap_over_no_rows_gives_no_rows(time: int, residuals: Any) -> None:
    """Values and gradients; the sizes of the parts cannot be computed from a merged axis of size 0."""
    case = CELLS["elman-tanh"]
    _, x, R, state = arguments(case, batch=(0, 2), time=time)
    ids = jnp.ones(x.shape[:-2], jnp.int32)

    def run(state: Any, x: jax.Array, R: jax.Array, ids: jax.Array) -> Any:
        return recurrence(case.bind(None), state, x, R, segment_ids=ids, residuals=residuals)

    def loss(state: Any, x: jax.Array, R: jax.Array) -> Any:
        last, ys = jax.vmap(run, (0, 0, None, 0))(state, x, R, ids)
        return ys.sum() + last.h.sum(), (last, ys)

    gradients, (last, ys) = jax.eval_shape(jax.grad(loss, (0, 1, 2), has_aux=True), state, x, R)
    assert ys.shape == (0, 2, time, F) and last.h.shape == (0, 2, F)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, (state, x, R))
