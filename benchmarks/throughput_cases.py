"""One case of the throughput benchmark, and what a mixer needs to be timed and checked on it.

Every candidate is checked as it is measured: the executable that is timed is run once more on the first input set
with a cotangent that is zero but for the first ``check_length`` positions of the first rows. A causal mixer's outputs
there, and all gradients of such a cotangent, are those of the prefix alone, and that is small enough for a reference
in float64: the law itself, the same core one step at a time under ``lax.scan`` (where the carry grows with what was
seen: the whole prefix by ``implementation="reference"``). Decoding is checked from an empty carry on. What misses the
tolerance may still be as good as an ill-conditioned equation allows: it passes if it is off by no more than 4 times
what the same steps lose at the case's own precision, and the row holds that (``error_of_steps``).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Candidate, Prepared, Row, deviation, judged
from jax import lax
from throughput_costs import count_cost, grows

from jaxseq.cores import Core, find_core, make_core
from jaxseq.ops import used_implementations

MODES = ("forward", "forward+backward", "decode")
DTYPES = ("float32", "bfloat16", "float64")
CHECK_ROWS = 2
DECODE_STEPS = 32
"""Tokens that a timed decoding call makes, one after the other in one compiled loop."""


@dataclass(frozen=True)
class Case:
    """B sequences of T tokens, ``width`` wide in and out; ``check_length`` positions of it are checked."""

    mode: str
    batch: int
    length: int
    width: int
    dtype: str
    check_length: int

    @property
    def tokens(self) -> int:
        """Tokens that one timed call works on."""
        return self.batch * (self.steps if self.mode == "decode" else self.length)

    @property
    def steps(self) -> int:
        """Tokens that a decoding call makes for each sequence."""
        return min(DECODE_STEPS, self.check_length, max(1, self.length // 2))

    @property
    def checked(self) -> tuple[int, int]:
        """Rows and positions that are checked."""
        return min(CHECK_ROWS, self.batch), min(self.check_length, self.length)

    @property
    def tolerance(self) -> float:
        """The allowed difference of a leaf, relative to its largest number: TF32 products on a GPU round to 10 bits."""
        exact = 1e-3 if jax.default_backend() == "cpu" else 1e-2
        return {"float32": exact, "bfloat16": 0.1, "float64": 1e-9}[self.dtype]


@dataclass(frozen=True)
class Model:
    """Parameters; what is timed, ``apply(variables, xs) -> ys``; the reference, ``exact`` of the same in float64.

    ``steps``, where there is one, is the reference at the case's own precision; ``key`` tells references apart.
    """

    variables: Any
    apply: Callable[[Any, Any], Any]
    exact: Callable[[Any, Any], Any]
    key: tuple
    facts: Row
    steps: Callable[[Any, Any], Any] | None = None


Inputs = Sequence[tuple[jax.Array, jax.Array]]


def make_inputs(case: Case) -> list[tuple[jax.Array, jax.Array]]:
    """Two sets of inputs and cotangents; what is checked is the same in all cases of a width."""

    def one(seed: int) -> tuple[jax.Array, jax.Array]:
        rows, length = case.checked
        body, head = np.random.default_rng([seed, case.batch, case.length]), np.random.default_rng(seed)
        arrays = []
        for _ in range(2):
            array = body.standard_normal((case.batch, case.length, case.width), np.float32)
            same = head.standard_normal((CHECK_ROWS, case.check_length, case.width), np.float32)
            array[:rows, :length] = same[:rows, :length]
            arrays.append(jnp.asarray(array, case.dtype))
        return arrays[0], arrays[1]

    return [one(0), one(1)]


def mixer(name: str, case: Case) -> Candidate:
    """A core by its name in the table or ``FILE.py:CLASS``, with ``,field=value`` for each of its options."""

    def prepare(inputs: Inputs) -> Prepared:
        core, shapes, variables = _with_parameters(name, case.width, case.dtype)
        cost = count_cost(core, case.mode, case.batch, case.length, case.width)
        facts = {"family": family(core, shapes), "flops": cost.flops, "bytes": cost.bytes}
        exact, steps = (_law(name, case.width, dtype) for dtype in ("float64", case.dtype))
        model = Model(variables, partial(_whole, core), exact, (name, case.width, case.dtype), facts, steps)
        prepare = _prepare_decoding if case.mode == "decode" else prepare_model
        return prepare(model, case, inputs, *([core] if case.mode == "decode" else []))

    return Candidate(name, prepare)


def family(core: Core, variables: Any) -> str:
    """The kind of mixing along time of a core, derived from its carry and its parameters."""
    ranks = [leaf.ndim for leaf in jax.tree.leaves(jax.eval_shape(lambda: core.initial_carry(())))]
    if grows(core):
        return "attention"
    if any("'recurrent'" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables)):
        return "nonlinear recurrence"
    return {0: "elementwise recurrence", 1: "elementwise recurrence", 2: "convolution"}.get(max(ranks), "matrix state")


def check_name(name: str) -> None:
    """Raises ValueError where there is no such mixer, with the known ones, or no such option."""
    core, *options = name.split(",")
    find_core(core)
    make_core(core, 64, options)


def prepare_model(model: Model, case: Case, inputs: Inputs) -> Prepared:
    """Compiled ahead of time, refused where it does not fit, checked by the executable that is timed."""
    function = _outputs(model.apply) if case.mode == "forward" else _with_gradients(model.apply)
    shapes = jax.tree.map(_shape, (model.variables, *inputs[0]))
    executable, facts = _compiled(function, shapes)
    facts |= model.facts | {"implementation": used_implementations(function, *shapes)}
    rows, length = case.checked
    what = "outputs" if case.mode == "forward" else "outputs and gradients"
    facts["checked"] = f"{what}, first {length} of {case.length} positions, {rows} of {case.batch} rows"
    variables = jax.device_put(model.variables)

    def check() -> float:
        """The error of outputs and gradients on the prefix; what is beyond it must get no gradient at all."""
        xs, cotangent = inputs[0]
        seen = np.zeros((case.batch, case.length, 1), bool)
        seen[:rows, :length] = True
        got = executable(variables, xs, jnp.where(seen, cotangent, jnp.zeros_like(cotangent)))
        gradients = case.mode == "forward+backward"
        expected = reference_of(model, xs[:rows, :length], cotangent[:rows, :length], gradients)
        if gradients and jnp.any(jnp.where(seen, 0, got[2])):
            raise ArithmeticError("the first positions have a gradient by later inputs")
        cut = (got[0][:rows, :length], got[1], got[2][:rows, :length]) if gradients else got[:rows, :length]
        return _judged(_error(cut, expected), model, case, inputs, facts)

    return Prepared(lambda i: jax.block_until_ready(executable(variables, *inputs[i])), facts, check)


def _prepare_decoding(model: Model, case: Case, inputs: Inputs, core: Core) -> Prepared:
    """A compiled loop of single steps, checked from an empty carry on, then timed at position T."""
    steps, (rows, length) = case.steps, case.checked
    function = partial(_decode, core)
    carry = jax.eval_shape(lambda: core.initial_carry((case.batch,), case.length))
    shapes = (jax.tree.map(_shape, model.variables), carry, _shape(inputs[0][0][:, :steps]))
    executable, facts = _compiled(function, shapes, donate_argnums=1)
    facts |= model.facts | {"implementation": used_implementations(function, *shapes)}
    facts["carry_bytes"] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
    checked = max(1, min(length, case.length - steps) // steps) * steps
    facts["checked"] = f"outputs, first {checked} of {case.length} positions, {rows} of {case.batch} rows"
    variables = jax.device_put(model.variables)
    carries: list[Any] = []

    def check() -> float:
        """The error of the first outputs; on the way, the carries at position T (less a call's steps)."""
        xs, cotangent = inputs[0]
        expected = reference_of(model, xs[:rows, :length], cotangent[:rows, :length], gradients=False)[0]
        starts = [_in_steps(core, case, executable, variables, xs, checked) for xs, _ in inputs]
        carries[:] = [_filled(core, case, executable, variables, start[0], xs[:, checked : case.length - steps])
                      for start, (xs, _) in zip(starts, inputs, strict=True)]  # fmt: skip
        error = deviation(starts[0][1][:rows], [expected[:, :checked]])
        return _judged(error, model, case, inputs, facts)

    last = [xs[:, -steps:] for xs, _ in inputs]

    def run(which: int) -> Any:
        carries[which], ys = executable(variables, carries[which], last[which])
        return jax.block_until_ready(ys)

    return Prepared(run, facts, check)


def _in_steps(core: Core, case: Case, executable: Any, variables: Any, xs: jax.Array, upto: int) -> tuple[Any, Any]:
    """Carry and outputs of the first positions, one call of the timed executable after the other."""
    # Every leaf a buffer of its own: one that stands for two leaves cannot be donated.
    carry = jax.tree.map(partial(jnp.array, copy=True), core.initial_carry((case.batch,), case.length))
    outs = []
    for start in range(0, upto, case.steps):
        carry, ys = executable(variables, carry, xs[:, start : start + case.steps])
        outs.append(ys)
    return carry, jnp.concatenate(outs, 1)


def _filled(core: Core, case: Case, executable: Any, variables: Any, carry: Any, xs: jax.Array) -> Any:
    """The carry after the rest of the positions: a cache at once (a step reads all of it), a state in steps."""
    if grows(core):
        if xs.shape[1] == 0:
            return carry
        return jax.tree.map(partial(jnp.array, copy=True), jax.jit(core.apply)(variables, carry, xs)[0])
    for start in range(0, xs.shape[1] - case.steps + 1, case.steps):
        carry, _ = executable(variables, carry, xs[:, start : start + case.steps])
    return carry


def _make(name: str, width: int, dtype: str) -> Core:
    core, *options = name.split(",")
    wide = "float64" if dtype == "float64" else "float32"
    return make_core(core, width, options, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(wide))


@cache
def _with_parameters(name: str, width: int, dtype: str) -> tuple[Core, Any, Any]:
    """A core, its parameters' shapes, and values as they begin, with a little noise: zeros hide mistakes."""
    core = _make(name, width, dtype)
    xs, start = jnp.zeros((1, 1, width), jnp.float32), core.initial_carry((1,))
    made = jax.jit(core.init)(jax.random.key(0), start, xs)
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda p: np.asarray(p) + 0.02 * rng.standard_normal(p.shape).astype(p.dtype), made)
    return core, jax.tree.map(_shape, made), noisy


