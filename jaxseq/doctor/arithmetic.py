"""Probes of the arithmetic of each device: values and derivatives of ops against NumPy in float64.

The derivative of a NumPy function f of complex numbers along v is ``Im f(x + ihv) / h`` (Squire & Trapp 1998): with h
of 1e-30 it has no error of cancellation, and f is written once. The error is the largest absolute difference, divided
by the largest absolute value.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import ops
from jaxseq.doctor.check import Finding
from jaxseq.xla_flags import FLAG, VALUE

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
"""The relative errors that are accepted: above those of a sound CPU, 3e-7 and 0.006; wrong programs are far above."""
STEP = 1e-30

ADVICE = "do not train on it: try another version of jax and of the driver, and report this line with the versions"
YNN_ADVICE = f"set XLA_FLAGS={FLAG}={VALUE}, as import jaxseq does unless JAXSEQ_XLA_FLAGS=off or jaxlib is too new"


class Probe(NamedTuple):
    """A function of arrays in JAX, the same in NumPy for complex numbers, and the shapes of its arrays."""

    name: str
    run: Callable[..., Any]
    numpy: Callable[..., np.ndarray]
    shapes: tuple[tuple[int, ...], ...]


def probes() -> tuple[Probe, ...]:
    """A matrix product, a recurrence (LSTM), attention, a linear recurrence and a convolution."""
    B, T, F, N, H = 2, 24, 16, 2, 8
    heads = (B, T, N, H)
    return (
        Probe("product", lambda a, b: a @ b, np.matmul, ((64, 96), (96, 32))),
        Probe("recurrence", _lstm, _lstm_numpy, ((B, T, 4, F), (1, F, 4, F))),
        Probe("attention", _attention, _attention_numpy, (heads, heads, heads)),
        Probe("linear_recurrence", _linear, _linear_numpy, ((B, T, F), (B, T, F))),
        Probe("convolution", _convolution, _convolution_numpy, ((B, T, F), (4, F))),
    )


def check_arithmetic() -> Iterator[Finding]:
    """Every probe on the first device of each kind, in float32 and bfloat16, and the first probe on all the others."""
    devices = jax.local_devices()
    firsts = {(device.platform, device.device_kind): device for device in reversed(devices)}
    for device in firsts.values():
        for dtype, tolerance in TOLERANCES.items():
            errors = {probe.name: worst_error(probe, dtype, device) for probe in probes()}
            yield judged(f"{dtype} on {device}", device.platform, errors, tolerance)
    others = [device for device in devices if device not in firsts.values()]
    if others:
        errors = {str(device): worst_error(probes()[0], "float32", device) for device in others}
        yield judged(f"float32 {probes()[0].name} on the others", others[0].platform, errors, TOLERANCES["float32"])


def judged(what: str, platform: str, errors: dict[str, float], tolerance: float) -> Finding:
    """The finding about some errors: it lists those above the tolerance, or all if none is."""
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    listed = ", ".join(f"{name} {error:.1g}" for name, error in (wrong or errors).items())
    found = f"{what}, relative errors against float64: {listed} (at most {tolerance:g})"
    name = f"arithmetic {platform}"
    return Finding("fail", name, f"WRONG: {found}", ADVICE) if wrong else Finding("ok", name, found)


def worst_error(probe: Probe, dtype: str, device: Any) -> float:
    """The larger of the relative errors of the values and of a derivative; infinite if a number is not finite."""
    rng = np.random.default_rng(0)
    draws = [0.5 * rng.normal(size=shape) for shape in probe.shapes * 2]
    arrays = [jax.device_put(jnp.asarray(draw, dtype), device) for draw in draws]
    given, along = arrays[: len(probe.shapes)], arrays[len(probe.shapes) :]

    def total(weights: Any, *arrays: Any) -> tuple[Any, Any]:
        ys = probe.run(*arrays)
        return (ys.astype(jnp.float32) * weights).sum(), ys

    exact = [np.asarray(array, np.float64) for array in given]
    tangents = [np.asarray(array, np.float64) for array in along]
    wide = probe.numpy(*(a + 1j * STEP * v for a, v in zip(exact, tangents, strict=True)))
    weights = rng.normal(size=wide.shape).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(jax.value_and_grad(total, tuple(range(1, 1 + len(given))), has_aux=True))
        (_, ys), gradients = run(jax.device_put(weights, device), *given)
    slopes = [np.sum(np.asarray(g, np.float64) * v) for g, v in zip(gradients, tangents, strict=True)]
    slope, scale = np.sum(wide.imag / STEP * weights), np.sqrt(np.sum((wide.imag / STEP * weights) ** 2))
    values = np.max(np.abs(np.asarray(ys, np.float64) - wide.real)) / np.max(np.abs(wide.real))
    error = max(float(values), float(abs(sum(slopes) - slope) / scale))
    return error if np.isfinite(error) else float("inf")


def check_sums() -> Iterator[Finding]:
    """The programs of which XLA's CPU backend computes wrong sums without the flag of ``jaxseq.xla_flags``."""
    flags = os.environ.get("XLA_FLAGS", "")
    flag = next((word for word in flags.split() if word.split("=")[0] == FLAG), "no flag")
    rows = np.random.default_rng(0).normal(size=(5, 30, 30)).astype(np.float32)
    wide, cpu = rows.astype(np.float64), jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        found = jax.jit(lambda rows: ((rows @ jnp.ones((30, 30))) * rows).sum(-1))(rows)
        index = np.arange(32_769, dtype=np.float32)
        vectors = np.stack([index, 0 * index, 0 * index], axis=1)
        squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(vectors)
    wanted = ((wide @ np.ones((30, 30))) * wide).sum(-1)
    sums = float(np.max(np.abs(np.asarray(found, np.float64) - wanted)) / np.max(np.abs(wanted)))
    squared = float(np.max(np.abs(np.asarray(squares, np.float64)[1:] / index[1:].astype(np.float64) ** 2 - 1)))
    line = f"relative errors {sums:.1g} and {squared:.1g} of two sums that XLA gets wrong without it; {flag}"
    if not max(sums, squared) < 1e-4:
        yield Finding("fail", "xla flag", f"WRONG: {line}", YNN_ADVICE)
    elif flag == "no flag":
        yield Finding("warn", "xla flag", f"{line} set, and these two are right", YNN_ADVICE)
    else:
        yield Finding("ok", "xla flag", line)


