"""The search for an output text that translators and captioners share: greedy decoding, beams, samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq import decoding
from jaxseq.distribution import check_memory, whole_arrays
from jaxseq.models import Encoded, EncoderDecoder
from jaxseq.typing import Key, PyTree


@dataclass(frozen=True)
class SearchConfig:
    """The search for an output: greedy decoding or beam search."""

    beams: int = 1
    """Number of beams; 1 is greedy decoding."""
    normalization: Literal["none", "mean", "gnmt"] = "gnmt"
    """Divisor of a beam's log-probability: 1, its length, or (gnmt) ((5 + length) / 6)^0.6."""
    coverage: float = 0.0
    """Strength of beam search's coverage penalty, for models that attend."""

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams must be at least 1, not {self.beams}")
        if not 0 <= self.coverage < math.inf:
            raise ValueError(f"coverage must be at least 0 and finite, not {self.coverage}")
        if self.coverage and self.beams == 1:
            raise ValueError(f"coverage={self.coverage} belongs to beam search, not to beams=1")


GREEDY = SearchConfig()

BATCH_SIZE = 64
"""Sources that translators and captioners decode at once."""

WORKING_SPACE = 4
"""The memory of a step of decoding over that of its carry, logits and tokens: the carry in its new order, and what the
model computes."""


def check_beams(
    model: EncoderDecoder,
    params: PyTree,
    source: Any,
    search: SearchConfig,
    *,
    count: int,
    vocab_size: int,
    max_length: int,
    name: str = "beams",
) -> None:
    """Check, before training, that there are so many sequences and that the memory holds the beams of a batch.

    Args:
        model, params, source: the model, and the shapes of its parameters and of a batch of its inputs.
        search: its beams are checked.
        count: the number of all sources.
        vocab_size, max_length: of the outputs.
        name: the option, for the message.

    Raises:
        ValueError: too many beams.
    """
    most = vocab_size ** min(max_length, search.beams.bit_length())  # a larger power is not needed
    if search.beams > most:
        raise ValueError(f"{name}={search.beams}, but there are only {most} outputs of {max_length} tokens")
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), source)

    def row(params: PyTree, source: Any) -> PyTree:
        encoded = model.apply({"params": params}, source, method="encode")
        return encoded, model.apply({"params": params}, encoded, (1,), max_length, method="initial_carry")

    state, rows = jax.eval_shape(row, params, one), min(BATCH_SIZE, count)
    check_decoding_memory(state, rows * search.beams, vocab_size=vocab_size, max_length=max_length, name=name)


def check_decoding_memory(row: PyTree, count: int, *, vocab_size: int, max_length: int, name: str) -> None:
    """Check that the memory of all devices holds what decoding needs for ``count`` hypotheses at once.

    This is taken to be ``WORKING_SPACE`` times what it keeps of them from step to step.

    Args:
        row: what the model keeps of one hypothesis, such as its carry; arrays, or ``jax.ShapeDtypeStruct``.
        count: the number of hypotheses.
        vocab_size: each has logits.
        max_length: each has a table of its tokens.
        name: the option that gives their number, for the message.

    Raises:
        ValueError: it does not.
    """
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(row)]
    device = jax.local_devices()[0]
    devices = 1 if device.platform == "cpu" else jax.device_count()
    needed = WORKING_SPACE * count * (sum(sizes) + 4 * (vocab_size + max_length)) // devices
    check_memory(needed, device, f"{count:,} hypotheses at once ({name}) need", (name, "max_length"))


def _unplaced(tree: PyTree) -> PyTree:
    return tree


class Found(NamedTuple):
    """The best output of each row: tokens, padded; their number, with the end token; the model's log-probability."""

    tokens: np.ndarray
    lengths: np.ndarray
    log_probabilities: np.ndarray


class Search:
    """Encodes a batch of sources with a model and decodes it; compiles once for each shape.

    Its methods take a function ``place``, which shards the rows of the source and of the carry over a mesh.

    Args:
        model: the parameters are an argument of its methods.
        end: the token before the first and after the last token of an output.
        forbidden: tokens that no output contains.
    """

    def __init__(self, model: EncoderDecoder, end: int, forbidden: Sequence[int] = ()) -> None:
        self.model, self.end = model, end
        self.rules = (decoding.Forbid(tuple(forbidden)),) if forbidden else ()
        self._encode = jax.jit(partial(model.apply, method="encode"))
        self._initial_carry = jax.jit(partial(model.apply, method="initial_carry"), static_argnums=(2, 3))
        self._decode = partial(model.apply, method="decode")

    def best(
        self,
        params: PyTree,
        source: Any,
        source_segment_ids: Any,
        search: SearchConfig,
        max_length: int,
        *,
        place: Callable = _unplaced,
    ) -> Found:
        """The best output of each row, by greedy decoding or beam search."""
        step, carry, first, common = self._start(params, source, source_segment_ids, max_length, place)
        if search.beams == 1:
            made = decoding.greedy(step, carry, first, **common)
            return Found(*whole_arrays((made.tokens, made.lengths, made.log_probabilities)))
        coverage = None
        if search.coverage:
            mask = None if source_segment_ids is None else place(jnp.asarray(source_segment_ids != 0))
            coverage = decoding.Coverage(self.model.last_attention_weights, search.coverage, mask)
        options = decoding.BeamOptions(search.beams, 1, normalization=search.normalization, coverage=coverage)
        found = decoding.beam_search(step, carry, first, options, **common)
        best = [part[:, 0] for part in (found.tokens, found.lengths, found.log_probabilities)]
        return Found(*whole_arrays(best))

    def sample(
        self,
        params: PyTree,
        source: Any,
        options: decoding.SamplingOptions,
        max_length: int,
        *,
        keys: Key[jax.Array, " B"],
        num_samples: int,
        place: Callable = _unplaced,
    ) -> Found:
        """``num_samples`` outputs of each row ``[B n ...]``, drawn with the row's key."""
        step, carry, first, common = self._start(params, source, None, max_length, place)
        made = decoding.sample(step, carry, first, options, key=keys, num_samples=num_samples, **common)
        return Found(*whole_arrays((made.tokens, made.lengths, made.log_probabilities)))

    def greedy_tokens(self, params: PyTree, source: Any, length: int, *, place: Callable = _unplaced) -> np.ndarray:
        """The first ``length`` tokens ``[B T]`` of greedy decoding, which does not stop at an end."""
        step, carry, first, common = self._start(params, source, None, length, place)
        made = decoding.greedy(step, carry, first, **common | {"end_token": None})
        return np.asarray(whole_arrays(made.tokens))

    def _start(
        self, params: PyTree, source: Any, source_segment_ids: Any, max_length: int, place: Callable
    ) -> tuple[Any, Any, Any, dict[str, Any]]:
        """The step, the carry, the first tokens, and further arguments of a decoding function."""
        variables, rows = {"params": params}, (len(source),)
        encoded: Encoded = place(self._encode(variables, *place((source, source_segment_ids))))
        carry = place(self._initial_carry(variables, encoded, rows, max_length))
        step = decoding.step_of(Partial(self._decode, variables))
        common = {"end_token": self.end, "max_length": max_length, "memory": encoded, "constraints": self.rules}
        return step, carry, place(np.full(rows, self.end, np.int32)), common
