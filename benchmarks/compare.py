"""Compare two checkouts of jaxseq, or two values of ``XLA_FLAGS``, in one interleaved run.

    git worktree add ../before v1                         # any folder that holds another commit
    python benchmarks/compare.py --before ../before       # about 8 minutes on 2 CPU cores
    python benchmarks/compare.py --before ../before --case lstm attention-2048 --repeats 15
    python benchmarks/compare.py --before-flags="" --after-flags="--xla_flag=value" --name flag
    python benchmarks/compare.py --before-environment JAXSEQ_MALLOC=off --case steps --name malloc

Each side runs in a process of its own, which compiles every case first. Then the two processes take turns, one run
at a time, and the order alternates. A row holds the median time of the side before over the median time of the side
after: above 1 means that the side after is faster. Cases use calls that both checkouts share: cores by name, forward
and backward or forward alone (``-forward``), of a batch or of a single row (``-row``), with documents and padding
(``-documents``) or without; ``attention``; a decoding step with a cache; greedy decoding of one row or more, with an
end token (``-end``) or without; training steps (the cases of ``training_step.py``; ``steps`` for all). Checksums of
the first results are compared as well. The rows go to ``benchmarks/results/compare-NAME-DEVICE.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
"""Those of the caller: the harness imports jaxseq, which adds to them."""

CORE_CASES = {
    "elman": (32, 256, 256),
    "gru": (32, 256, 256),
    "lstm": (32, 256, 256),
    "slstm": (16, 128, 128),
    "layer_norm_lstm": (16, 128, 128),
    "mingru": (32, 256, 256),
    "lru": (16, 256, 128),
    "rglru": (32, 256, 256),
    "gla": (8, 256, 256),
    "mamba2": (8, 256, 256),
    "mlstm": (8, 256, 256),
    "delta": (8, 256, 256),
    "conv": (32, 256, 256),
    "attention": (8, 512, 256),
}
"""Batch, time, features of each core."""

ROW_CASES = ("elman", "gru", "lstm", "slstm", "mingru", "lru", "rglru", "gla")
"""Cores that are also timed on a single row of 256 steps, 64 features."""

STEPS = (
    "step-lstm-256-1-32-128",
    "step-lstm-256-2-32-128",
    "step-transformer-128-2-32-128",
    "step-transformer-256-4-16-128",
    "step-transformer-256-4-4-512",
    "step-lru-256-2-32-128",
    "step-conv-256-2-32-128",
    "step-demo",
    "step-translation-transformer",
    "step-translation-attention",
)
"""Training steps: the model of ``training_step.py``, its width, layers, batch and length."""

OTHERS = (
    *(f"{name}-row{part}" for name in ROW_CASES for part in ("", "-forward")),
    *(f"{name}-forward" for name in ("lstm", "mingru", "lru", "rglru")),
    "lstm-documents",
    "rglru-documents",
    "delta-documents",
    "attention-documents",
    "attention-2048",
    "attention-4096",
    "decode-lstm",
    "decode-attention",
    "greedy-lstm",
    "greedy-rglru",
    "greedy-attention",
    *(f"greedy-{name}-{batch}-end" for name in ("lstm", "attention") for batch in (1, 8, 32)),
    *STEPS,
)


def core_case(name: str, options: list[str]) -> Callable[[], Any]:
    """A core, forward and backward with the gradients of parameters and inputs, or forward alone."""
    import jax
    import jax.numpy as jnp

    from jaxseq.cores import CORES

    batch, length, features = (1, 256, 64) if "row" in options else CORE_CASES[name]
    make: Any = CORES[name]
    core = make(features=features)
    xs = jax.random.normal(jax.random.key(0), (batch, length, features))
    ids = None
    if "documents" in options:  # three documents, then padding
        row = jnp.minimum(jnp.arange(length) // (length // 4) + 1, 4) % 4
        ids = jnp.broadcast_to(row.astype(jnp.int32), (batch, length))
    carry = core.initial_carry((batch,))
    variables = core.init(jax.random.key(1), carry, xs[:, :1])

    def loss(variables: Any, xs: Any) -> Any:
        return jnp.sin(core.apply(variables, carry, xs, ids)[1]).sum()

    run = jax.jit(loss if "forward" in options else jax.value_and_grad(loss, argnums=(0, 1)))
    return lambda: run(variables, xs)


def attention_case(length: int) -> Callable[[], Any]:
    """Causal attention of 8 heads of 64, forward and backward."""
    import jax
    import jax.numpy as jnp

    from jaxseq.ops import attention, masks

    arrays = jax.random.normal(jax.random.key(0), (3, 1, length, 8, 64))
    run = jax.jit(jax.value_and_grad(lambda *a: jnp.sin(attention(*a, mask=masks.causal())).sum(), argnums=(0, 1, 2)))
    return lambda: run(*arrays)


def decode_case(name: str) -> Callable[[], Any]:
    """One step at batch 8, with a cache of 1024 positions for attention."""
    import jax

    from jaxseq.cores import CORES

    make: Any = CORES[name]
    core = make(features=256)
    xs = jax.random.normal(jax.random.key(0), (8, 1024, 256))
    empty = core.initial_carry((8,), context=1023)
    variables = core.init(jax.random.key(1), core.initial_carry((8,)), xs[:, :1])
    carry = jax.jit(core.apply)(variables, empty, xs[:, :-1])[0]
    run = jax.jit(core.apply)
    return lambda: run(variables, carry, xs[:, -1:])


def greedy_case(name: str, batch: str = "1", end: str = "") -> Callable[[], Any]:
    """Greedy decoding of 64 tokens by two layers of 128 features over 256 tokens; ``end``: with a token that ends rows.

    The parameters are such that no row ends, so that the work is the same with an end token and without one.
    """
    import jax
    import jax.numpy as jnp
    from jax.tree_util import Partial

    from jaxseq.cores import CORES, Stacked, block
    from jaxseq.decoding import greedy, step_of
    from jaxseq.layers import Embedding
    from jaxseq.models import LanguageModel

    make: Any = CORES[name]
    core = Stacked(tuple(block(make(features=128), feed_forward=256) for _ in range(2)))
    model = LanguageModel(Embedding(256, 128), core)
    rows = (int(batch),)
    tokens = jnp.zeros(rows, jnp.int32)
    carry = model.initial_carry(rows, 64)
    params = model.init(jax.random.key(1), model.initial_carry(rows), tokens[:, None])
    step = step_of(Partial(model.apply, params))
    made = greedy(step, carry, tokens, max_length=64, end_token=None).tokens
    unused = next(token for token in range(256) if token not in set(made.reshape(-1).tolist()))
    return lambda: greedy(step, carry, tokens, max_length=64, end_token=unused if end else None).tokens


def step_case(name: str) -> Callable[[], Any]:
    """A training step, which goes on from its own state; the result is the loss."""
    sys.path.append(str(Path(__file__).parent))
    from training_step import jaxseq_step
    from training_step_cases import Case

    return jaxseq_step(Case.parse(name)).step


def make_case(name: str) -> Callable[[], Any]:
    """The function that runs a case once."""
    kind, *options = name.split("-")
    if kind == "step":
        return step_case("-".join(options))
    if kind == "decode":
        return decode_case(*options)
    if kind == "greedy":
        return greedy_case(*options)
    if options and options[0].isdigit():
        return attention_case(int(options[0]))
    return core_case(kind, options)


def worker() -> None:
    """Read a case name per line; run it once and write the seconds and a checksum of the results."""
    import jax
    import numpy as np

    cases: dict[str, tuple[Callable[[], Any], float]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in cases:
            case = make_case(name)
            leaves = jax.tree.leaves(jax.block_until_ready(case()))
            cases[name] = case, float(sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in leaves))
            jax.block_until_ready(case())
        case, checksum = cases[name]
        start = time.perf_counter()
        jax.block_until_ready(case())
        print(json.dumps([time.perf_counter() - start, checksum]), flush=True)


class Side:
    """A worker process that imports jaxseq from a folder, with its own environment."""

    def __init__(self, folder: Path, flags: str | None, variables: list[str]) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder), "XLA_FLAGS": XLA_FLAGS}
        environment |= dict(variable.split("=", 1) for variable in variables)
        if flags is not None:
            environment |= {"XLA_FLAGS": flags, "JAXSEQ_XLA_FLAGS": "off"}
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, name: str) -> tuple[float, float]:
        """Seconds of one run, and the checksum of the case's first results."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{name}: the process of a side ended; its error is above")
        seconds, checksum = json.loads(line)
        return seconds, checksum


