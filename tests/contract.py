"""The contract of every core, as laws (jaxseq/cores/core.py); tests/cores/test_contract.py holds all cores to them.

A law is a function of a ``Subject``: a core at one precision, with random parameters and one compiled function
which gives everything a law can be about. All laws use the same few shapes, so little is compiled.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from compilation import jitted

from jaxseq.cores import Core

BATCH, TIME, WIDTH, PIECE = 4, 12, 8, 4

# Ids used twice, a change of id at 4 and 8, padding in the middle and at either end, a row of nothing but padding.
IDS = np.array(
    [
        [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1],
        [0, 0, 3, 3, 0, 3, 3, 1, 0, 1, 2, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [5, 5, 0, 0, 0, 0, 6, 6, 6, 7, 7, 7],
    ],
    np.int32,
)


class Ran(NamedTuple):
    """What a stretch gives, and the gradients of a random function of it (inexact leaves of the carry only)."""

    carry: Any
    ys: Any
    d_params: Any
    d_carry: list
    d_xs: Any


class Subject:
    """A core at one precision, ``make(dtype=..., param_dtype=...)``, with random parameters of numpy arrays."""

    def __init__(self, make: Callable[..., Core], dtype: str, param_dtype: str) -> None:
        self.core = make(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype))
        self.dtype, self.param_dtype, self.name = dtype, param_dtype, str(make)
        self.traces: Counter = Counter()
        with self.precision():
            shapes = jax.eval_shape(self.core.init, jax.random.key(0), self.core.initial_carry((1,)), self.xs(0)[:1])
        self.params = _filled(shapes, seed=7, scale=0.4)
        forms: dict[str, Callable] = {"batched": self.core.apply, "vmapped": self._vmapped}
        self.runs = {form: jitted(partial(self._run, form, apply)) for form, apply in forms.items()}

    def precision(self) -> AbstractContextManager:
        """Double precision is switched on for float64 alone."""
        return jax.enable_x64(self.param_dtype == "float64")

    def xs(self, seed: int, time: int = TIME) -> np.ndarray:
        """Random inputs."""
        return np.random.default_rng(seed).normal(size=(BATCH, time, WIDTH)).astype(jnp.dtype(self.dtype))

    def fresh(self) -> Any:
        """A carry before anything was seen, with room for all of it."""
        with self.precision():
            return jax.tree.map(np.asarray, self.core.initial_carry((BATCH,), PIECE + TIME))

    def carry(self, seed: int = 3) -> Any:
        """A carry that a stretch of document 1 has left: no zeros, and nothing that no sequence leads to."""
        return self(self.fresh(), self.xs(seed, PIECE), np.ones((BATCH, PIECE), np.int32)).carry

    def __call__(
        self, carry: Any, xs: Any, ids: Any, d_carry: list | None = None, d_ys: Any = None, run: str = "batched"
    ) -> Ran:
        """Runs a stretch, and its gradient for the given cotangents (zeros unless given)."""
        if d_carry is None:
            d_carry = [np.zeros_like(leaf) for leaf in _inexact(carry)]
        if d_ys is None:
            d_ys = np.zeros((*xs.shape[:-1], self.core.features), xs.dtype)
        with self.precision():
            return jax.device_get(self.runs[run](self.params, carry, xs, ids, d_carry, d_ys))

    def cotangents(self, carry: Any, time: int = TIME, seed: int = 5) -> tuple[list, np.ndarray]:
        """Random cotangents of the carry's inexact leaves and of the outputs."""
        return _filled(_inexact(carry), seed), self.xs(seed + 1, time)

    def cast(self, tree: Any) -> Any:
        """The same numbers in the subject's own precision (for float64, where all is alike)."""
        leaves = [np.asarray(leaf).astype(self.dtype) for leaf in _inexact(tree)]
        return _with_inexact(tree, leaves)

    def _vmapped(self, params: Any, carry: Any, xs: Any, ids: Any) -> Any:
        return jax.vmap(self.core.apply, (None, 0, 0, None if ids is None else 0))(params, carry, xs, ids)

    def _run(
        self, form: str, apply: Callable, params: Any, carry: Any, xs: Any, ids: Any, d_carry: list, d_ys: Any
    ) -> Ran:
        self.traces[form, xs.shape, ids is None] += 1

        def function(params: Any, floats: list, xs: Any) -> tuple:
            after, ys = apply(params, _with_inexact(carry, floats), xs, ids)
            return (_inexact(after), ys), after

        out: Any
        after: Any
        out, pullback, after = jax.vjp(function, params, _inexact(carry), xs, has_aux=True)
        return Ran(after, out[1], *pullback((d_carry, d_ys)))


