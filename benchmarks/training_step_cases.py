"""The cases of ``training_step.py``: jaxseq's models, their batches and losses.

A case is named ``model-width-layers-batch-length`` or ``model-width-layers-batch-length-vocabulary``
(``lstm-256-2-32-128``), where the model is ``transformer`` or a name in ``jaxseq.cores.CORES``, or it is one of
``NAMED``: models of the experiments with their default sizes.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import analysis, training
from jaxseq.cores import CORES
from jaxseq.models.configs import AttentionTranslator, LanguageModelConfig, Precision, TransformerTranslator

VOCABULARY = 128

TIMED = (
    "lstm-256-1-32-128",
    "lstm-256-2-32-128",
    "transformer-128-2-32-128",
    "transformer-256-4-16-128",
    "transformer-256-4-4-512",
    "demo",
    "translation-transformer",
    "translation-attention",
    "conv-256-2-32-128",
    "lru-256-2-32-128",
)
"""The cases that are measured unless others are asked for."""

Config = LanguageModelConfig | TransformerTranslator | AttentionTranslator


@dataclass(frozen=True)
class Case:
    """A model and the shape of its batches; a translator's sources are one token shorter than its targets."""

    name: str
    model: str
    """lstm, transformer, another core, or a key of ``NAMED``."""
    config: Config
    batch: int
    length: int
    vocabulary: int = VOCABULARY

    @classmethod
    def parse(cls, name: str, precision: Precision = "float32") -> "Case":
        """From ``lstm-256-2-32-128`` or ``demo``.

        Raises:
            ValueError: neither such a name nor one of ``NAMED``.
        """
        if name in NAMED:
            case = NAMED[name]
            return dataclasses.replace(case, config=dataclasses.replace(case.config, precision=precision))
        model, *numbers = name.split("-")
        known = ("transformer", *(core for core in CORES if core != "attention"))
        if model not in known or len(numbers) not in (4, 5) or not all(n.isdecimal() and int(n) for n in numbers):
            raise ValueError(
                f"case {name!r} is neither model-width-layers-batch-length[-vocabulary] nor one of {', '.join(NAMED)}; "
                f"models: {', '.join(known)}"
            )
        width, layers, *sizes = map(int, numbers)
        shared: dict[str, Any] = {"features": width, "layers": layers, "dropout": 0.0, "precision": precision}
        if model == "transformer":
            config = LanguageModelConfig(core="attention", core_options=("positions=none",), **shared)
        else:
            config = LanguageModelConfig(core=model, block="none" if model == "lstm" else "auto", **shared)
        return cls(name, model, config, *sizes)

    @property
    def tokens_per_step(self) -> int:
        """The tokens that a step predicts."""
        return self.batch * self.length

    @property
    def num_heads(self) -> int:
        """One head for every 64 features."""
        return max(1, self.config.features // 64)

    @property
    def translates(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return not isinstance(self.config, LanguageModelConfig)

    def without_dropout(self) -> "Case":
        """The same case with a rate of 0."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, dropout=0.0))

    def tokens(self) -> np.ndarray:
        """Random tokens with their targets, ``[B, T + 1]``."""
        shape = self.batch, self.length + 1
        return np.random.default_rng(0).integers(self.vocabulary, size=shape, dtype=np.int32)

    def peer_gap(self, peer: str) -> str | None:
        """Why flax or torch is left out, or None."""
        if self.translates and peer == "flax":
            return "flax has no module of an encoder-decoder"
        if self.name == "translation-attention":
            return "torch has no module of a decoder with additive attention"
        if self.model not in ("lstm", "transformer"):
            return f"{peer} has no module for {self.model}"
        return None if importlib.util.find_spec(peer) else f"{peer} is not installed"


NAMED = {
    "demo": Case("demo", "lstm", LanguageModelConfig(), batch=32, length=128, vocabulary=105),
    "translation-transformer": Case(
        "translation-transformer", "transformer", TransformerTranslator(), batch=64, length=31, vocabulary=44
    ),
    "translation-attention": Case(
        "translation-attention", "attention", AttentionTranslator(), batch=64, length=31, vocabulary=44
    ),
}
"""The default models of ``experiments/language_model.py`` and ``experiments/translation.py`` with their default batch,
length (the larger of two buckets) and vocabulary; random tokens, no padding, an empty carry in each step."""


class Problem(NamedTuple):
    """The parameters, loss and batch of a training step."""

    init: Callable[[], Any]
    """Makes the initial parameters."""
    loss: Callable
    """``loss(params, batch, key) -> (mean cross-entropy, number of tokens)``; ``key`` None: without dropout."""
    batch: Any


def problem(case: Case) -> Problem:
    """jaxseq's model, its loss and a batch."""
    tokens = jnp.asarray(case.tokens())
    batch = tokens[:, :-1], tokens[:, 1:]
    model: Any
    if isinstance(case.config, LanguageModelConfig):
        model = case.config.build(case.vocabulary, case.length - 1)
        arguments: tuple = (model.initial_carry((case.batch,)), batch[0])
    else:
        model = case.config.build(case.vocabulary, case.vocabulary)
        source = tokens[:, 1:-1]
        arguments = source, batch[0], *(jnp.ones(x.shape, jnp.int32) for x in (source, batch[0]))

    def loss(params: Any, batch: tuple[jax.Array, jax.Array], key: Any) -> tuple[jax.Array, jax.Array]:
        inputs, targets = batch
        rngs = {"dropout": key} if case.config.dropout and key is not None else None
        out: Any = model.apply({"params": params}, arguments[0], inputs, *arguments[2:], rngs=rngs)
        logits = out if case.translates else out[1]
        entropy = training.cross_entropy(logits, targets, jnp.ones(targets.shape, bool))
        return entropy.mean, entropy.count

    return Problem(lambda: jax.jit(model.init)(jax.random.key(0), *arguments)["params"], loss, batch)


def step_flops(case: Case) -> float:
    """Three times the FLOPs of the products in the forward pass, whatever implementation runs.

    Counted in the plain equations (``implementation="reference"``): attention over all pairs of positions, visible or
    not, as in PaLM's model FLOPs utilisation.
    """
    config = case.config
    if isinstance(config, LanguageModelConfig):
        fields = {field.name for field in dataclasses.fields(CORES[config.core])}
        reference = ("implementation=reference",) if "implementation" in fields else ()
        config = dataclasses.replace(config, core_options=config.core_options + reference)
    init, loss, batch = problem(dataclasses.replace(case, config=config))
    return 3.0 * analysis.program_flops(lambda p, b: loss(p, b, None)[0], jax.eval_shape(init), batch)