def compare(before: Side, after: Side, name: str, repeats: int) -> dict[str, Any]:
    """One case in turns."""
    checks = [side.run(name)[1] for side in (before, after)]
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 else (1, 0):
            times[index].append((before, after)[index].run(name)[0])
    old, new = (statistics.median(t) for t in times)
    difference = abs(checks[0] - checks[1]) / max(abs(checks[0]), 1e-30)
    return {
        "case": name,
        "before_ms": round(1e3 * old, 3),
        "after_ms": round(1e3 * new, 3),
        "before_over_after": round(old / new, 3),
        "before_best_over_after_best": round(min(times[0]) / min(times[1]), 3),
        "relative_difference_of_results": difference,
        "repeats": repeats,
    }


def main() -> None:
    """Compare, print, write."""
    if "--worker" in sys.argv:
        worker()
        return
    sys.path.append(str(Path(__file__).parent))
    from harness import RESULTS, device_name, environment, parse_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, default=HERE, help="a folder with another checkout; default: this one")
    parser.add_argument("--before-flags", help="XLA_FLAGS of the side before; default: those that jaxseq sets")
    parser.add_argument("--after-flags", help="XLA_FLAGS of the side after; default: those that jaxseq sets")
    for side in ("before", "after"):
        name = f"--{side}-environment"
        parser.add_argument(
            name, nargs="+", default=[], metavar="NAME=VALUE", help=f"variables of the side {side}; default: none"
        )
    parser.add_argument("--name", default="checkouts", help="the name of the results (default: %(default)s)")
    cases = [*CORE_CASES, *OTHERS]
    parser.add_argument(
        "--case", nargs="+", choices=[*cases, "steps"], default=cases, help="cases; default: all but steps"
    )
    parser.add_argument("--repeats", type=int, default=15, help="timings of each side (default: %(default)s)")
    options = parse_arguments(parser)
    if not (options.before / "jaxseq" / "__init__.py").is_file():
        raise SystemExit(f"{options.before} holds no checkout of jaxseq")
    before = Side(options.before.resolve(), options.before_flags, options.before_environment)
    after = Side(HERE, options.after_flags, options.after_environment)
    rows = []
    for name in [name for chosen in options.case for name in (STEPS if chosen == "steps" else (chosen,))]:
        rows.append(compare(before, after, name, options.repeats))
        row = rows[-1]
        times = f"{row['before_ms']:10.2f} ms {row['after_ms']:10.2f} ms"
        checks = f"results differ by {row['relative_difference_of_results']:.1e}"
        print(f"{name:22}{times}   before/after {row['before_over_after']:.3f}   {checks}", flush=True)
    path = RESULTS / f"compare-{options.name}-{device_name()}.json"
    sides = {name: value for name, value in vars(options).items() if name.startswith(("before_", "after_"))}
    path.write_text(json.dumps({**environment(), **sides, "rows": rows}, indent=1) + "\n")
    print(f"written: {path.relative_to(HERE)}")


if __name__ == "__main__":
    main()
