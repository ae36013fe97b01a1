"""Whole training steps: forward, backward, clipping, AdamW, against torch's and flax's modules.

    python benchmarks/training_step.py                                  # all cases, about 10 minutes on 2 CPU cores
    python benchmarks/training_step.py --case transformer-128-2-32-128 demo --repeats 15
    python benchmarks/training_step.py --case demo --profile            # jaxseq's step by part, from a profile

A case is a model, its width, layers, batch, length and, if given, vocabulary (128 otherwise), ``lstm-256-2-32-128``, or
the default model of an experiment: ``demo`` (experiments/language_model.py, with its dropout),
``translation-transformer`` and ``translation-attention`` (``training_step_cases``). The same step everywhere: mean
cross-entropy, its gradient, clipping by the global norm, AdamW with weight decay on matrices. Transformers are pre-norm
blocks (LayerNorm, causal self-attention without positions, a GELU feed-forward layer of 4 widths) and a last LayerNorm.
``--precision bfloat16`` computes in bfloat16 with float32 parameters; torch by autocast.

- ``jaxseq``: the model's config and ``training.make_train_step``.
- ``jaxseq: forward``: the loss alone; a step should cost about three of them.
- ``flax``: ``nn.RNN(OptimizedLSTMCell)``, ``MultiHeadDotProductAttention``, optax, in one jitted step.
- ``torch``: ``nn.LSTM``, ``scaled_dot_product_attention``, the layers of its Transformer for translation, fused AdamW
  where it exists, else ``foreach``; as it is and through ``torch.compile``.

Every candidate is timed in turn, a step each, and each goes on from its own state. torch starts from jaxseq's
parameters, and the losses of the first three steps, without dropout, must agree with jaxseq's.

A row holds ``case``, ``name``, ``precision`` and the versions, and one of: ``left_out``, why a peer has no equal;
``error``, what failed; or ``median_s``, ``iqr_s``, ``repeats`` and ``tokens_per_s``. Rows of whole steps add ``flops``
(of products, three times the forward's, counted in the plain equations) and ``fraction_of_products``, their rate over
the product rate that the same run measures in that dtype (model FLOPs utilisation); those of compiled programs add
``compile_s`` and ``temp_bytes``; torch's ``loss_error``. With ``--profile`` jaxseq's row has ``profile``
(``step_profile.breakdown``), or ``profile_error``.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import RESULTS, Row, device_name, environment, judged, matmul_ceiling, parse_arguments
from step_profile import breakdown, table
from training_step_cases import TIMED, Case, problem, step_flops

from jaxseq import training
from jaxseq.precision import POLICIES

RATE, CLIP, DECAY = 1e-3, 1.0, 1e-2
CHECKED_STEPS = 3
PROFILED_STEPS = 10
TOLERANCES = {"float32": 2e-4, "bfloat16": 2e-2}
"""Of the losses of the first steps, relative."""


@dataclass
class Candidate:
    """A training step that goes on from its own state."""

    step: Callable[[], float]
    facts: Row
    executable: Any = None
    """The compiled program, if it is one."""


def jaxseq_step(case: Case) -> Candidate:
    """``training.make_train_step`` with the optimizer of the experiments."""
    init, loss, batch = problem(case)
    config = training.OptimizerConfig(learning_rate=RATE, schedule="constant", weight_decay=DECAY, clip_norm=CLIP)
    optimizer = training.make_optimizer(config, 1000)
    state = training.create_state(init(), optimizer, key=jax.random.key(0))

    def with_empty_carry(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        value, count = loss(params, batch, key)
        return value, training.Aux(carry, {}, count)

    step = training.make_train_step(with_empty_carry, optimizer)
    return _jax_candidate(jax.jit(lambda state, batch: step(state, batch), donate_argnums=0), state, batch)


def _jax_candidate(step: Callable, state: Any, batch: Any) -> Candidate:
    start = time.perf_counter()
    executable = step.lower(state, batch).compile()  # type: ignore[attr-defined]
    facts: Row = {"compile_s": time.perf_counter() - start}
    facts["temp_bytes"] = getattr(executable.memory_analysis(), "temp_size_in_bytes", None)

    def once() -> float:
        nonlocal state
        state, metrics = executable(state, batch)
        return float(jax.block_until_ready(metrics["loss"]))

    return Candidate(once, facts, executable)


def jaxseq_forward(case: Case) -> Candidate:
    """The loss alone."""
    init, loss, batch = problem(case)
    params, key = init(), jax.random.key(0)
    executable = jax.jit(lambda params, batch, key: loss(params, batch, key)[0]).lower(params, batch, key).compile()
    return Candidate(lambda: float(executable(params, batch, key)), {})


class FlaxModel(nn.Module):
    """The same model of flax's own modules."""

    case: Case

    @nn.compact
    def __call__(self, tokens: jax.Array, deterministic: bool) -> jax.Array:
        """The logits."""
        config, dtype = self.case.config, POLICIES[self.case.config.precision].compute
        width, drop = config.features, nn.Dropout(config.dropout, deterministic=deterministic)
        x = drop(nn.Embed(self.case.vocabulary, width, dtype=dtype)(tokens))
        for _ in range(config.layers):
            if self.case.model == "lstm":
                x = nn.RNN(nn.OptimizedLSTMCell(width, dtype=dtype))(x)
                continue
            options: Any = {"qkv_features": width, "use_bias": False, "dtype": dtype}
            heads = nn.MultiHeadDotProductAttention(self.case.num_heads, **options)
            x = x + heads(nn.LayerNorm(dtype=dtype)(x), mask=nn.make_causal_mask(tokens))
            hidden = nn.gelu(nn.Dense(4 * width, dtype=dtype)(nn.LayerNorm(dtype=dtype)(x)))
            x = x + nn.Dense(width, dtype=dtype)(hidden)
        if self.case.model == "transformer":
            x = nn.LayerNorm(dtype=dtype)(x)
        return nn.Dense(self.case.vocabulary, dtype=dtype)(drop(x)).astype(jnp.float32)


