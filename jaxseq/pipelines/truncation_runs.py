"""Training runs of one model in the modes of truncated back-propagation, all on the same tokens."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxseq import training
from jaxseq.data import Batch, Dataset, SequenceChunks
from jaxseq.training.state import copy_buffers
from jaxseq.typing import Array, Bool, Carry, PyTree, Scalar

PROGRESS_SECONDS = 4.0


class TruncationRun(NamedTuple):
    """The result of a run."""

    mode: str
    cut: int
    seed: int
    loss: float  # of held-out sequences, in nats per token
    updates: int
    microseconds_per_token: float  # of training, compilation not included
    recomputed_chunks: int  # forward passes of a chunk for its carry alone, per sequence


@dataclass(frozen=True)
class TruncationRuns:
    """Trains a model with AdamW on ``num_batches`` batches of sequences, each cut into chunks.

    The learning rate rises over a twentieth of the updates and decays by a cosine. With ``update_per_sequence`` the
    gradients of a sequence's chunks are averaged into one update, so that the parameters are at rest within a sequence
    (modes ``carry`` and ``recompute`` are then the same); otherwise each chunk makes an update, and a run with more
    chunks makes more updates.

    Args:
        model: a language model; ``initial_carry(batch_shape, context)``.
        sequences: the sequences [B, T] of a seed.
        evaluate: the held-out loss of parameters.
        context: the earlier positions that attention keeps; recurrent states ignore it.
    """

    model: Any
    sequences: Callable[[int], Dataset[Batch]]
    evaluate: Callable[[PyTree], Any]
    batch_size: int
    num_batches: int
    learning_rate: float
    context: int
    update_per_sequence: bool = False
    _steps: dict[tuple[int, bool], Any] = field(default_factory=dict)  # train steps, compiled once
    _init: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_init", jax.jit(self.model.init))

    def initial_carry(self, batch_size: int) -> Carry:
        """The carry at the start of a sequence."""
        return self.model.initial_carry((batch_size,), self.context)

    def train(
        self, mode: str, cut: int, seed: int, moments: Sequence[float] = ()
    ) -> tuple[TruncationRun, list[training.TrainState]]:
        """Train once; returns the result, and the states at these moments, fractions of the run in increasing order."""
        batches = SequenceChunks(self.sequences(seed), cut)
        chunks = batches.chunks_per_sequence
        num_steps, accumulate = self.num_batches * chunks, chunks if self.update_per_sequence else 1
        optimizer = self.optimizer(num_steps, accumulate)
        carry, loss = self.initial_carry(self.batch_size), make_loss(self.model)
        truncation = training.Truncation(mode, loss, batches, carry)
        kind = cut, truncation.keep_carry
        if kind not in self._steps:
            self._steps[kind] = training.make_train_step(loss, optimizer, keep_carry=truncation.keep_carry)
        init_key, key = jax.random.split(jax.random.key(seed))
        params = self._init(init_key, carry, self.sequences(seed)(0).tokens)["params"]
        state = training.create_state(params, optimizer, carry=carry, key=key)
        wanted, states, begun, printed = [round(m * num_steps) for m in moments], [], 0.0, time.perf_counter()
        for step in range(num_steps + 1):
            states += [copy_buffers(state)] * wanted.count(step)
            if step == chunks:  # everything is compiled by the first sequences
                jax.block_until_ready(state.params)
                begun = time.perf_counter()
            if step == num_steps:
                break
            state, metrics = self._steps[kind](truncation.prepare(state, step), batches(step))
            if time.perf_counter() - printed > PROGRESS_SECONDS:
                printed = time.perf_counter()
                print(f"  step {step + 1} of {num_steps}: training loss {float(metrics['loss']):.3f}", flush=True)
        jax.block_until_ready(state.params)
        seconds = (time.perf_counter() - begun) / max(num_steps - chunks, 1)
        return TruncationRun(
            mode,
            cut,
            seed,
            float(self.evaluate(state.params)),
            num_steps // accumulate,
            1e6 * seconds / (self.batch_size * cut),
            chunks * (chunks - 1) // 2 if mode == "recompute" else 0,
        ), states

    def optimizer(self, num_steps: int, accumulate: int = 1) -> Any:
        """The optimizer of a run of that many steps."""
        warmup = num_steps // accumulate // 20
        options: dict[str, Any] = {"learning_rate": self.learning_rate, "b2": 0.99, "accumulate_steps": accumulate}
        return training.make_optimizer(training.OptimizerConfig(warmup_steps=warmup, **options), num_steps)


def make_loss(model: nn.Module) -> training.Loss[Batch]:
    """The mean cross-entropy of a language model without dropout, in nats per token."""

    def loss(params: PyTree, carry: Carry, batch: Batch, key: Array) -> tuple[Array, training.Aux]:
        after: Any = model.apply({"params": params}, carry, batch.tokens, batch.segment_ids)
        entropy = training.cross_entropy(after[1], batch.targets, batch.segment_ids != 0)
        return entropy.mean, training.Aux(after[0], {}, entropy.count)

    return loss


def make_scored_loss(model: nn.Module) -> Callable[[PyTree, Carry, Batch, Bool[Array, "B T"]], Scalar]:
    """``scored_loss(params, carry, batch, scored)``: the mean cross-entropy of the real positions that are scored."""

    def scored_loss(params: PyTree, carry: Carry, batch: Batch, scored: Bool[Array, "B T"]) -> Scalar:
        after: Any = model.apply({"params": params}, carry, batch.tokens, batch.segment_ids)
        return training.cross_entropy(after[1], batch.targets, scored & (batch.segment_ids != 0)).mean

    return scored_loss