def check_splitting(subject: Subject, ids: Any, tolerance: float, gradient_tolerance: float, seed: int = 0) -> None:
    """Outputs, final carry and gradients of the pieces are those of the whole, wherever it is cut."""
    carry, xs = subject.carry(), subject.xs(seed)
    d_carry, d_ys = subject.cotangents(carry)
    whole = subject(carry, xs, ids, d_carry, d_ys)
    assert any(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(whole.d_params))
    random = list(np.random.default_rng(seed).permutation([1, 1, 1, 1, PIECE, PIECE]))
    for lengths in ([PIECE] * 3, [1] * TIME, random, [1, PIECE, PIECE, 1, 1, 1]):
        pieces = _in_pieces(subject, lengths, carry, xs, ids, d_carry, d_ys)
        what = f"split into {list(map(int, lengths))}"
        close(pieces[:2], whole[:2], tolerance, what)
        close(pieces[2:], whole[2:], gradient_tolerance, f"gradient, {what}")


def check_padding(subject: Subject, tolerance: float) -> None:
    """NaN at padding, and what the loss says of outputs there, change nothing; outputs there are zero."""
    carry, xs = subject.carry(), subject.xs(1)
    d_carry, d_ys = subject.cotangents(carry)
    real = (IDS != 0)[..., None]
    clean = subject(carry, np.where(real, xs, 0), IDS, d_carry, np.where(real, d_ys, 0))
    close(subject(carry, np.where(real, xs, np.nan).astype(xs.dtype), IDS, d_carry, d_ys), clean, 0.0, "NaN padding")
    assert not np.where(real, 0, clean.ys).any() and not np.where(real, 0, clean.d_xs).any()
    nothing = _row(2, (clean.carry, clean.d_carry)), (_row(2, carry), [d[2] for d in d_carry])
    close(nothing[0][1], nothing[1][1], 0.0, "gradient over padding alone")
    close(nothing[0][0], nothing[1][0], 0.0, "the carry after padding alone")

    short, ids = xs[:, :PIECE], np.array([[1, 1, 1, 1], [1, 2, 2, 2], [1, 1, 2, 1], [1, 2, 3, 3]], np.int32)
    alone = subject(carry, short, ids, d_carry, d_ys[:, :PIECE])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        places = np.stack([np.sort(rng.choice(TIME, PIECE, replace=False)) for _ in range(BATCH)])
        padded = [_placed(places, a) for a in (short, ids, d_ys[:, :PIECE])]
        spread = subject(carry, padded[0], padded[1], d_carry, padded[2])
        taken = spread._replace(ys=_taken(places, spread.ys), d_xs=_taken(places, spread.d_xs))
        close(taken, alone, tolerance, f"padding put in between, at {places.tolist()}")


def check_documents(subject: Subject, tolerance: float) -> None:
    """Documents packed in one row are each what they are alone, gradients too."""
    fresh, xs = subject.fresh(), subject.xs(2)
    _, d_ys = subject.cotangents(fresh)
    bounds = np.array([[0, 4, 8, 12], [0, 1, 2, 12], [0, 5, 11, 12], [0, 3, 4, 12]])
    documents = np.stack([np.repeat([0, 1, 2], np.diff(b)) for b in bounds])
    ids = np.array([7, 2, 7], np.int32)[documents]
    packed = subject(fresh, xs, ids, None, d_ys)
    total = jax.tree.map(np.zeros_like, packed.d_params)
    for document in range(3):
        mine = documents == document
        order = np.argsort(~mine, axis=1, kind="stable")
        real = np.take_along_axis(mine, order, 1)
        d_alone = np.where(real[..., None], _taken(order, d_ys), 0)
        alone = subject(fresh, _taken(order, xs), real.astype(np.int32), None, d_alone)
        for name in ("ys", "d_xs"):
            got, want = _taken(order, getattr(packed, name))[real], getattr(alone, name)[real]
            close(got, want, tolerance, f"{name} of document {document}")
        total = jax.tree.map(np.add, total, alone.d_params)
    close(packed.d_params, total, tolerance, "the sum of the documents' gradients")


