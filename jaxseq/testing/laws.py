"""The laws of the contract (jaxseq/cores/core.py), each a function of a ``Subject`` that raises ``ContractError``."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.cores import Core, StateCarry
from jaxseq.precision import at_least_float32
from jaxseq.testing.compilation import jitted
from jaxseq.testing.subject import BATCH, IDS, PIECE, TIME, Result, Subject

LONG = 35
"""Half the length of the long input: beyond the chunks of 16 and 32 positions of the ops, and no multiple of them."""


class ContractError(AssertionError):
    """A core or decoder breaks a law of the contract; the message names the law."""


def law(name: str, advice: str) -> Callable[[Callable], Callable]:
    """Decorates the check of a law: its assertion errors are raised as a ContractError that names the law."""

    def decorate(check: Callable) -> Callable:
        @functools.wraps(check)
        def checked(subject: Subject, *arguments: Any, **options: Any) -> None:
            try:
                check(subject, *arguments, **options)
            except AssertionError as error:
                raise ContractError(f"{subject.name}: {name} law: {error}\n{advice}") from None
            except Exception as error:
                error.add_note(f"(while jaxseq.testing checked the {name} law of {subject.name})")
                raise

        return checked

    return decorate


@law(
    "initial carry",
    "All leaves of initial_carry(batch_shape) must lead with batch_shape, and recurrent states must be zeros.",
)
def check_initial_carry(subject: Subject) -> None:
    """The initial carry works unbound, for any batch dims; every leaf leads with them; states are zeros."""
    core = subject.core

    def zeros(part: StateCarry) -> StateCarry:
        for path, leaf in jax.tree.leaves_with_path(part.state):
            assert not np.asarray(leaf).any(), f"the initial state's leaf {_name(path)} is not zero"
        return part

    with subject.precision():
        for context in (0, 7):
            one = core.initial_carry((), context)
            core.map_states(zeros, one)
            for batch in ((3,), (2, 3)):
                many = core.initial_carry(batch, context)
                wanted = jax.tree.map(
                    lambda leaf, batch=batch: jax.ShapeDtypeStruct((*batch, *leaf.shape), leaf.dtype), one
                )
                chex.assert_trees_all_equal_shapes_and_dtypes(many, wanted)


@law(
    "splitting",
    "The carry must hold all that later outputs depend on, and within a call mix must honour segment_ids: hand them to "
    "its ops (jaxseq.ops.plain_recurrence for a hand-written step).",
)
def check_splitting(
    subject: Subject,
    ids: Any,
    tolerance: float,
    gradient_tolerance: float,
    seed: int = 0,
    splits: Sequence[Sequence[int]] | None = None,
) -> None:
    """Outputs, final carry and gradients of the pieces are those of the whole, wherever it is split."""
    steps = splits is not None and all(length == 1 for lengths in splits for length in lengths)
    carry, xs = subject.carry(steps=steps), subject.xs(seed)
    d_carry, d_ys = subject.cotangents(carry)
    whole = subject(carry, xs, ids, d_carry, d_ys)
    params = jax.tree.leaves(whole.d_params)
    assert not params or any(np.abs(g).max() > 1e-3 for g in params), "the gradients of all parameters are zero"
    if splits is None:
        random = np.random.default_rng(seed).permutation([1, 1, 1, 1, PIECE, PIECE]).tolist()
        splits = ([PIECE] * 3, [1] * TIME, random, [1, PIECE, PIECE, 1, 1, 1])
    for lengths in splits:
        pieces = _in_pieces(subject, lengths, carry, xs, ids, d_carry, d_ys)
        what = f"split into {lengths}"
        close(_values(pieces), _values(whole), tolerance, what)
        close(_gradients(pieces), _gradients(whole), gradient_tolerance, what)


_PADDING = (
    "Padding (id 0) must change nothing at real positions: hold the state there, and let no output there reach later "
    "positions. Ops that take segment_ids do both."
)


@law("padding", _PADDING)
def check_padding_is_ignored(subject: Subject, tolerance: float = 0.0, steps: bool = False) -> None:
    """NaN at padding, and cotangents of the outputs there, change nothing; outputs there are zero."""
    carry, xs = subject.carry(steps=steps), subject.xs(1)
    d_carry, d_ys = subject.cotangents(carry)
    real = (IDS != 0)[..., None]
    clean = subject(carry, np.where(real, xs, 0), IDS, d_carry, np.where(real, d_ys, 0))
    with_nan = subject(carry, np.where(real, xs, np.nan).astype(xs.dtype), IDS, d_carry, d_ys)
    close(with_nan._asdict(), clean._asdict(), tolerance, "NaN at padded positions")
    assert not np.where(real, 0, clean.ys).any(), "outputs at padded positions are not zero"
    assert not np.where(real, 0, clean.d_xs).any(), "gradients of inputs at padded positions are not zero"
    for name, after, before in (("carry", clean.carry, carry), ("d_carry", clean.d_carry, d_carry)):
        close({name: _row(2, after)}, {name: _row(2, before)}, tolerance, "a row of nothing but padding")


@law("padding", _PADDING)
def check_padding_in_between(subject: Subject, tolerance: float) -> None:
    """A sequence with padding inserted has the values and gradients of the sequence without."""
    carry, xs = subject.carry(), subject.xs(1)
    d_carry, d_ys = subject.cotangents(carry)
    short, ids = xs[:, :PIECE], np.array([[1, 1, 1, 1], [1, 2, 2, 2], [1, 1, 2, 1], [1, 2, 3, 3]], np.int32)
    alone = subject(carry, short, ids, d_carry, d_ys[:, :PIECE])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        places = np.stack([np.sort(rng.choice(TIME, PIECE, replace=False)) for _ in range(BATCH)])
        padded = [_placed(places, a) for a in (short, ids, d_ys[:, :PIECE])]
        spread = subject(carry, padded[0], padded[1], d_carry, padded[2])
        taken = spread._replace(ys=_taken(places, spread.ys), d_xs=_taken(places, spread.d_xs))
        close(taken._asdict(), alone._asdict(), tolerance, f"padding put in between, real at {places.tolist()}")


@law(
    "documents",
    "A change of id must reset the state to that of initial_carry, also within a call: hand segment_ids to the ops.",
)
def check_documents(subject: Subject, tolerance: float) -> None:
    """Documents packed in one row have the values and gradients that each of them has alone."""
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
            close({name: got}, {name: want}, tolerance, f"document {document} of a row")
        total = jax.tree.map(np.add, total, alone.d_params)
    close({"d_params": packed.d_params}, {"d_params": total}, tolerance, "the sum over the documents of a row")


@law("batch", "Batch dimensions must not mix: write for any leading ones ([*B, T, D]), and use no axis from the left.")
def check_vmap(subject: Subject, tolerance: float) -> None:
    """``jax.vmap`` over single sequences gives the same results as the batch."""
    inputs, batch = _batch_inputs(subject)
    close(subject(*inputs, run="vmapped")._asdict(), batch._asdict(), tolerance, "jax.vmap over single sequences")


@law("batch", "Batch dimensions must not mix: write for any leading ones ([*B, T, D]), and use no axis from the left.")
def check_two_batch_dims(subject: Subject, tolerance: float) -> None:
    """Two batch dims give the same results as one."""

    def in_rows(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), tree)

    inputs, batch = _batch_inputs(subject)
    rows = subject(*map(in_rows, inputs))
    wanted = {name: value if name == "d_params" else in_rows(value) for name, value in batch._asdict().items()}
    close(rows._asdict(), wanted, tolerance, "two batch dimensions")


def _batch_inputs(subject: Subject) -> tuple[tuple, Result]:
    carry, xs = subject.carry(), subject.xs(1)
    inputs = carry, xs, IDS, *subject.cotangents(carry)
    return inputs, subject(*inputs)


@law("causality", "An output may depend on its own and earlier positions of its own document alone.")
def check_causality(subject: Subject, least_reach: float = 0.3) -> None:
    """The Jacobian of outputs by inputs is zero for later inputs and other documents, and mostly nonzero otherwise.

    Row t of the Jacobian is seen through one random cotangent: it vanishes only where the whole block does.
    """
    carry, xs = subject.carry(), subject.xs(1)
    _, d_ys = subject.cotangents(carry)
    previous = np.concatenate([IDS[:, :1], IDS[:, :-1]], 1)
    for t in range(1, TIME):  # the id of the last real position
        previous[:, t] = np.where(previous[:, t] == 0, previous[:, t - 1], previous[:, t])
    document = np.cumsum((previous != IDS) & (previous != 0) & (IDS != 0), 1)
    rows = [subject(carry, xs, IDS, None, np.where(np.arange(TIME)[:, None] == t, d_ys, 0)).d_xs for t in range(TIME)]
    depends = (np.stack(rows, 1) != 0).any(-1)
    real = IDS != 0
    allowed = np.tril(np.ones((TIME, TIME), bool)) & (document[:, :, None] == document[:, None, :])
    allowed &= real[:, :, None] & real[:, None, :]
    wrong = np.argwhere(depends & ~allowed).tolist()
    assert not wrong, f"outputs depend on inputs they must not see, [row, output, input]: {wrong[:5]}"
    reach = depends[allowed & ~np.eye(TIME, dtype=bool)].mean()
    assert reach >= least_reach, f"only {reach:.0%} of the outputs depend on the earlier inputs of their document"


@law("one document", "Without segment_ids a call must compute what ids of 1 everywhere give.")
def check_one_document(subject: Subject, other: Subject, tolerance: float) -> None:
    """No ids mean one document; ``other`` is the subject at another precision."""
    xs = subject.xs(1)
    d_carry, d_ys = subject.cotangents(subject.fresh())
    ones = np.ones((BATCH, TIME), np.int32)
    wanted = other(other.fresh(), *other.cast((xs, ones, d_carry, d_ys)))
    got = subject(subject.fresh(), xs, None, d_carry, d_ys)
    close(got._asdict(), wanted._asdict(), tolerance, "without segment_ids")


@law("compilation", "No Python control flow may depend on the values of inputs, ids or carry.")
def check_compiles_once(subject: Subject) -> None:
    """Ragged data of one shape needs one compilation."""

    def apply(*arguments: Any) -> Any:
        return subject.core.apply(*arguments)

    chex.clear_trace_counter()  # it counts by the function's id, which may be used again
    run = jitted(chex.assert_max_traces(apply, n=1))
    with subject.precision():
        for seed in range(3):
            ids = np.random.default_rng(seed).integers(0, 4, IDS.shape).astype(np.int32)
            run(subject.params, subject.fresh(), subject.xs(seed), ids)


@law(
    "splitting",
    "The carry must hold all that later outputs depend on, also without segment_ids and beyond the length of a chunk.",
)
def check_long_input(subject: Subject, tolerance: float) -> None:
    """Without ids, outputs and final carry of two halves of a long input are those of the whole."""
    xs, halves = subject.xs(4, 2 * LONG), (slice(0, LONG), slice(LONG, None))
    run = jitted(subject.core.apply)
    with subject.precision():
        start = subject.core.initial_carry((BATCH,), 2 * LONG)
        carry, whole = run(subject.params, start, xs)
        after, outputs = start, []
        for half in halves:
            after, ys = run(subject.params, after, xs[:, half])
            outputs.append(ys)
    parts = {"carry": after, "ys": np.concatenate([np.asarray(ys) for ys in outputs], 1)}
    close(parts, {"carry": carry, "ys": np.asarray(whole)}, tolerance, f"split into [{LONG}, {LONG}] without ids")


@law("precision", "Make parameters in param_dtype and states in at_least_float32(param_dtype).")
def check_dtypes(subject: Subject) -> None:
    """Parameters have the dtype ``param_dtype``, and states at least float32 and at least its precision."""
    for path, leaf in jax.tree.leaves_with_path(subject.params):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            wanted = subject.param_dtype
            assert leaf.dtype == wanted, f"parameter {_name(path)} is {leaf.dtype} with param_dtype={wanted}"

    def check(part: StateCarry) -> StateCarry:
        for path, leaf in jax.tree.leaves_with_path(part.state):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                bits, least = jnp.finfo(leaf.dtype).bits, jnp.finfo(at_least_float32(subject.param_dtype)).bits
                assert bits >= least, f"state {_name(path)} is {leaf.dtype} with param_dtype={subject.param_dtype}"
        return part

    subject.core.map_states(check, subject.fresh())


@law("precision", "Compute in dtype, and keep parameters in param_dtype and states in at_least_float32(param_dtype).")
def check_low_precision(low: Subject, exact: Subject, tolerance: float, gradient_tolerance: float) -> None:
    """bfloat16 computation stays near; parameters, their gradients and recurrent states stay float32."""
    carry, xs = low.carry(), low.xs(1)
    d_carry, d_ys = low.cotangents(carry)
    got = low(carry, xs, IDS, d_carry, d_ys)
    want = exact(*exact.cast((carry, xs, IDS, d_carry, d_ys)))
    assert got.ys.dtype == jnp.bfloat16, f"outputs are {got.ys.dtype}, not the core's dtype bfloat16"
    wide = {leaf.dtype.name for leaf in jax.tree.leaves(got.d_params)}
    assert wide <= {"float32"}, f"gradients of float32 parameters are {wide}"
    chex.assert_trees_all_equal_dtypes(got.carry, carry)
    close(_values(got), _values(want), tolerance, "in bfloat16")
    close(_gradients(got), _gradients(want), gradient_tolerance, "in bfloat16")


@law("empty input", "A call with T = 0 must return its carry and outputs of shape [*B, 0, features].")
def check_empty_input(subject: Subject) -> None:
    """An input of length 0 changes nothing."""
    core: Core = subject.core
    carry, xs = subject.fresh(), subject.xs(0, time=0)
    run = jitted(core.apply)
    with subject.precision():
        after, ys = run(subject.params, carry, xs, np.zeros((BATCH, 0), np.int32))
        without_ids = run(subject.params, carry, xs)[1]
    close({"carry": after}, {"carry": carry}, 0.0, "after an input of no length")
    shapes = ys.shape, without_ids.shape
    assert set(shapes) == {(BATCH, 0, core.features)}, f"outputs of shapes {shapes}"


def close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """Leaf by leaf, to ``tolerance`` times the leaf's largest number (1 at least)."""
    found, wanted = str(jax.tree.structure(actual)), str(jax.tree.structure(expected))
    assert found == wanted, f"{what}: a tree {found} instead of {wanted}"
    for (path, a), e in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        where = f"{what}: {_name(path)}"
        assert a.shape == e.shape, f"{where}: shapes {a.shape} and {e.shape}"
        wide = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(e) else np.float64
        a, e = np.asarray(a, wide), np.asarray(e, wide)
        assert np.isfinite(e).all(), f"{where}: not finite"
        error = np.abs(a - e).max(initial=0.0) / max(1.0, np.abs(e).max(initial=0.0))
        assert error <= tolerance, f"{where}: off by {error:.3g}, {tolerance:.3g} allowed"


def _values(result: Result) -> dict[str, Any]:
    return {"carry": result.carry, "ys": result.ys}


def _gradients(result: Result) -> dict[str, Any]:
    return {name: value for name, value in result._asdict().items() if name.startswith("d_")}


def _in_pieces(
    subject: Subject, lengths: Sequence[int], carry: Any, xs: Any, ids: Any, d_carry: list, d_ys: Any
) -> Result:
    """Runs the pieces in order, then back-propagates through them from the last to the first."""
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
    return Result(carries[-1], np.concatenate(outs, 1), d_params, d_carry, np.concatenate(d_xs[::-1], 1))


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "the whole"


def _row(index: int, tree: Any) -> Any:
    return jax.tree.map(lambda a: a[index], tree)


def _taken(places: np.ndarray, a: np.ndarray) -> np.ndarray:
    return a[np.arange(len(a))[:, None], places]


def _placed(places: np.ndarray, a: np.ndarray) -> np.ndarray:
    out = np.zeros((a.shape[0], TIME, *a.shape[2:]), a.dtype)
    out[np.arange(len(a))[:, None], places] = a
    return out
