"""LSTM and GRU, forward and backward, against flax's ``nn.RNN`` and torch's layers.

    python benchmarks/recurrence.py                       # about 4 minutes on 2 CPU cores
    python benchmarks/recurrence.py --case lstm-32-256-256  # one case alone (cell, B, T, F), added to the results
    python benchmarks/recurrence.py --quick               # one small case, few repeats, writes nothing

Everything is timed: the input's projection, the recurrence, and the gradients of input, weights and biases, in
float32. ``vmap`` is the same model written for one example and mapped over the batch; ``plain scan`` is jaxseq's
reference, the projection outside the loop and the gradient that JAX gives a scan; ``2 host devices`` has half the
batch on each of two CPU devices (``shard_map``, gradients of weights summed). ``of peak`` is the rate of the products
alone, 48 B T F² operations (GRU: 36), over the best rate of a large product measured in the same run.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import Candidate, Row, compiled, measure, parse_arguments, plain, report, unavailable
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from jaxseq.ops import RecurrenceImplementation, cells, recurrence_with_projection

CASES: tuple[tuple[str, int, int, int], ...] = (
    *(("lstm", 32, 256, 256), ("lstm", 64, 128, 512), ("lstm", 16, 1024, 128), ("lstm", 8, 512, 512)),
    *(("lstm", 64, 256, 128), ("gru", 32, 256, 256), ("gru", 64, 128, 512), ("gru", 16, 1024, 128)),
    ("gru", 8, 512, 512),
)
GATES = {"lstm": 4, "gru": 3}
DEVICES = 2


def sequence(cell: str, x: Any, W: Any, R: Any, b: Any, own: Any, *, implementation: RecurrenceImplementation) -> Any:
    """``[*B, T, D]`` to ``[*B, T, F]`` from a state of zeros; ``own`` is the GRU's second bias."""
    features, gates = R.shape[0], GATES[cell]
    zeros = jnp.zeros((*x.shape[:-2], features), x.dtype)
    lstm = cell == "lstm"
    equation = cells.lstm if lstm else Partial(cells.gru, own)
    state = cells.LSTMState(zeros, zeros) if lstm else cells.Hidden(zeros)
    R = R.reshape(1, features, gates, features)
    return recurrence_with_projection(equation, state, x, W, b, R, implementation=implementation)[1]


def mapped(cell: str, x: Any, *weights: Any) -> Any:
    """The same for one example, mapped over the batch."""
    one = partial(sequence, cell, implementation="auto")
    return jax.vmap(one, in_axes=(0, None, None, None, None))(x, *weights)


def flax_layer(cell: str, x: Any, W: Any, R: Any, b: Any, own: Any) -> Any:
    """flax's recurrent layer; its LSTM with the optimized cell (of its GRU there is one)."""
    inputs, states, biases = (jnp.split(a, GATES[cell], axis=-1) for a in (W, R, b))
    if cell == "lstm":
        parameters = {f"i{g}": {"kernel": w} for g, w in zip("ifgo", inputs, strict=True)}
        parts = zip("ifgo", states, biases, strict=True)
        parameters |= {f"h{g}": {"kernel": r, "bias": c} for g, r, c in parts}
        layer = nn.RNN(nn.OptimizedLSTMCell(R.shape[0]))
    else:
        parameters = {f"i{g}": {"kernel": w, "bias": c} for g, w, c in zip("rzn", inputs, biases, strict=True)}
        parameters |= {f"h{g}": {"kernel": r} for g, r in zip("rzn", states, strict=True)}
        parameters["hn"]["bias"] = own
        layer = nn.RNN(nn.GRUCell(R.shape[0]))
    return layer.apply({"params": {"cell": parameters}}, x)


def with_gradients(function: Callable[..., Any], *, summed_over: str | None = None) -> Callable[..., Any]:
    """``(x, W, R, b, own, cotangent) -> (y, dx, dW, dR, db, d_own)``."""

    def both(*args: Any) -> tuple[Any, ...]:
        y, pullback = jax.vjp(function, *args[:-1])
        dx, *weights = pullback(args[-1])
        return y, dx, *(weights if summed_over is None else jax.lax.psum(weights, summed_over))

    return both


def on_host_devices(name: str, function: Callable[..., Any]) -> Candidate:
    """The batch split over the CPU's devices, each of which runs its part by itself."""
    if len(jax.devices()) < DEVICES or jax.default_backend() != "cpu":
        return unavailable(name, f"needs {DEVICES} CPU devices")
    mesh = jax.make_mesh((DEVICES,), ("batch",), devices=jax.devices()[:DEVICES])
    rows, whole = PartitionSpec("batch"), PartitionSpec()
    places = (rows, whole, whole, whole, whole, rows)
    split = jax.shard_map(
        with_gradients(function, summed_over="batch"),
        mesh=mesh,
        in_specs=places,
        out_specs=(rows, rows, whole, whole, whole, whole),
        check_vma=False,
    )

    def prepare(inputs: Sequence[tuple]) -> harness.Prepared:
        sharded = [
            tuple(jax.device_put(a, NamedSharding(mesh, p)) for a, p in zip(args, places, strict=True))
            for args in inputs
        ]
        return compiled(name, split).prepare(sharded)

    return Candidate(name, prepare)


