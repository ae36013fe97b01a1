"""The options of sampling and of beam search, checked where they are made.

    sample(step, carry, first_tokens, SamplingOptions(temperature=0.8, top_p=0.95), key=key, max_length=50)
    beam_search(step, carry, first_tokens, BeamOptions(num_beams=8, normalization="gnmt"), max_length=50, end_token=2)

Numbers are checked when an options object is created. Values that are traced by JAX cannot be checked and are used as
they are. What depends on the vocabulary, on ``max_length`` or on the batch is checked by the function that is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxseq.decoding.normalization import NORMALIZATIONS, Normalization
from jaxseq.typing import Array, Bool, Carry, Float, Scalar

SMALLEST_POSITIVE = float(np.finfo(np.float32).tiny)


@partial(register_dataclass, data_fields=["temperature", "top_p", "min_p", "typical_p"], meta_fields=["top_k"])
@dataclass(frozen=True)
class SamplingOptions:
    """The temperature and the logits filters of sampling.

    The temperature comes first, then top-k, top-p, min-p and typical-p, in this order. Each filter sets the logits of
    the tokens that it removes to minus infinity, and sees the distribution that the filters before it left,
    renormalised. ``None`` leaves a filter out. The options are a pytree; only ``top_k`` is part of the compiled
    program, so that new values of the others need no new compilation.

    Attributes:
        temperature: divides the logits, ``softmax(logits / temperature)``. Above 0; below 1 sharpens the distribution,
            above 1 flattens it. 1 or ``None`` leaves the logits as they are.
        top_k: keeps the k most probable tokens; among equals those of the lowest ids. In [1, V]. Fan et al.,
            "Hierarchical neural story generation", 2018.
        top_p: keeps the smallest set of most probable tokens whose probabilities sum to at least p (the nucleus). In
            (0, 1]; 1 keeps all. Holtzman et al., "The curious case of neural text degeneration", 2020.
        min_p: keeps the tokens with ``probability >= min_p * max(probabilities)``. In (0, 1]. Nguyen et al., "Turning
            up the heat: min-p sampling for creative and coherent LLM outputs", 2024.
        typical_p: keeps the smallest set of tokens whose probabilities sum to at least p, in increasing order of
            ``|-log probability - entropy|``. In (0, 1]; 1 keeps all. Meister et al., "Locally typical sampling", 2023.

    Raises:
        ValueError: a value outside its range (names field and value).
    """

    temperature: float | Scalar | None = 1.0
    top_k: int | None = None
    top_p: float | Scalar | None = None
    min_p: float | Scalar | None = None
    typical_p: float | Scalar | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        temperature = known_number(self.temperature)
        if temperature == 0:
            raise ValueError("temperature must be above 0, not 0: use greedy for the most probable tokens")
        if temperature is not None and not SMALLEST_POSITIVE <= temperature < float("inf"):
            raise ValueError(f"temperature must be above 0 and finite, not {temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        for name in ("top_p", "min_p", "typical_p"):
            p = known_number(getattr(self, name))
            if p is not None and not SMALLEST_POSITIVE <= p <= 1:
                raise ValueError(f"{name} must be in (0, 1], not {p}")


@partial(register_dataclass, data_fields=["strength", "mask"], meta_fields=["weights"])
@dataclass(frozen=True, eq=False)
class Coverage:
    """The coverage penalty of beam search: ``β Σ_s log min(Σ_t a_ts, 1)`` is added to a finished hypothesis' score.

    It is never above 0. Wu et al., "Google's neural machine translation system", 2016, section 7.

    Attributes:
        weights: a function of the carry that a step returns; gives the attention weights ``a_t`` ``[*B S]`` of that
            step. It is compared by identity: a new lambda for every search is compiled again.
        strength: β, at least 0.
        mask: the source positions that count (True), ``[*B S]``; all where it is ``None``.

    Raises:
        ValueError: a strength below 0 or not finite.
    """

    weights: Callable[[Carry], Float[Array, "*B S"]]
    strength: float | Scalar
    mask: Bool[Array, "*B S"] | None = None

    def __post_init__(self) -> None:
        """Check the strength."""
        strength = known_number(self.strength)
        if strength is not None and not 0 <= strength < float("inf"):
            raise ValueError(f"coverage strength must be at least 0 and finite, not {strength}")


@dataclass(frozen=True)
class BeamOptions:
    """The size, the scores and the diversity of a beam search.

    The score of a hypothesis y is ``log P(y | x) / divisor(|y|)``, plus the coverage penalty (``beam_search`` says what
    logits processors change).

    Attributes:
        num_beams: the number of unfinished hypotheses that are extended, and of finished ones that are kept. At least
            1 and at most the number of sequences, ``V^max_length``.
        num_results: the number of returned hypotheses, best first. In [1, num_beams]; ``None`` returns all.
        normalization: the divisor: ``"none"`` (1), ``"mean"`` (``|y|``), ``"gnmt"`` (``GNMT(0.6)``), ``GNMT(alpha)``
            (``((5 + |y|) / 6)^alpha``), or any positive function of a length.
        early_stopping: ends the search of a row as soon as no unfinished hypothesis can reach the results any more. A
            log-probability only falls, so an unfinished hypothesis scores at most its log-probability over the largest
            divisor of a longer length. The results are the same without it.
        num_groups: diverse beam search: the number of groups that the beams are divided into. Divides num_beams; two
            groups may return the same hypothesis. Vijayakumar et al., "Diverse beam search", 2018.
        diversity: the penalty of a token for each hypothesis of an earlier group that has taken the same token at the
            same step. At least 0; scores do not contain it.
        coverage: the coverage penalty; ``None`` leaves it out.
        keep_carry: also returns the carry after each result, by reading the results once more after the search.

    Raises:
        ValueError: a value outside its range, an unknown normalization, or groups that do not divide the beams (names
            field and value).
    """

    num_beams: int = 4
    num_results: int | None = None
    normalization: str | Normalization = "none"
    early_stopping: bool = True
    num_groups: int = 1
    diversity: float | Scalar = 0.0
    coverage: Coverage | None = None
    keep_carry: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, not {self.num_beams}")
        if self.num_groups < 1 or self.num_beams % self.num_groups:
            raise ValueError(f"num_beams={self.num_beams} is not divisible by num_groups={self.num_groups}")
        if self.num_results is not None and not 1 <= self.num_results <= self.num_beams:
            raise ValueError(f"num_results must be in [1, {self.num_beams}] (num_beams), not {self.num_results}")
        if isinstance(self.normalization, str) and self.normalization not in NORMALIZATIONS:
            raise ValueError(f"unknown normalization {self.normalization!r}; known: {', '.join(NORMALIZATIONS)}")
        diversity = known_number(self.diversity)
        if diversity is not None and not 0 <= diversity < float("inf"):
            raise ValueError(f"diversity must be at least 0 and finite, not {diversity}")
        if diversity and self.num_groups == 1:
            raise ValueError(f"diversity={diversity} works between groups: num_groups must be above 1")


def known_number(value: Any) -> float | None:
    """The value as a number where it can be checked: not if it is None, traced, or a placeholder of a pytree."""
    if isinstance(value, jax.core.Tracer) or not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)):
        return None
    return float(value)


def active_filters(options: SamplingOptions) -> SamplingOptions:
    """The options as inputs of a compiled program: values as arrays, ``None`` for those that change nothing."""

    def number(value: Any, neutral: float | None) -> Any:
        unchanged = value is None or (neutral is not None and known_number(value) == neutral)
        return None if unchanged else jnp.asarray(value, float)

    return SamplingOptions(
        number(options.temperature, 1.0),
        options.top_k,
        number(options.top_p, 1.0),
        number(options.min_p, None),
        number(options.typical_p, 1.0),
    )