def check_batch(subject: Subject, tolerance: float) -> None:
    """One example at a time under vmap, one example by itself, and two batch dims give what the batch gives."""
    carry, xs = subject.carry(), subject.xs(1)
    d_carry, d_ys = subject.cotangents(carry)
    inputs = carry, xs, IDS, d_carry, d_ys
    batch = subject(*inputs)
    close(subject(*inputs, run="vmapped"), batch, tolerance, "vmap")

    def in_rows(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), tree)

    rows = subject(*map(in_rows, inputs))
    want = Ran(*(value if name == "d_params" else in_rows(value) for name, value in batch._asdict().items()))
    close(rows, want, tolerance, "two batch dims")


def check_causality(subject: Subject) -> None:
    """The Jacobian of outputs by inputs is zero ahead of time and across documents, and not behind.

    Row t of the Jacobian is seen through one random cotangent: it vanishes only where the whole block does.
    """
    carry, xs = subject.carry(), subject.xs(1)
    _, d_ys = subject.cotangents(carry)
    previous = np.concatenate([IDS[:, :1], IDS[:, :-1]], 1)
    for t in range(1, TIME):  # the id of the last real position
        previous[:, t] = np.where(previous[:, t] == 0, previous[:, t - 1], previous[:, t])
    document = np.cumsum((previous != IDS) & (previous != 0) & (IDS != 0), 1)
    rows = [subject(carry, xs, IDS, None, np.where(np.arange(TIME)[:, None] == t, d_ys, 0)).d_xs for t in range(TIME)]
    jacobian = np.stack(rows, 1)
    depends = (jacobian != 0).any(-1)
    real = IDS != 0
    allowed = np.tril(np.ones((TIME, TIME), bool)) & (document[:, :, None] == document[:, None, :])
    allowed &= real[:, :, None] & real[:, None, :]
    assert not (depends & ~allowed).any(), np.argwhere(depends & ~allowed)
    before = allowed & ~np.eye(TIME, dtype=bool)
    assert depends[before].mean() > 0.3, "hardly anything reaches a later position"


def check_one_document(subject: Subject, other: Subject, tolerance: float) -> None:
    """No ids mean one document; ``other`` is the subject at another precision."""
    xs = subject.xs(1)
    d_carry, d_ys = subject.cotangents(subject.fresh())
    ones = np.ones((BATCH, TIME), np.int32)
    want = other(other.fresh(), *other.cast((xs, ones, d_carry, d_ys)))
    close(subject(subject.fresh(), xs, None, d_carry, d_ys), want, tolerance, "without ids")


def check_compiles_once(subject: Subject) -> None:
    """Ragged data of one shape needs one compilation."""
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, 4, IDS.shape).astype(np.int32)
        subject(subject.carry(), subject.xs(seed), ids)
    assert subject.traces["batched", (BATCH, TIME, WIDTH), False] == 1, subject.traces


def check_low_precision(low: Subject, exact: Subject, tolerance: float, gradient_tolerance: float) -> None:
    """bfloat16 computation stays near; parameters, their gradients and recurrent states stay float32."""
    carry, xs = low.carry(), low.xs(1)
    d_carry, d_ys = low.cotangents(carry)
    got = low(carry, xs, IDS, d_carry, d_ys)
    want = exact(*exact.cast((carry, xs, IDS, d_carry, d_ys)))
    assert got.ys.dtype == jnp.bfloat16
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got.d_params))
    assert jax.tree.map(lambda a: a.dtype, got.carry) == jax.tree.map(lambda a: a.dtype, carry)
    close(got[:2], want[:2], tolerance, "in bfloat16")
    close(got[2:], want[2:], gradient_tolerance, "gradients in bfloat16")


