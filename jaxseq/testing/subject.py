"""The subject of a law: a core at one precision with random parameters, and its compiled value and gradient."""

import inspect
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.cores import Core
from jaxseq.testing.compilation import jitted
from jaxseq.typing import DType

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


class Result(NamedTuple):
    """The results of a call, and the gradients of a random function of them (inexact leaves of the carry only)."""

    carry: Any
    ys: Any
    d_params: Any
    d_carry: list
    d_xs: Any


def takes_dtypes(make: Callable) -> bool:
    """True if the function takes ``dtype`` and ``param_dtype``, by name or among any keywords."""
    parameters = inspect.signature(make).parameters
    return {"dtype", "param_dtype"} <= set(parameters) or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def made(make: Callable, dtype: DType, param_dtype: DType) -> Any:
    """The result of ``make``, called with ``features`` if it requires them and with the dtypes if it takes them."""
    arguments: dict[str, Any] = {}
    if takes_dtypes(make):
        arguments = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
    features = inspect.signature(make).parameters.get("features")
    if features is not None and features.default is features.empty:
        arguments["features"] = WIDTH
    return make(**arguments)


class Subject:
    """A core of ``make`` at one precision. All calls use the same few shapes, so that little is compiled."""

    def __init__(self, make: Callable[..., Core], dtype: str, param_dtype: str) -> None:
        self.core = made(make, dtype, param_dtype)
        self.name = type(getattr(self.core, "decoder", self.core)).__name__
        self.dtype, self.param_dtype = dtype, param_dtype
        with self.precision():
            shapes = jax.eval_shape(self.core.init, jax.random.key(0), self.core.initial_carry((1,)), self.xs(0)[:1])
        scale = 0.4 * min(1.0, WIDTH / self.core.features) ** 0.5  # a wide core saturates no more than a narrow one
        self.params = _filled(shapes, seed=7, scale=scale)
        forms: dict[str, Callable] = {"batched": self.core.apply, "vmapped": self._vmapped}
        self.functions = {form: partial(self._run, apply) for form, apply in forms.items()}
        self.runs = {form: jitted(function) for form, function in self.functions.items()}

    @contextmanager
    def precision(self) -> Any:
        """Double precision for float64 alone, and products of full precision."""
        with ExitStack() as stack:
            stack.enter_context(jax.enable_x64(self.param_dtype == "float64"))
            stack.enter_context(jax.default_matmul_precision("highest"))
            yield

    def xs(self, seed: int, time: int = TIME) -> np.ndarray:
        """Random inputs, as wide as the core's outputs."""
        shape = (BATCH, time, self.core.features)
        return np.random.default_rng(seed).normal(size=shape).astype(jnp.dtype(self.dtype))

    def fresh(self) -> Any:
        """A carry before anything was read, with room for all of it."""
        with self.precision():
            return jax.tree.map(np.asarray, self.core.initial_carry((BATCH,), PIECE + TIME))

    def carry(self, seed: int = 3, steps: bool = False) -> Any:
        """A carry after a piece of document 1, read step by step or at once: reachable, without zeros."""
        carry, xs = self.fresh(), self.xs(seed, PIECE)
        length = 1 if steps else PIECE
        for at in range(0, PIECE, length):
            carry = self(carry, xs[:, at : at + length], np.ones((BATCH, length), np.int32)).carry
        return carry

    def __call__(
        self, carry: Any, xs: Any, ids: Any, d_carry: list | None = None, d_ys: Any = None, run: str = "batched"
    ) -> Result:
        """The core's value, and its gradient for the given cotangents (zeros unless given)."""
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
        kind = jnp.dtype(self.dtype)

        def cast(leaf: Any) -> np.ndarray:
            return np.asarray(leaf).astype(np.result_type(kind, np.complex64) if np.iscomplexobj(leaf) else kind)

        return _with_inexact(tree, list(map(cast, _inexact(tree))))

    def _vmapped(self, params: Any, carry: Any, xs: Any, ids: Any) -> Any:
        return jax.vmap(self.core.apply, (None, 0, 0, None if ids is None else 0))(params, carry, xs, ids)

    def _run(self, apply: Callable, params: Any, carry: Any, xs: Any, ids: Any, d_carry: list, d_ys: Any) -> Result:
        def function(params: Any, floats: list, xs: Any) -> tuple:
            after, ys = apply(params, _with_inexact(carry, floats), xs, ids)
            return (_inexact(after), ys), after

        out: Any
        after: Any
        out, pullback, after = jax.vjp(function, params, _inexact(carry), xs, has_aux=True)
        return Result(after, out[1], *pullback((d_carry, d_ys)))


def _inexact(tree: Any) -> list:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _with_inexact(tree: Any, leaves: list) -> Any:
    rest = iter(leaves)
    return jax.tree.map(lambda leaf: next(rest) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, tree)


def _filled(tree: Any, seed: int, scale: float = 1.0) -> Any:
    """Random numbers in every inexact leaf: zeros hide mistakes."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        numbers = scale * rng.normal(size=leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            numbers = numbers + 1j * scale * rng.normal(size=leaf.shape)
        return numbers.astype(leaf.dtype)

    return _with_inexact(tree, [draw(leaf) for leaf in _inexact(tree)])