def _whole(core: Core, variables: Any, xs: jax.Array) -> jax.Array:
    out: Any = core.apply(variables, core.initial_carry((xs.shape[0],)), xs)
    return out[1]


def _decode(core: Core, variables: Any, carry: Any, xs: jax.Array) -> tuple[Any, jax.Array]:
    """One token after the other."""

    def step(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        after: Any = core.apply(variables, carry, x[:, None])
        return after[0], after[1][:, 0]

    carry, ys = lax.scan(step, carry, jnp.moveaxis(xs, 1, 0))
    return carry, jnp.moveaxis(ys, 0, 1)


def _law(name: str, width: int, dtype: str) -> Callable[[Any, Any], Any]:
    """The same core one step at a time, or, where the carry grows, whole by its reference."""

    def exact(variables: Any, xs: jax.Array) -> jax.Array:
        core = _make(name, width, dtype)
        if grows(core):
            options: dict[str, Any] = {"implementation": "reference"} if hasattr(core, "implementation") else {}
            return _whole(core.clone(**options), variables, xs)
        return _decode(core, variables, core.initial_carry((xs.shape[0],)), xs)[1]

    return exact


_REFERENCES: dict[tuple, list[np.ndarray]] = {}


def reference_of(model: Model, xs: jax.Array, cotangent: jax.Array, gradients: bool) -> list[np.ndarray]:
    """Leaves of ``(ys, d_variables, d_xs)`` on a prefix in float64, on the host; once for all cases that share it."""
    key = (model.key, xs.shape)
    for known in ((*key, True), (*key, gradients)):
        if known in _REFERENCES:
            return _REFERENCES[known]
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        arguments = jax.tree.map(lambda x: np.asarray(x).astype(np.float64), (model.variables, xs, cotangent))
        function = _with_gradients(model.exact) if gradients else _outputs(model.exact)
        # Compiled in a fraction of the time, run once.
        quick = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(quick(*arguments))]
    _REFERENCES[(*key, gradients)] = leaves
    return leaves


