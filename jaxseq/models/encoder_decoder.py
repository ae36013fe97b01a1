"""An encoder-decoder model: an encoder, a decoder, and a bridge between them."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.decoders import Bridge, Decoder
from jaxseq.encoders import Encoder
from jaxseq.layers import Embedding, capture_weights
from jaxseq.layers.capture import MEMORY_ATTENTION
from jaxseq.typing import Array, Carry, DType, Float, Int, SegmentIds, Tokens


class Encoded(NamedTuple):
    """An encoded source: the decoder's memory, and the bridge's summary (None without a bridge).

    All leaves lead with the batch dimensions, so that decoding can repeat it for beams and samples.
    """

    memory: Any
    summary: Float[Array, "*B E"] | None


class EncoderDecoder(nn.Module):
    """``P(y | x) = Π_t P(y_t | y_<t, encoder(x))``.

    The source x is the encoder's input: tokens (``TextEncoder``), features, images. Training calls the model,
    ``model.apply(variables, source, tokens, ...)``; decoding encodes once, then runs the decoder step by step:

        encoded = model.apply(variables, source, source_segment_ids, method="encode")
        carry = model.apply(variables, encoded, (batch,), max_length, method="initial_carry")
        step = decoding.step_of(Partial(partial(model.apply, method="decode"), variables))
        decoding.beam_search(step, carry, first_tokens, memory=encoded, ...)

    ``tokens`` are the target shifted right (teacher forcing: Williams & Zipser 1989), so that position t reads the
    tokens before the one that it predicts. ``embedding`` is the target's; without a ``head`` it is the output layer too
    (tied). One instance given to the model and to its ``TextEncoder`` is shared. ``dropout`` is applied to the embedded
    target and to the decoder's output.

    A row holds one source and one target: ids mark padding (0) and do not pair documents packed into a row. Padded
    positions may hold any number.

    Raises:
      ValueError: a tied head of another width than the embedding, a decoder that has no access to the source, or tokens
        or ids that do not fit the ``Embedding``.
    """

    encoder: Encoder
    embedding: Embedding
    decoder: Decoder
    head: nn.Module | None = None
    bridge: Bridge | None = None
    dropout: float = 0.0
    logits_dtype: DType = jnp.float32

    def setup(self) -> None:
        """Creates the dropout layer."""
        self.drop = nn.Dropout(self.dropout)

    def _dropped(self, x: Float[Array, "*B T D"]) -> Float[Array, "*B T D"]:
        return self.drop(x, deterministic=not self.has_rng("dropout"))

    def encode(self, source: Any, source_segment_ids: Int[Array, "*B S"] | None = None) -> Encoded:
        """Encodes the source and computes all of the decoder's projections of it."""
        ys = self.encoder(source, source_segment_ids)
        summary = None if self.bridge is None else self.bridge(ys, source_segment_ids)
        return Encoded(self.decoder.prepare_memory(ys, source_segment_ids, summary), summary)

    def initial_carry(self, encoded: Encoded, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The decoder's initial carry, set by the bridge; a cache in it holds ``context`` earlier positions."""
        carry = self.decoder.initial_carry(encoded.memory, batch_shape, context)
        if self.bridge is None or encoded.summary is None:
            return carry
        if not (jax.tree.leaves(encoded.memory) or self.bridge.initial):
            raise ValueError("the decoder has no access to the source: give it a fusion, or use Bridge(initial=True)")
        return self.bridge.initialize(self.decoder, carry, encoded.summary)

    def decode(
        self, carry: Carry, tokens: Tokens, segment_ids: SegmentIds | None, encoded: Encoded
    ) -> tuple[Carry, Float[Array, "*B T V"]]:
        """Continues from ``carry``: the logits of the token after each token."""
        xs = self._dropped(self.embedding(tokens, segment_ids))
        carry, ys = self.decoder(carry, xs, segment_ids, encoded.memory)
        ys = self._dropped(ys)
        if self.head is not None:
            return carry, self.head(ys).astype(self.logits_dtype)
        if ys.shape[-1] != self.embedding.features:
            raise ValueError(
                f"a tied head needs one width: the decoder puts out {ys.shape[-1]}, "
                f"the embedding has {self.embedding.features}"
            )
        return carry, self.embedding.attend(ys).astype(self.logits_dtype)

    def __call__(
        self,
        source: Any,
        tokens: Tokens,
        source_segment_ids: Int[Array, "*B S"] | None = None,
        segment_ids: SegmentIds | None = None,
    ) -> Float[Array, "*B T V"]:
        """Teacher forcing: the logits of every next token of the target, in one call."""
        encoded = self.encode(source, source_segment_ids)
        carry = self.initial_carry(encoded, tokens.shape[:-1])
        return self.decode(carry, tokens, segment_ids, encoded)[1]

    def last_attention_weights(self, carry: Carry) -> Float[Array, "*B S"]:
        """The decoder's attention weights of the last real token over the source; works unbound.

        ``decoding.Coverage(model.last_attention_weights, ...)`` compiles once for one model.

        Raises:
          ValueError: the decoder has no attention.
        """
        return self.decoder.last_attention_weights(carry)


def alignment(
    model: EncoderDecoder,
    variables: Any,
    source: Any,
    tokens: Tokens,
    source_segment_ids: Int[Array, "*B S"] | None = None,
    segment_ids: SegmentIds | None = None,
) -> Float[Array, "*B T S"] | None:
    """The weights, averaged over heads, of the decoder's last attention to the source for each predicted token.

    None if the decoder has no attention. ``jaxseq.layers.capture_weights`` gives those of every layer.
    """
    names = (MEMORY_ATTENTION,)
    found = capture_weights(model, variables, source, tokens, source_segment_ids, segment_ids, names=names)
    paths = [path for path in found if path.split("/")[0] == "decoder"]
    return found[paths[-1]].mean(-3) if paths else None