def flax_step(case: Case) -> Candidate:
    """flax's modules and optax in one jitted step with donated state."""
    model, tokens = FlaxModel(case), jnp.asarray(case.tokens())
    params = jax.jit(partial(model.init, deterministic=True))(jax.random.key(0), tokens[:, :-1])
    mask = partial(jax.tree.map, lambda x: x.ndim >= 2)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, weight_decay=DECAY, mask=mask))

    def loss(params: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        off = not case.config.dropout
        logits: Any = model.apply(params, batch[:, :-1], off, rngs=None if off else {"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: jax.Array) -> Any:
        params, opt_state, key = state
        key, dropout_key = jax.random.split(key)
        value, gradients = jax.value_and_grad(loss)(params, batch, dropout_key)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), {"loss": value}

    return _jax_candidate(step, (params, optimizer.init(params), jax.random.key(1)), tokens)


def torch_step(case: Case, compiled: bool) -> Candidate:
    """torch's modules, from jaxseq's parameters."""
    import torch
    from training_step_torch import Step

    torch.manual_seed(0)
    params = jax.tree.map(np.asarray, problem(case).init())
    step = Step(case, params, compiled=compiled, rate=RATE, decay=DECAY, clip=CLIP)
    return Candidate(step, step.facts)


MAKERS: dict[str, Callable[[Case], Candidate]] = {
    "jaxseq": jaxseq_step,
    "jaxseq: forward": jaxseq_forward,
    "flax": flax_step,
    "torch": partial(torch_step, compiled=False),
    "torch.compile": partial(torch_step, compiled=True),
}


def run_case(case: Case, repeats: int, only: set[str] | None = None, profile: bool = False) -> list[Row]:
    """Prepare, check and time the candidates of a case; one row each."""
    rows: list[Row] = []
    ready: list[tuple[Row, Candidate]] = []
    expected: list[float] = []
    for label, make in MAKERS.items():
        if only and label not in only:
            continue
        row: Row = {"case": case.name, "name": label, "precision": case.config.precision}
        rows.append(row)
        gap = None if label.startswith("jaxseq") else case.peer_gap(label.split(".")[0])
        if gap:
            row["left_out"] = gap
            continue
        try:
            ready.append((row, _checked(make, case, label, row, expected)))
        except Exception as error:  # the others are still measured
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    seconds = _interleaved([candidate for _, candidate in ready], repeats)
    flops, ceiling = step_flops(case), matmul_ceiling(str(jnp.dtype(POLICIES[case.config.precision].compute)))
    for (row, candidate), timings in zip(ready, seconds, strict=True):
        low, middle, high = np.percentile(timings, [25, 50, 75])
        row |= {"median_s": float(middle), "iqr_s": float(high - low), "repeats": repeats}
        row["tokens_per_s"] = case.tokens_per_step / row["median_s"]
        if "forward" not in row["name"]:
            row |= {"flops": flops, "fraction_of_products": flops / row["median_s"] / ceiling}
        if profile and row["name"] == "jaxseq":
            try:
                row["profile"] = breakdown(candidate.executable, candidate.step, PROFILED_STEPS)
            except RuntimeError as error:
                row["profile_error"] = str(error)
    return rows


def _checked(make: Callable, case: Case, label: str, row: Row, expected: list[float]) -> Candidate:
    """A candidate that has made a few steps; torch's losses are held against ``expected``, which jaxseq's fill."""
    plain = case.without_dropout()
    candidate = make(plain)
    losses = [candidate.step() for _ in range(CHECKED_STEPS)]
    if label == "jaxseq":
        expected += losses
    if label.startswith("torch") and expected:
        error = float(np.max(np.abs(np.subtract(losses, expected)) / np.abs(expected)))
        row["loss_error"] = judged(error, TOLERANCES[case.config.precision])
    if plain != case:
        candidate = make(case)
        candidate.step()
    row |= candidate.facts
    return candidate


def _interleaved(candidates: list[Candidate], repeats: int) -> list[list[float]]:
    """Seconds of each candidate's steps: one step of each per round, the first place going round."""
    seconds: list[list[float]] = [[] for _ in candidates]
    for repeat in range(repeats):
        for turn in range(len(candidates)):
            index = (repeat + turn) % len(candidates)
            start = time.perf_counter()
            candidates[index].step()
            seconds[index].append(time.perf_counter() - start)
    return seconds


def show(rows: list[Row]) -> None:
    """Print the rows of a case, with their time over jaxseq's."""
    medians = {row["name"]: row["median_s"] for row in rows if "median_s" in row}
    base, forward = medians.get("jaxseq"), medians.get("jaxseq: forward")
    ratio = f", step / forward {base / forward:.2f}" if base and forward else ""
    print(f"\n{rows[0]['case']}, {rows[0]['precision']}{ratio}")
    for row in rows:
        if "median_s" not in row:
            print(f"  {row['name']:18}{row['left_out'] if 'left_out' in row else row['error']}")
            continue
        compile_s = f"{row['compile_s']:.1f}" if "compile_s" in row else "-"
        share = f"{row['fraction_of_products']:.0%}" if "fraction_of_products" in row else "-"
        over = f"{row['median_s'] / base:.2f}" if base else "-"
        times = f"{1e3 * row['median_s']:9.2f} ms  IQR {1e3 * row['iqr_s']:6.2f}  {row['tokens_per_s']:9,.0f} tokens/s"
        print(f"  {row['name']:18}{times}  compile {compile_s:>5} s  products {share:>4}  / jaxseq {over}")
    for row in rows:
        if "profile" in row:
            print(table(row["profile"]), flush=True)
        elif "profile_error" in row:
            print(f"    no profile: {row['profile_error']}")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=list(TIMED), help="names of cases (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each candidate (default: %(default)s)")
    parser.add_argument("--precision", choices=POLICIES, default="float32", help="dtypes (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=MAKERS, help="names of candidates; writes with --out alone")
    parser.add_argument("--profile", action="store_true", help="jaxseq's step by part")
    parser.add_argument("--out", type=Path, help="the JSON lines; by default a file of benchmarks/results")
    options = parse_arguments(parser, arguments)
    try:
        cases = [Case.parse(name, options.precision) for name in options.case]
    except ValueError as error:
        parser.error(str(error))
    name = "training_step" if options.precision == "float32" else f"training_step_{options.precision}"
    out = options.out or (None if options.only else RESULTS / f"{name}-{device_name()}.jsonl")
    rows: list[Row] = []
    for case in cases:
        found = run_case(case, options.repeats, set(options.only or ()), options.profile)
        show(found)
        rows += [row | environment() for row in found]
        if out:  # what is there counts if a later case runs out of time
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if out:
        print(f"\nwritten: {out}")


if __name__ == "__main__":
    main()