def _judged(error: float, model: Model, case: Case, inputs: Inputs, facts: Row) -> float:
    """The error, if it is tolerable: by itself, or beside what plain steps lose at the same precision."""
    allowed = case.tolerance
    if not error <= allowed and model.steps is not None:
        rows, length = case.checked
        prefix, gradients = [x[:rows, :length] for x in inputs[0]], case.mode == "forward+backward"
        expected = reference_of(model, prefix[0], prefix[1], gradients)
        plain = jax.jit((_with_gradients if gradients else _outputs)(model.steps))
        got = plain(model.variables, *prefix)
        facts["error_of_steps"] = _error(got if gradients else [got], expected if gradients else expected[:1])
        allowed = max(allowed, 4 * facts["error_of_steps"])
    return judged(error, allowed)


def _error(got: Any, expected: list[np.ndarray]) -> float:
    """Of outputs, and of gradients where there are any (one that vanishes in theory is held against the others)."""
    ys, *gradients = jax.tree.leaves(got)
    error = deviation([ys], expected[:1])
    return max(error, deviation(gradients, expected[1:], floor=1e-3)) if gradients else error


def _outputs(apply: Callable) -> Callable:
    return lambda variables, xs, cotangent: apply(variables, xs)


def _with_gradients(apply: Callable) -> Callable:
    def both(variables: Any, xs: Any, cotangent: Any) -> tuple[Any, Any, Any]:
        ys, pullback = jax.vjp(apply, variables, xs)
        return ys, *pullback(cotangent)

    return both


def _compiled(function: Callable, shapes: tuple, **options: Any) -> tuple[Any, Row]:
    """The executable, and what it took and takes.

    Raises:
      MemoryError: it needs more than is free (a system that overcommits would kill the process instead).
    """
    start = time.perf_counter()
    executable = jax.jit(function, **options).lower(*shapes).compile()
    seconds = time.perf_counter() - start
    memory: Any = executable.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes
    free = available_memory()
    if needed > free:
        raise MemoryError(f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    return executable, {"compile_s": seconds, "temp_bytes": memory.temp_size_in_bytes}


def available_memory() -> float:
    """Bytes that a program may take on the first device, with a tenth kept back."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return 0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    free = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return 0.9 * free[0] if free else float("inf")


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