def check_nothing(core: Core, params: Any) -> None:
    """A stretch of no length changes nothing."""
    carry, xs = core.initial_carry((BATCH,), PIECE + TIME), jnp.zeros((BATCH, 0, WIDTH))
    run = jitted(core.apply)
    after, ys = run(params, carry, xs, jnp.zeros((BATCH, 0), jnp.int32))
    close(after, carry, 0.0, "the carry after nothing")
    assert ys.shape == run(params, carry, xs)[1].shape == (BATCH, 0, core.features)


def check_initial_carry(core: Core) -> None:
    """It works unbound, for any batch dims, and every leaf leads with them."""
    for context in (0, 7):
        one = core.initial_carry((), context)
        for batch in ((3,), (2, 3)):
            for leaf, like in zip(
                jax.tree.leaves(core.initial_carry(batch, context)), jax.tree.leaves(one), strict=True
            ):
                assert leaf.shape == (*batch, *like.shape) and leaf.dtype == like.dtype


def close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """Leaf by leaf, to ``tolerance`` times the leaf's largest number (1 at least)."""
    assert str(jax.tree.structure(actual)) == str(jax.tree.structure(expected)), what
    for (path, a), e in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        where = f"{what}: {jax.tree_util.keystr(path)}"
        assert a.shape == e.shape, f"{where}: {a.shape} and {e.shape}"
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert np.isfinite(e).all(), where
        scale = max(1.0, np.abs(e).max(initial=0.0))
        error = np.abs(a - e).max(initial=0.0) / scale
        assert error <= tolerance, f"{where}: off by {error:.3g}, {tolerance:.3g} allowed"


def _in_pieces(
    subject: Subject, lengths: Sequence[int], carry: Any, xs: Any, ids: Any, d_carry: list, d_ys: Any
) -> Ran:
    """The pieces one after another; then their gradients from the last to the first, over the cuts."""
    ends = np.cumsum(lengths)
    parts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    cut = [None if ids is None else ids[:, part] for part in parts]
    carries, outs, d_params, d_xs = [carry], [], None, []
    for part, part_ids in zip(parts, cut, strict=True):
        after, ys, *_ = subject(carries[-1], xs[:, part], part_ids)
        carries.append(after)
        outs.append(ys)
    for part, part_ids, before in reversed(list(zip(parts, cut, carries, strict=False))):
        ran = subject(before, xs[:, part], part_ids, d_carry, d_ys[:, part])
        d_carry = ran.d_carry
        d_params = ran.d_params if d_params is None else jax.tree.map(np.add, d_params, ran.d_params)
        d_xs.append(ran.d_xs)
    return Ran(carries[-1], np.concatenate(outs, 1), d_params, d_carry, np.concatenate(d_xs[::-1], 1))


def _inexact(tree: Any) -> list:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _with_inexact(tree: Any, leaves: list) -> Any:
    rest = iter(leaves)
    return jax.tree.map(lambda leaf: next(rest) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, tree)


def _filled(tree: Any, seed: int, scale: float = 1.0) -> Any:
    """Random numbers in every inexact leaf: zeros hide mistakes."""
    rng = np.random.default_rng(seed)
    return _with_inexact(tree, [(scale * rng.normal(size=leaf.shape)).astype(leaf.dtype) for leaf in _inexact(tree)])


def _row(index: int, tree: Any) -> Any:
    return jax.tree.map(lambda a: a[index], tree)


def _taken(places: np.ndarray, a: np.ndarray) -> np.ndarray:
    return a[np.arange(len(a))[:, None], places]


def _placed(places: np.ndarray, a: np.ndarray) -> np.ndarray:
    out = np.zeros((a.shape[0], TIME, *a.shape[2:]), a.dtype)
    out[np.arange(len(a))[:, None], places] = a
    return out
