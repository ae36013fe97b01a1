"""Whole training steps of language models: forward, backward, clipping, AdamW, against torch's and flax's modules.

    python benchmarks/training_step.py                                  # all cases, about 10 minutes on 2 CPU cores
    python benchmarks/training_step.py --case transformer-128-2-32-128 --repeats 15

A case is a model, its width, layers, batch and length: ``lstm-256-2-32-128``. The vocabulary is 128, everything is
float32, without dropout. The same step everywhere: mean cross-entropy, its gradient, clipping by the global norm,
AdamW with weight decay on matrices. Transformers are pre-norm blocks (LayerNorm, causal self-attention without
positions, a GELU feed-forward layer of 4 widths) and a last LayerNorm.

- ``jaxseq``: ``LanguageModelConfig`` and ``training.make_train_step``.
- ``jaxseq: forward``: the loss alone; a step should cost about three of them.
- ``flax``: ``nn.RNN(OptimizedLSTMCell)``, ``MultiHeadDotProductAttention``, optax, in one jitted step.
- ``torch``: ``nn.LSTM``, ``scaled_dot_product_attention``, fused AdamW where it exists, else ``foreach``; as it is and
  through ``torch.compile``.

Every candidate is timed in turn, a step each, and each goes on from its own state. torch starts from jaxseq's
parameters, and the losses of the first three steps must agree with jaxseq's. The rows hold the FLOPs of the matrix
products (three times the forward's, counted in the traced program) and the fraction of the product rate that the same
run measures.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import RESULTS, device_name, environment, judged, matmul_ceiling, parse_arguments

from jaxseq import analysis, training
from jaxseq.models.configs import LanguageModelConfig

VOCABULARY = 128
RATE, CLIP, DECAY = 1e-3, 1.0, 1e-2
CHECKED_STEPS = 3
TOLERANCE = 2e-4
"""Of the losses of the first steps, relative."""

CASES = (
    "lstm-256-1-32-128",
    "lstm-256-2-32-128",
    "transformer-128-2-32-128",
    "transformer-256-4-16-128",
    "transformer-256-4-4-512",
)


@dataclass(frozen=True)
class Case:
    """A model and the shape of its batches."""

    model: str
    width: int
    layers: int
    batch: int
    length: int

    @classmethod
    def parse(cls, name: str) -> "Case":
        """From ``lstm-256-2-32-128``."""
        model, *numbers = name.split("-")
        return cls(model, *map(int, numbers))

    def config(self) -> LanguageModelConfig:
        """The model of jaxseq."""
        shared: dict[str, Any] = {"features": self.width, "layers": self.layers, "dropout": 0.0}
        if self.model == "transformer":
            return LanguageModelConfig(core="attention", core_options=("positions=none",), **shared)
        return LanguageModelConfig(core=self.model, block="none" if self.model == "lstm" else "auto", **shared)

    @property
    def num_heads(self) -> int:
        """One head for every 64 features."""
        return self.width // 64

    def tokens(self) -> np.ndarray:
        """A batch with its targets, ``[B, T + 1]``."""
        return np.random.default_rng(0).integers(VOCABULARY, size=(self.batch, self.length + 1), dtype=np.int32)


@dataclass
class Candidate:
    """A training step that goes on from its own state."""

    name: str
    step: Callable[[], float]
    facts: dict[str, Any]


def jaxseq_loss(case: Case) -> tuple[Any, Callable]:
    """The initial parameters and the loss of a batch."""
    model = case.config().build(VOCABULARY, case.length - 1)
    carry = model.initial_carry((case.batch,))

    def loss(params: Any, carry: Any, batch: jax.Array, key: Any) -> tuple[jax.Array, training.Aux]:
        applied: Any = model.apply({"params": params}, carry, batch[:, :-1])
        logits = applied[1]
        entropy = training.cross_entropy(logits, batch[:, 1:], jnp.ones(batch[:, 1:].shape, bool))
        return entropy.mean, training.Aux(carry, {}, entropy.count)

    tokens = jnp.asarray(case.tokens())
    params = jax.jit(model.init)(jax.random.key(0), carry, tokens[:, :-1])["params"]
    return params, lambda params, batch: loss(params, carry, batch, None)


def jaxseq_step(case: Case) -> Candidate:
    """``training.make_train_step`` with the optimizer of the experiments."""
    params, loss = jaxseq_loss(case)
    config = training.OptimizerConfig(learning_rate=RATE, schedule="constant", weight_decay=DECAY, clip_norm=CLIP)
    optimizer = training.make_optimizer(config, 1000)
    state = training.create_state(params, optimizer, key=jax.random.key(0))

    def with_empty_carry(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        value, aux = loss(params, batch)
        return value, aux._replace(carry=carry)

    step = training.make_train_step(with_empty_carry, optimizer)
    return _jax_candidate("jaxseq", step, state, case)


def _jax_candidate(name: str, step: Callable, state: Any, case: Case) -> Candidate:
    batch = jnp.asarray(case.tokens())
    start = time.perf_counter()
    executable = step.lower(state, batch).compile()  # type: ignore[attr-defined]
    facts: dict[str, Any] = {"compile_s": time.perf_counter() - start}
    facts["temp_bytes"] = getattr(executable.memory_analysis(), "temp_size_in_bytes", None)

    def once() -> float:
        nonlocal state
        state, metrics = executable(state, batch)
        return float(jax.block_until_ready(metrics["loss"]))

    return Candidate(name, once, facts)


def jaxseq_forward(case: Case) -> Candidate:
    """The loss alone."""
    params, loss = jaxseq_loss(case)
    batch = jnp.asarray(case.tokens())
    executable = jax.jit(lambda params, batch: loss(params, batch)[0]).lower(params, batch).compile()
    return Candidate("jaxseq: forward", lambda: float(executable(params, batch)), {})


class FlaxModel(nn.Module):
    """The same model of flax's own modules."""

    case: Case

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The logits."""
        width = self.case.width
        x = nn.Embed(VOCABULARY, width)(tokens)
        for _ in range(self.case.layers):
            if self.case.model == "lstm":
                x = nn.RNN(nn.OptimizedLSTMCell(width))(x)
                continue
            heads = nn.MultiHeadDotProductAttention(self.case.num_heads, qkv_features=width, use_bias=False)
            x = x + heads(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
        if self.case.model == "transformer":
            x = nn.LayerNorm()(x)
        return nn.Dense(VOCABULARY)(x)


def flax_step(case: Case) -> Candidate:
    """flax's modules and optax in one jitted step with donated state."""
    model, tokens = FlaxModel(case), jnp.asarray(case.tokens())
    params = jax.jit(model.init)(jax.random.key(0), tokens[:, :-1])
    mask = partial(jax.tree.map, lambda x: x.ndim >= 2)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, weight_decay=DECAY, mask=mask))

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        logits: Any = model.apply(params, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: jax.Array) -> Any:
        params, opt_state = state
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": value}

    return _jax_candidate("flax", step, (params, optimizer.init(params)), case)


