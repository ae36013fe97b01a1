"""The options of sampling and of beam search, checked where they are made.

    sample(step, carry, first_tokens, SamplingOptions(temperature=0.8, top_p=0.95), key=key, max_length=50)
    beam_search(step, carry, first_tokens, BeamOptions(num_beams=8, normalization="gnmt"), max_length=50, end_token=2)

Numbers are checked when an options object is created. Values that are traced by JAX, such as the arguments of a
function under ``jit`` that decodes, cannot be checked and are used as they are. What depends on the vocabulary, on
``max_length`` or on the batch is checked by the function that is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxseq.decoding.normalization import NORMALIZATIONS, Normalization
from jaxseq.typing import Array, Bool, Carry, Float, Integer, Scalar

SMALLEST_POSITIVE = float(np.finfo(np.float32).tiny)

PerRow: TypeAlias = float | Float[np.ndarray | Array, "..."]
"""A number for all rows, or an array ``[*B]`` with one for each row; it may be traced."""


@partial(register_dataclass, data_fields=["temperature", "top_p", "min_p", "typical_p"], meta_fields=["top_k"])
@dataclass(frozen=True)
class SamplingOptions:
    """The temperature and the logits filters of sampling.

    The temperature comes first, then top-k, top-p, min-p and typical-p, in this order. Each filter sets the logits of
    the tokens that it removes to minus infinity, and sees the distribution that the filters before it left,
    renormalised. ``None`` leaves a filter out. The options are a pytree; only ``top_k`` is part of the compiled
    program, so that new values of the others need no new compilation. All but ``top_k`` may be arrays ``[*B]``, one
    value for each row, and may be traced.

    Attributes:
        temperature: divides the logits, ``softmax(logits / temperature)``. Above 0 (at least 1.2e-38); below 1 sharpens
            the distribution, above 1 flattens it. 1 or ``None`` leaves the logits as they are.
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
        TypeError: a ``top_k`` that is traced, or not an integer.
    """

    temperature: PerRow | None = 1.0
    top_k: int | Integer[np.ndarray | Array, ""] | None = None
    top_p: PerRow | None = None
    min_p: PerRow | None = None
    typical_p: PerRow | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        temperatures = known_values(self.temperature)
        if np.any(temperatures == 0):
            raise ValueError("temperature must be above 0, not 0: use greedy for the most probable tokens")
        for value in temperatures[~((temperatures >= SMALLEST_POSITIVE) & (temperatures < np.inf))]:
            raise ValueError(f"temperature must be above 0 and finite, not {value}")
        if self.top_k is not None:
            top_k = known_integer("top_k", self.top_k)
            if top_k < 1:
                raise ValueError(f"top_k must be at least 1, not {top_k}")
            object.__setattr__(self, "top_k", top_k)
        for name in ("top_p", "min_p", "typical_p"):
            values = known_values(getattr(self, name))
            for p in values[~((values >= SMALLEST_POSITIVE) & (values <= 1))]:
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
        strength = known_number("coverage strength", self.strength)
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
        for name in ("num_beams", "num_results", "num_groups"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, known_integer(name, getattr(self, name)))
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, not {self.num_beams}")
        if self.num_groups < 1 or self.num_beams % self.num_groups:
            raise ValueError(f"num_beams={self.num_beams} is not divisible by num_groups={self.num_groups}")
        if self.num_results is not None and not 1 <= self.num_results <= self.num_beams:
            raise ValueError(f"num_results must be in [1, {self.num_beams}] (num_beams), not {self.num_results}")
        if isinstance(self.normalization, str) and self.normalization not in NORMALIZATIONS:
            raise ValueError(f"unknown normalization {self.normalization!r}; known: {', '.join(NORMALIZATIONS)}")
        diversity = known_number("diversity", self.diversity)
        if diversity is not None and not 0 <= diversity < float("inf"):
            raise ValueError(f"diversity must be at least 0 and finite, not {diversity}")
        if diversity and self.num_groups == 1:
            raise ValueError(f"diversity={diversity} works between groups: num_groups must be above 1")


def known_number(name: str, value: Any) -> float | None:
    """The value as a number where it can be checked: not if it is None, traced, or a placeholder of a pytree.

    Raises:
        ValueError: an array that is not a single number.
    """
    if not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)):
        return None
    if np.shape(value):
        raise ValueError(f"{name} must be a single number, not an array of shape {np.shape(value)}")
    return None if isinstance(value, jax.core.Tracer) else float(value)


def known_values(value: Any) -> Float[np.ndarray, " n"]:
    """The values of a number or an array where they can be checked; none if it is None, traced, or a placeholder."""
    if isinstance(value, jax.Array) and (isinstance(value, jax.core.Tracer) or not value.is_fully_addressable):
        return np.zeros(0)
    if not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)):
        return np.zeros(0)
    return np.asarray(value, np.float64).reshape(-1)


def known_integer(name: str, value: Any) -> int:
    """An integer that is part of a compiled program, also one given as an array.

    Raises:
        TypeError: it is traced, or not an integer.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} is part of the compiled program and cannot be traced: make it a static argument")
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def active_filters(options: SamplingOptions, batch_shape: tuple[int, ...]) -> SamplingOptions:
    """The options as inputs of a compiled program: values as arrays, ``None`` for those that change nothing.

    Raises:
        ValueError: an array that is neither a single value nor one for each row (names the field).
    """

    def number(name: str, neutral: float | None) -> Any:
        value = getattr(options, name)
        if value is None:
            return None
        if jnp.shape(value) not in ((), batch_shape):
            raise ValueError(
                f"{name} must be a single value or one for each row, {batch_shape}, not {jnp.shape(value)}"
            )
        known = known_values(value)
        unchanged = neutral is not None and known.size > 0 and bool(np.all(known == neutral))
        return None if unchanged else jnp.asarray(value, float)

    return SamplingOptions(
        number("temperature", 1.0),
        options.top_k,
        number("top_p", 1.0),
        number("min_p", None),
        number("typical_p", 1.0),
    )
