"""Positions in self-attention: rotated queries and keys, or a bias on the scores.

``cores.Attention`` and ``encoders.SelfAttention`` take the same choices, as an instance or as text::

    Attention(features, positions=Rotary(base=500_000.0))
    Attention(features, positions="rotary(base=500_000.0)")      # as on a command line
"""

import abc
import ast
from dataclasses import dataclass
from typing import Any, TypeAlias

import flax.linen as nn

from jaxseq.ops.attention import positions as ops
from jaxseq.ops.attention.biases import Bias
from jaxseq.typing import Array, Float, Int

ScoreBias: TypeAlias = Bias | Float[Array, "..."]
"""A bias that ``jaxseq.ops.attention`` adds to the scores."""


class AttentionPositions(abc.ABC):
    """Abstract: rotates projected queries and keys, adds a bias to the scores, or both."""

    @abc.abstractmethod
    def rotate(self, x: Float[Array, "*B T N H"], positions: Int[Array, "*B T"]) -> Float[Array, "*B T N H"]:
        """The queries or keys at these positions, counted from the start of their document (0 at padding)."""

    @abc.abstractmethod
    def bias(
        self,
        module: Any,
        num_heads: int,
        q_positions: Int[Array, "*B T"] | None,
        kv_positions: Int[Array, "*B S"] | None,
        causal: bool,
    ) -> ScoreBias | None:
        """The bias on the scores; positions of None are 0, 1, 2, ...

        Parameters are made in ``module``, with its ``param_dtype``.
        """


@dataclass(frozen=True)
class NoPositions(AttentionPositions):
    """No positions: only a causal mask, or inputs that encode them (``cores.Positions``), distinguish the order."""

    def rotate(self, x: Float[Array, "*B T N H"], positions: Int[Array, "*B T"]) -> Float[Array, "*B T N H"]:
        """The input unchanged."""
        return x

    def bias(self, module: Any, num_heads: int, q_positions: Any, kv_positions: Any, causal: bool) -> None:
        """None."""


@dataclass(frozen=True, eq=False)
class Rotary(AttentionPositions):
    """Rotates queries and keys (Su et al. 2021): arguments and errors are those of ``ops.positions.rotary``.

    Instances with tables are equal if they hold the same arrays.
    """

    base: float = 10000.0
    interleaved: bool = False
    features: int | None = None
    tables: tuple[Any, Any] | None = None

    def rotate(self, x: Float[Array, "*B T N H"], positions: Int[Array, "*B T"]) -> Float[Array, "*B T N H"]:
        """``ops.positions.rotary``."""
        options: dict[str, Any] = {"base": self.base, "interleaved": self.interleaved, "features": self.features}
        return ops.rotary(x, positions, tables=self.tables, **options)

    def bias(self, module: Any, num_heads: int, q_positions: Any, kv_positions: Any, causal: bool) -> None:
        """None."""

    def _identity(self) -> tuple:
        tables = None if self.tables is None else tuple(id(table) for table in self.tables)
        return self.base, self.interleaved, self.features, tables

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal; tables are compared by identity."""
        return isinstance(other, Rotary) and self._identity() == other._identity()

    def __hash__(self) -> int:
        """Consistent with equality."""
        return hash(self._identity())


@dataclass(frozen=True)
class Alibi(AttentionPositions):
    """The bias ``-slope · |q - k|`` on the scores, with the paper's slope for each head (Press et al. 2022)."""

    def rotate(self, x: Float[Array, "*B T N H"], positions: Int[Array, "*B T"]) -> Float[Array, "*B T N H"]:
        """The input unchanged."""
        return x

    def bias(self, module: Any, num_heads: int, q_positions: Any, kv_positions: Any, causal: bool) -> Bias:
        """``ops.positions.alibi``."""
        return ops.alibi(ops.alibi_slopes(num_heads), q_positions, kv_positions)


@dataclass(frozen=True)
class RelativeBuckets(AttentionPositions):
    """A learned bias for each head and each bucket of distances (Raffel et al. 2020: T5).

    The bias is ``table[n, bucket(k - q)]``, ``ops.positions.relative_bias``; the table is the parameter
    ``relative_bias``, ``[num_heads, num_buckets]``, zeros at first. Half of the buckets hold one distance each, the
    others grow logarithmically up to ``max_distance``. A causal core has buckets for the past only, an encoder for both
    directions.
    """

    num_buckets: int = 32
    max_distance: int = 128

    def rotate(self, x: Float[Array, "*B T N H"], positions: Int[Array, "*B T"]) -> Float[Array, "*B T N H"]:
        """The input unchanged."""
        return x

    def bias(self, module: Any, num_heads: int, q_positions: Any, kv_positions: Any, causal: bool) -> Bias:
        """``ops.positions.relative_bias``, in both directions unless ``causal``."""
        shape = num_heads, self.num_buckets
        table = module.param("relative_bias", nn.initializers.zeros, shape, module.param_dtype)
        options: dict[str, Any] = {"bidirectional": not causal, "max_distance": self.max_distance}
        return ops.relative_bias(table, q_positions, kv_positions, **options)


POSITIONS: dict[str, type[AttentionPositions]] = {
    "rotary": Rotary,
    "alibi": Alibi,
    "relative": RelativeBuckets,
    "none": NoPositions,
}
"""Every choice by its name."""


def attention_positions(choice: str | AttentionPositions) -> AttentionPositions:
    """The choice of that name, with options as in a call: ``"rotary"``, ``"relative(num_buckets=64)"``.

    Raises:
      ValueError: an unknown name (the known ones are listed), an unknown option, or one that is not a Python literal.
    """
    if isinstance(choice, AttentionPositions):
        return choice
    try:
        call = ast.parse(choice, mode="eval").body
        name, options = ast.unparse(call), {}
        if isinstance(call, ast.Call) and not call.args:
            name, options = ast.unparse(call.func), {str(o.arg): ast.literal_eval(o.value) for o in call.keywords}
        return POSITIONS[name](**options)
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        known = ", ".join(POSITIONS)
        raise ValueError(f"positions={choice!r}; known: {known}, with options as in rotary(base=500000.0)") from error
