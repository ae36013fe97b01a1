"""LSTM, forward and backward, against flax's ``nn.RNN(OptimizedLSTMCell)`` and torch's ``nn.LSTM``.

    python benchmarks/recurrence.py            # about 2 minutes on 2 CPU cores
    python benchmarks/recurrence.py --quick    # the first case alone, few repeats, writes nothing

Everything is timed: the input's projection, the recurrence, and the gradients of input, weights and bias, in
float32. ``vmap`` is the same model written for one example and mapped over the batch; ``plain scan`` is
``jaxseq``'s reference with the projection outside the loop and the gradient that JAX gives a scan.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from harness import Candidate, Row, compiled, measure, plain, report, unavailable

from jaxseq.ops import project, recurrence
from jaxseq.ops.cells import LSTMState, lstm

CASES = ((32, 256, 256), (64, 128, 512), (16, 1024, 128), (8, 512, 512))


def lstm_sequence(x: Any, W: Any, R: Any, b: Any, *, implementation: str) -> Any:
    """``[*B, T, D]`` to ``[*B, T, F]`` from a state of zeros; W, R and b hold gates i, f, g, o."""
    features = R.shape[0]
    zeros = jnp.zeros((*x.shape[:-2], features), x.dtype)
    R = R.reshape(1, features, 4, features)
    projected = project(x, W, b, 4)
    return recurrence(lstm, projected, R, LSTMState(zeros, zeros), implementation=implementation)[1]


def mapped(x: Any, W: Any, R: Any, b: Any) -> Any:
    """The same for one example, mapped over the batch."""
    return jax.vmap(partial(lstm_sequence, implementation="auto"), in_axes=(0, None, None, None))(x, W, R, b)


def flax_lstm(x: Any, W: Any, R: Any, b: Any) -> Any:
    """flax's recurrent layer with its optimized cell."""
    inputs, states, biases = (jnp.split(a, 4, axis=-1) for a in (W, R, b))
    cell = {f"i{g}": {"kernel": w} for g, w in zip("ifgo", inputs, strict=True)}
    cell |= {f"h{g}": {"kernel": r, "bias": c} for g, r, c in zip("ifgo", states, biases, strict=True)}
    layer = nn.RNN(nn.OptimizedLSTMCell(R.shape[0]))
    return layer.apply({"params": {"cell": cell}}, x)


def with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """``(x, W, R, b, cotangent) -> (y, dx, dW, dR, db)``."""

    def both(x: Any, W: Any, R: Any, b: Any, cotangent: Any) -> tuple[Any, ...]:
        y, pullback = jax.vjp(function, x, W, R, b)
        return y, *pullback(cotangent)

    return both


def torch_lstm(features: int) -> Candidate:
    """torch's layer (oneDNN on a CPU, cuDNN on a GPU) and its gradients."""
    try:
        import torch
    except ImportError:
        return unavailable("torch", "torch is not installed (extra: peers)")
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    layer: Any = torch.nn.LSTM(features, features, batch_first=True, device=device)

    def convert(a: np.ndarray) -> Any:
        return torch.tensor(a, device=device)

    def both(x: Any, W: Any, R: Any, b: Any, cotangent: Any) -> list[Any]:
        with torch.no_grad():
            layer.weight_ih_l0.copy_(W.T)
            layer.weight_hh_l0.copy_(R.T)
            layer.bias_ih_l0.copy_(b)
            layer.bias_hh_l0.zero_()
        x = x.detach().requires_grad_()
        y, _ = layer(x)
        weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0)
        dx, dW, dR, db = torch.autograd.grad(y, (x, *weights), cotangent)
        if device == "cuda":
            torch.cuda.synchronize()
        return [a.detach().cpu().numpy() for a in (y, dx, dW.T, dR.T, db)]

    return plain("torch", both, convert)


def inputs(batch: int, length: int, features: int) -> list[tuple[np.ndarray, ...]]:
    """Two sets of x, W, R, b and cotangent."""

    def one(seed: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed)
        x, cotangent = rng.normal(size=(2, batch, length, features))
        W, R = rng.normal(size=(2, features, 4 * features)) / math.sqrt(features)
        b = rng.normal(size=4 * features) * 0.1
        return tuple(a.astype(np.float32) for a in (x, W, R, b, cotangent))

    return [one(0), one(1)]


def case(batch: int, length: int, features: int, repeats: int) -> list[Row]:
    """One shape, all candidates in turn."""
    auto, plainly = (with_gradients(partial(lstm_sequence, implementation=i)) for i in ("auto", "reference"))
    return measure(
        {"B": batch, "T": length, "F": features},
        [
            compiled("jaxseq", auto),
            compiled("jaxseq, vmap", with_gradients(mapped)),
            compiled("plain scan", plainly),
            compiled("flax", with_gradients(flax_lstm)),
            torch_lstm(features),
        ],
        inputs(batch, length, features),
        reference=plainly,
        repeats=repeats,
    )


def geometric_means(rows: list[Row]) -> None:
    """Prints each candidate's time over jaxseq's, over all cases."""
    times: dict[str, list[float]] = {}
    for row in rows:
        times.setdefault(row["name"], []).append(row.get("median_s", math.nan))
    print("\ngeometric mean of the time over jaxseq's (above 1: jaxseq is faster)")
    for name, seconds in times.items():
        ratios = [s / own for s, own in zip(seconds, times["jaxseq"], strict=True)]
        print(f"  {name:24}{math.exp(sum(map(math.log, ratios)) / len(ratios)):6.2f}   each: "
              + "  ".join(f"{r:.2f}" for r in ratios))  # fmt: skip


def main() -> None:
    """Run the cases; the JSON lines go to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first case alone, few repeats, nothing written")
    quick = parser.parse_args().quick
    rows = [row for shape in CASES[: 1 if quick else None] for row in case(*shape, 3 if quick else 9)]
    report("recurrence", rows, baseline="jaxseq", write=not quick)
    geometric_means(rows)


if __name__ == "__main__":
    main()