def torch_step(case: Case, compiled: bool) -> Candidate:
    """torch's modules, from jaxseq's parameters."""
    import torch
    from training_step_torch import adamw, build

    torch.manual_seed(0)
    model = build(case, jax.tree.map(np.asarray, jaxseq_loss(case)[0]))
    optimizer, form = adamw(model, RATE, DECAY)
    tokens = torch.tensor(case.tokens(), dtype=torch.long)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    function = torch.compile(loss) if compiled else loss

    def once() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = function()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(value.detach())

    start = time.perf_counter()
    if compiled:
        function().backward()
    facts = {"compile_s": time.perf_counter() - start} if compiled else {}
    return Candidate("torch.compile" if compiled else "torch", once, facts | {"adamw": form})


def run_case(name: str, repeats: int, only: set[str]) -> list[dict[str, Any]]:
    """Prepare, check and time the candidates of a case; one row each."""
    case = Case.parse(name)
    makers: dict[str, Callable[[], Candidate]] = {
        "jaxseq": lambda: jaxseq_step(case),
        "jaxseq: forward": lambda: jaxseq_forward(case),
        "flax": lambda: flax_step(case),
        "torch": lambda: torch_step(case, False),
        "torch.compile": lambda: torch_step(case, True),
    }
    rows: list[dict[str, Any]] = []
    ready: list[tuple[dict[str, Any], Candidate, list[float]]] = []
    expected: list[float] = []
    for label, make in makers.items():
        if only and label not in only:
            continue
        row: dict[str, Any] = {"case": name, "name": label}
        rows.append(row)
        try:
            candidate = make()
            losses = [candidate.step() for _ in range(CHECKED_STEPS)]
            if label == "jaxseq":
                expected = losses
            if label.startswith("torch") and expected:
                error = float(np.max(np.abs(np.subtract(losses, expected)) / np.abs(expected)))
                row["loss_error"] = judged(error, TOLERANCE)
        except Exception as error:  # the others are still measured
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        row |= candidate.facts
        ready.append((row, candidate, []))
    for repeat in range(repeats):
        for turn in range(len(ready)):
            _, candidate, seconds = ready[(repeat + turn) % len(ready)]
            start = time.perf_counter()
            candidate.step()
            seconds.append(time.perf_counter() - start)
    flops = step_flops(case)
    for row, _, seconds in ready:
        low, middle, high = np.percentile(seconds, [25, 50, 75])
        row |= {"median_s": float(middle), "iqr_s": float(high - low), "repeats": repeats}
        if "forward" not in row["name"]:
            row |= {"flops": flops, "fraction_of_products": flops / float(middle) / matmul_ceiling()}
    return rows


def step_flops(case: Case) -> float:
    """Three times the FLOPs of the forward pass's matrix products."""
    params, loss = jaxseq_loss(case)
    return 3.0 * analysis.program_flops(
        lambda params, batch: loss(params, batch)[0], params, jnp.asarray(case.tokens())
    )


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows of a case, with their time over jaxseq's."""
    base = next((row["median_s"] for row in rows if row["name"] == "jaxseq" and "median_s" in row), None)
    forward = next((row["median_s"] for row in rows if row["name"] == "jaxseq: forward" and "median_s" in row), None)
    ratio = f", step / forward {base / forward:.2f}" if base and forward else ""
    print(f"\n{rows[0]['case']}{ratio}")
    for row in rows:
        if "error" in row:
            print(f"  {row['name']:18}{row['error']}")
            continue
        compile_s = f"{row['compile_s']:.1f}" if "compile_s" in row else "-"
        share = f"{row['fraction_of_products']:.0%}" if "fraction_of_products" in row else "-"
        over = f"{row['median_s'] / base:.2f}" if base else "-"
        times = f"{1e3 * row['median_s']:9.2f} ms  IQR {1e3 * row['iqr_s']:6.2f}"
        print(f"  {row['name']:18}{times}  compile {compile_s:>5} s  products {share:>4}  / jaxseq {over}", flush=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=list(CASES), help="model-width-layers-batch-length")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=[], help="names of candidates; nothing is written then")
    options = parse_arguments(parser)
    rows: list[dict[str, Any]] = []
    for name in options.case:
        rows += run_case(name, options.repeats, set(options.only))
        show([row for row in rows if row["case"] == name])
    if options.only:
        return
    path = RESULTS / f"training_step-{device_name()}.jsonl"
    path.write_text("".join(json.dumps(row | environment()) + "\n" for row in rows))
    print(f"\nwritten: {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