def torch_layer(cell: str, features: int) -> Candidate:
    """torch's layer (oneDNN on a CPU, cuDNN on a GPU) and its gradients."""
    try:
        import torch
    except ImportError:
        return unavailable("torch", "torch is not installed (extra: peers)")
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    layer: Any = kind(features, features, batch_first=True, device=device)

    def convert(a: np.ndarray) -> Any:
        return torch.tensor(a, device=device)

    def both(x: Any, W: Any, R: Any, b: Any, own: Any, cotangent: Any) -> list[Any]:
        with torch.no_grad():
            layer.weight_ih_l0.copy_(W.T)
            layer.weight_hh_l0.copy_(R.T)
            layer.bias_ih_l0.copy_(b)
            layer.bias_hh_l0.zero_()
            if cell == "gru":
                layer.bias_hh_l0[2 * features :].copy_(own)
        x = x.detach().requires_grad_()
        y, _ = layer(x)
        weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
        dx, dW, dR, db, d_own = torch.autograd.grad(y, (x, *weights), cotangent)
        d_own = d_own[2 * features :] if cell == "gru" else torch.zeros_like(own)
        if device == "cuda":
            torch.cuda.synchronize()
        return [a.detach().cpu().numpy() for a in (y, dx, dW.T, dR.T, db, d_own)]

    return plain("torch", both, convert)


def inputs(cell: str, batch: int, length: int, features: int) -> list[tuple[np.ndarray, ...]]:
    """Two sets of x, W, R, b, own and cotangent."""
    width = GATES[cell] * features

    def one(seed: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed)
        x, cotangent = rng.normal(size=(2, batch, length, features))
        W, R = rng.normal(size=(2, features, width)) / math.sqrt(features)
        b, own = rng.normal(size=width) * 0.1, rng.normal(size=features) * 0.1
        return tuple(a.astype(np.float32) for a in (x, W, R, b, own, cotangent))

    return [one(0), one(1)]


def case(cell: str, batch: int, length: int, features: int, repeats: int) -> list[Row]:
    """One shape, all candidates in turn."""
    auto, scan = (partial(sequence, cell, implementation=i) for i in ("auto", "reference"))
    flax = partial(flax_layer, cell)
    return measure(
        {"cell": cell, "B": batch, "T": length, "F": features, "peak_gflops": round(harness.matmul_ceiling() / 1e9)},
        [
            compiled("jaxseq", with_gradients(auto)),
            compiled("jaxseq, vmap", with_gradients(partial(mapped, cell))),
            on_host_devices("jaxseq, 2 host devices", auto),
            compiled("plain scan", with_gradients(scan)),
            compiled("flax", with_gradients(flax)),
            on_host_devices("flax, 2 host devices", flax),
            torch_layer(cell, features),
        ],
        inputs(cell, batch, length, features),
        reference=with_gradients(scan),
        repeats=repeats,
    )


def of_peak(row: Row) -> float:
    """The rate of a row's products over the best rate of a large one."""
    products = 12 * GATES[row["cell"]] * row["B"] * row["T"] * row["F"] ** 2
    return products / row["median_s"] / row["peak_gflops"] / 1e9


def summary(rows: list[Row]) -> None:
    """Prints what jaxseq is to each peer: speed over all cases, memory, and the share of the product rate."""
    by_name: dict[str, dict[tuple, Row]] = {}
    for row in rows:
        if "median_s" in row:
            by_name.setdefault(row["name"], {})[row["cell"], row["B"], row["T"], row["F"]] = row
    for own in ("jaxseq", "jaxseq, 2 host devices"):
        print(f"\n{own}: times as fast as (geometric mean; each case)")
        for name, found in by_name.items():
            shared = [k for k in found if k in by_name.get(own, {})]
            ratios = [found[k]["median_s"] / by_name[own][k]["median_s"] for k in shared]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                print(f"  {name:24}{mean:6.2f}   " + "  ".join(f"{r:.2f}" for r in ratios))
    ours, flax = by_name.get("jaxseq", {}), by_name.get("flax", {})
    print("\n" + " " * 26 + "  ".join("-".join(map(str, k)) for k in ours))
    print(
        "temporary memory / flax   " + "  ".join(f"{ours[k]['temp_bytes'] / flax[k]['temp_bytes']:.2f}" for k in flax)
    )
    for name, found in by_name.items():
        print(f"of peak, {name:24}" + "  ".join(f"{of_peak(row):.2f}" for row in found.values()))


def stored() -> list[Row]:
    """The rows of earlier cases."""
    path = harness.RESULTS / f"recurrence-{harness.device_name()}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Run the cases; the JSON lines go to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small case, few repeats, nothing written")
    parser.add_argument("--case", choices=["-".join(map(str, c)) for c in CASES], help="one case alone")
    arguments = parse_arguments(parser)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    if arguments.quick:
        chosen: list[tuple[str, int, int, int]] = [("lstm", 16, 64, 128)]
    else:
        chosen = [c for c in CASES if arguments.case in (None, "-".join(map(str, c)))]
    rows = [row for one in chosen for row in case(*one, 3 if arguments.quick else 7)]
    if arguments.case is not None:
        keys = ("cell", "B", "T", "F")
        rows = [row for row in stored() if tuple(row.get(k) for k in keys) not in chosen and "cell" in row] + rows
        rows.sort(key=lambda row: CASES.index(tuple(row[k] for k in keys)))
    report("recurrence", rows, baseline="jaxseq", write=not arguments.quick)
    summary(rows)


if __name__ == "__main__":
    main()
