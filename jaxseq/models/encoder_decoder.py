"""Sequence to sequence: an encoder, a decoder, and a bridge between them."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.decoders import Decoder
from jaxseq.decoders.bridge import Bridge
from jaxseq.layers import Embedding, capture_weights
from jaxseq.layers.capture import MEMORY
from jaxseq.typing import Array, Carry, DType, Float, Int, SegmentIds, Tokens


class Encoded(NamedTuple):
    """A source as its decoder reads it: the decoder's memory, and the bridge's summary (None without one).

    All leaves lead with the batch dimensions, so that decoding can repeat it for beams and samples.
    """

    memory: Any
    summary: Float[Array, "*B E"] | None


class EncoderDecoder(nn.Module):
    """``P(y | x) = Π_t P(y_t | y_<t, encoder(x))``.

    Three functions of one model: training reads everything at once, ``model.apply(variables, source, tokens, ...)``;
    decoding takes ``method="encode"`` once, then ``method="initial_carry"``, then ``method="decode"`` step by step:

        encoded = model.apply(variables, source, source_segment_ids, method="encode")
        carry = model.apply(variables, encoded, (batch,), max_length, method="initial_carry")
        step = decoding.step_of(Partial(partial(model.apply, method="decode"), variables))
        decoding.beam_search(step, carry, first_tokens, memory=encoded, ...)

    ``tokens`` are the target shifted right (teacher forcing: Williams & Zipser 1989): position t reads what came before
    the one it predicts. Without a ``head`` the target's embedding is read backwards (tied); one embedding given as both
    ``source`` and ``target`` is shared. ``dropout`` falls on both embeddings and on what the decoder puts out.

    A row holds one source and one target: ids mark padding (0), and do not pair documents packed side by side.

    Raises:
      ValueError: tied, and the widths differ; or the decoder knows nothing of its source.
    """

    source: Embedding
    encoder: nn.Module
    target: Embedding
    decoder: Decoder
    head: nn.Module | None = None
    bridge: Bridge | None = None
    dropout: float = 0.0
    logits_dtype: DType = jnp.float32

    def setup(self) -> None:
        """Dropout's own module."""
        self.drop = nn.Dropout(self.dropout)

    def _dropped(self, x: Float[Array, "*B T D"]) -> Float[Array, "*B T D"]:
        return self.drop(x, deterministic=not self.has_rng("dropout"))

    def encode(self, source: Int[Array, "*B S"], source_segment_ids: Int[Array, "*B S"] | None = None) -> Encoded:
        """All that the decoder reads of a source: keys and values are projected here, once."""
        ys = self.encoder(self._dropped(self.source(source)), source_segment_ids)
        summary = None if self.bridge is None else self.bridge(ys, source_segment_ids)
        return Encoded(self.decoder.prepare_memory(ys, source_segment_ids, summary), summary)

    def initial_carry(self, encoded: Encoded, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The decoder's carry, begun from the bridge's summary; able to look ``context`` positions back."""
        carry = self.decoder.initial_carry(encoded.memory, batch_shape, context)
        if self.bridge is None or encoded.summary is None:
            return carry
        if not (jax.tree.leaves(encoded.memory) or self.bridge.initial):
            raise ValueError("nothing tells the decoder of its source: give it a fusion, or take Bridge(initial=True)")
        return self.bridge.begin(carry, encoded.summary)

    def decode(
        self, carry: Carry, tokens: Tokens, segment_ids: SegmentIds | None, encoded: Encoded
    ) -> tuple[Carry, Float[Array, "*B T V"]]:
        """The logits of what comes after each token, going on from the carry."""
        xs = self._dropped(self.target(tokens))
        carry, ys = self.decoder(carry, xs, segment_ids, encoded.memory)
        ys = self._dropped(ys)
        if self.head is not None:
            return carry, self.head(ys).astype(self.logits_dtype)
        if ys.shape[-1] != self.target.features:
            raise ValueError(
                f"a tied head needs one width: the decoder puts out {ys.shape[-1]}, "
                f"the target's embedding has {self.target.features}"
            )
        return carry, self.target.attend(ys).astype(self.logits_dtype)

    def __call__(
        self,
        source: Int[Array, "*B S"],
        tokens: Tokens,
        source_segment_ids: Int[Array, "*B S"] | None = None,
        segment_ids: SegmentIds | None = None,
    ) -> Float[Array, "*B T V"]:
        """Teacher forcing: the logits of every next token of the target, all at once."""
        encoded = self.encode(source, source_segment_ids)
        carry = self.initial_carry(encoded, source.shape[:-1])
        return self.decode(carry, tokens, segment_ids, encoded)[1]


def alignment(
    model: EncoderDecoder,
    variables: Any,
    source: Int[Array, "*B S"],
    tokens: Tokens,
    source_segment_ids: Int[Array, "*B S"] | None = None,
    segment_ids: SegmentIds | None = None,
) -> Float[Array, "*B T S"] | None:
    """Where the decoder's last attention reads the source for each token it predicts (mean over heads).

    None if it never does. ``jaxseq.layers.capture_weights`` gives every layer's.
    """
    found = capture_weights(model, variables, source, tokens, source_segment_ids, segment_ids, names=(MEMORY,))
    reads = [path for path in found if path.split("/")[0] == "decoder"]
    return found[reads[-1]].mean(-3) if reads else None