def check_cudnn() -> Iterator[Finding]:
    """CuDNN's LSTM and attention against the plain equations; on other devices there is nothing to check."""
    device = jax.local_devices()[0]
    if device.platform not in ("gpu", "cuda") or "rocm" in device.client.platform_version.lower():
        yield Finding("ok", "cudnn", f"not applicable: the default device is {device.platform}")
        return
    zeros = jnp.zeros((2, 8))
    advice = "reinstall the plugin: pip install --force-reinstall 'jaxseq[cuda]'"
    arrays = ops.cells.LSTMState(zeros, zeros), jnp.zeros((2, 5, 4)), jnp.zeros((1, 8, 4, 8))
    (choice,) = ops.explain_implementations(ops.lstm_implementation, *arrays)["lstm"]
    if choice.implementation == "cudnn":
        yield Finding("ok", "cudnn", "its LSTM agrees with recurrence, values and gradients")
    else:
        yield Finding("warn", "cudnn", f"its LSTM is not used: {choice.reason}", advice)
    probe = probes()[2]._replace(run=lambda q, k, v: _attention(q, k, v, implementation="cudnn"))
    error = worst_error(probe, "bfloat16", device)
    found = f"its attention has a relative error of {error:.1g} against float64 in bfloat16"
    right = error <= TOLERANCES["bfloat16"]
    yield Finding("ok", "cudnn", found) if right else Finding("fail", "cudnn", f"WRONG: {found}", advice)


def _lstm(x: Any, R: Any) -> Any:
    zeros = jnp.zeros((x.shape[0], x.shape[-1]), jnp.float32)
    return ops.recurrence(ops.cells.lstm, ops.cells.LSTMState(zeros, zeros), x, R)[1]


def _lstm_numpy(x: np.ndarray, R: np.ndarray) -> np.ndarray:
    h = c = np.zeros((x.shape[0], x.shape[-1]), x.dtype)
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = np.moveaxis(x[:, t] + np.einsum("bh,hgk->bgk", h, R[0]), 1, 0)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out, 1)


def _attention(query: Any, key: Any, value: Any, **options: Any) -> Any:
    return ops.attention(query, key, value, mask=ops.masks.causal(), **options)


def _attention_numpy(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    scores = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(np.tri(query.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - np.max(scores.real, -1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), value)


def _linear(a: Any, b: Any) -> Any:
    return ops.linear_recurrence(jnp.zeros_like(a[:, 0]), a, b)[1]


def _linear_numpy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    h, out = np.zeros_like(a[:, 0]), []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return np.stack(out, 1)


def _convolution(xs: Any, kernel: Any) -> Any:
    return ops.causal_convolution(jnp.zeros_like(xs[:, : kernel.shape[0] - 1]), xs, kernel)[1]


def _convolution_numpy(xs: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    padded = np.pad(xs, ((0, 0), (len(kernel) - 1, 0), (0, 0)))
    return sum(kernel[j] * padded[:, j : j + xs.shape[1]] for j in range(len(kernel)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
