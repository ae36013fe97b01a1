"""A language model with its vocabulary: text in, text out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq import data, decoding, training
from jaxseq.files import JSON
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.pipelines.saved import Pipeline
from jaxseq.pipelines.user_cores import model_parts
from jaxseq.typing import Array, Carry, Key, PyTree

FILE, VOCABULARY = "text_generator.json", "vocabulary.json"


@dataclass(frozen=True)
class _Description:
    """The contents of ``text_generator.json``."""

    model: LanguageModelConfig
    attention_lookback: int


class TextGenerator(Pipeline):
    """A language model that reads and writes text; the parameters are an argument of its methods.

    ``attention_lookback`` is the number of earlier positions seen by attention in training, evaluation and generation.
    ``model`` is the module that the config builds for the vocabulary.
    """

    file = FILE

    def __init__(self, config: LanguageModelConfig, vocabulary: data.Vocabulary, attention_lookback: int) -> None:
        self.config, self.vocabulary, self.attention_lookback = config, vocabulary, attention_lookback
        self.model = config.build(vocabulary.size, attention_lookback)
        self._make_carry = jax.jit(self.model.initial_carry, static_argnums=(0, 1))

    @classmethod
    def rebuild(cls, saved: training.SavedRun, described: JSON) -> "TextGenerator":
        """Rebuild from the files that ``write`` wrote."""
        fields = training.from_json(_Description, described, FILE)
        return cls(fields.model, data.vocabulary_from_json(saved.read(VOCABULARY)), fields.attention_lookback)

    def definition(self) -> dict[str, object]:
        """The parts that define what the parameters mean."""
        lookback, vocabulary = self.attention_lookback, self.vocabulary.to_json()
        return model_parts(self.config) | {"attention_lookback": lookback, "vocabulary": vocabulary}

    def write(self, run: training.Run) -> None:
        """Write the model's config and the vocabulary."""
        run.write(FILE, _Description(self.config, self.attention_lookback))
        run.write(VOCABULARY, self.vocabulary.to_json())

    def parameter_shapes(self) -> PyTree:
        """The structure, shapes and dtypes of the model's parameters."""
        inputs = self.model.initial_carry((1,)), jnp.zeros((1, 1), jnp.int32)
        return jax.eval_shape(self.model.init, jax.random.key(0), *inputs)["params"]

    def initial_carry(self, batch_shape: tuple[int, ...]) -> Carry:
        """The initial carry, with room for ``attention_lookback`` earlier positions."""
        carry: Carry = self._make_carry(batch_shape, self.attention_lookback)
        return carry

    def forward(self, params: PyTree) -> Partial:
        """The model as ``jaxseq.decoding`` takes it: ``(carry, tokens, segment_ids) -> (carry, logits)``."""
        return Partial(self.model.apply, {"params": params})

    def encode(self, text: str) -> list[int]:
        """The token ids of a text.

        Raises:
            ValueError: characters that the vocabulary does not have; the message names them.
        """
        ids = self.vocabulary.encode(text).tolist()
        if isinstance(self.vocabulary, data.Characters) and 1 in ids:
            unknown = sorted({character for character, token in zip(text, ids, strict=True) if token == 1})
            raise ValueError(f"{text!r}: the model's vocabulary does not have {', '.join(map(repr, unknown))}")
        return ids

    def prefill(self, params: PyTree, prompts: Sequence[str], max_length: int) -> decoding.Prefilled:
        """The carry after the separator and each prompt, from which up to ``max_length`` tokens will be generated."""
        tokens = [[self.vocabulary.separator, *self.encode(prompt)] for prompt in prompts]
        padded, carry = decoding.pad_prompts(tokens), self.initial_carry((len(prompts),))
        inputs = self.place_rows((carry, *padded))
        return self.place_rows(decoding.prefill(self.forward(params), *inputs, max_length=max_length))

    def sample(
        self,
        params: PyTree,
        num_samples: int,
        options: decoding.SamplingOptions,
        *,
        key: Key[Array, ""],
        max_length: int,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Draw texts that start as a document does, after a separator, and are cut before the first ``stop`` string."""
        if not num_samples:
            return []
        separator = self.vocabulary.separator
        first_tokens = jnp.asarray(np.full((num_samples,), separator, np.int32))
        step, carry = decoding.step_of(self.forward(params)), self.initial_carry((num_samples,))
        limits: dict[str, Any] = {"max_length": max_length, "end_token": separator}
        if stop:
            limits["constraints"] = [self.stopping_at(stop)]
        drawn = decoding.sample(step, carry, first_tokens, options, key=key, **limits)
        rows = zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True)
        return [cut_at(self.vocabulary.decode(row[:length]), stop) for row, length in rows]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes of each token; none for the separator."""
        return token_bytes(self.vocabulary)

    def matching(self, pattern: str) -> decoding.Automaton:
        """The texts that match a regular expression; tokens that cut a character beyond ASCII are not used."""
        texts = [text.decode(errors="replace") for text in self.token_bytes]
        whole = [None if "\ufffd" in text else text for text in texts]
        return decoding.Automaton.from_regex(pattern, whole, end_token=self.vocabulary.separator)

    def containing(self, text: str) -> decoding.Automaton:
        """The texts in which this one occurs, in any tokenization: the automaton reads bytes."""
        pattern = "".join(f"\\x{byte:02x}" for byte in text.encode())
        letters = [token.decode("latin-1") for token in self.token_bytes]
        end = self.vocabulary.separator
        return decoding.Automaton.from_regex(rf"[\x00-\xff]*{pattern}[\x00-\xff]*", letters, end_token=end)

    def not_containing(self, text: str) -> decoding.Automaton:
        """The texts in which this one does not occur, in any tokenization."""
        found, end = self.containing(text), self.vocabulary.separator
        table, rejected = np.asarray(found.table)[:, found.classes], ~np.asarray(found.accepting)
        return decoding.Automaton.from_transitions(table, rejected, vocab_size=self.vocabulary.size, end_token=end)

    def stopping_at(self, strings: Sequence[str]) -> decoding.Stop:
        """Ends a text with the token that completes one of these strings, in any tokenization (``cut_at`` cuts it)."""
        return decoding.Stop.at_strings(strings, self.token_bytes)

    def at_least(self, length: int) -> decoding.Automaton:
        """The texts of at least so many tokens before the end: MinLength, to be joined with other automata."""
        letters, end = ["x"] * self.vocabulary.size, self.vocabulary.separator
        return decoding.Automaton.from_regex(f"x{{{length},}}", letters, end_token=end)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings in it, or the whole text."""
    return text[: min([text.find(string) for string in stop if string in text], default=len(text))]


def token_bytes(vocabulary: data.Vocabulary) -> list[bytes]:
    """The UTF-8 bytes of each token of a vocabulary; none for the separator."""
    if isinstance(vocabulary, data.Bytes):
        return [bytes([byte]) for byte in range(256)] + [b""]
    if not isinstance(vocabulary, data.BPE):
        return [vocabulary.decode([token]).encode() for token in range(vocabulary.size)]
    # A byte-level BPE spells these bytes as themselves, and the others as the characters from 256 on (as GPT-2's).
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = sorted({*range(256)} - {*shown})
    byte_of = dict(zip(map(chr, [*shown, *range(256, 256 + len(hidden))]), shown + hidden, strict=True))
    ids = json.loads(vocabulary.model)["model"]["vocab"]
    return [bytes(map(byte_of.__getitem__, entry)) for entry in sorted(ids, key=ids.__getitem__)] + [b""]
