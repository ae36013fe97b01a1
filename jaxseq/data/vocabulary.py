"""Vocabularies: text to token ids and back.

Each vocabulary has a ``separator``, an id that no text encodes to. It is prepended to every document, so that the first
token and the end of a document can be predicted. It decodes to the empty string.

To compare vocabularies, use bits per *character*: the sum of all tokens' nats, divided by log 2, plus
``escape_bits(text)``, divided by the number of characters.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int32

from jaxseq.data.vocabulary_fields import UNICODE_BITS, checked_ids, fields_of, shown, text_field
from jaxseq.data.words import Words

UNKNOWN = "\ufffd"


@runtime_checkable
class Vocabulary(Protocol):
    """The protocol of all vocabularies."""

    @property
    def size(self) -> int:
        """The number of ids, including the separator."""

    @property
    def separator(self) -> int:
        """The id between documents."""

    def encode(self, text: str) -> Int32[np.ndarray, " length"]:
        """Token ids of a text; never the separator."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids; the separator decodes to the empty string."""

    def escape_bits(self, text: str) -> float:
        """Bits to encode the characters that this vocabulary does not contain; 0 if it encodes every text."""

    def to_json(self) -> str:
        """A JSON string from which ``vocabulary_from_json`` makes the same vocabulary."""


@dataclass(frozen=True)
class Characters:
    """One id per character of the training text; other characters become the id of U+FFFD.

    Ids: 0 the separator, 1 an unknown character, then the characters in the order of their code points.
    """

    characters: str

    def __post_init__(self) -> None:
        """Check that the characters are distinct and sorted.

        Raises:
            ValueError: they are not.
        """
        if list(self.characters) != sorted(set(self.characters)):
            raise ValueError("characters must be distinct and in the order of their code points")

    @classmethod
    def fit(cls, documents: Iterable[str]) -> "Characters":
        """The vocabulary of the characters in the documents."""
        return cls("".join(sorted(set().union(*documents))))

    @property
    def size(self) -> int:
        """The number of characters, plus 2."""
        return len(self.characters) + 2

    @property
    def separator(self) -> int:
        """Always 0."""
        return 0

    @cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.characters)

    def encode(self, text: str) -> Int32[np.ndarray, " length"]:
        """One id per character."""
        codes = _code_points(text)
        if not len(self._codes):
            return np.ones(len(codes), np.int32)
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[places] == codes, places + 2, 1).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """One character per id; U+FFFD for an unknown character."""
        table = ["", UNKNOWN, *self.characters]
        return "".join(table[token] for token in checked_ids(tokens, self.size))

    def escape_bits(self, text: str) -> float:
        """log2 of the number of code points, for each unknown character."""
        return UNICODE_BITS * int(np.sum(self.encode(text) == 1))

    def to_json(self) -> str:
        """The characters, as JSON."""
        return json.dumps({"kind": "characters", "characters": self.characters})

    @classmethod
    def from_json(cls, text: str) -> "Characters":
        """The inverse of ``to_json``; raises as ``vocabulary_from_json``."""
        return cls(text_field(fields_of(text, "characters"), "characters", "a vocabulary of characters"))


@dataclass(frozen=True)
class Bytes:
    """The bytes of UTF-8 as ids 0 ... 255, and the separator 256. Lossless for every text."""

    @classmethod
    def fit(cls, documents: Iterable[str]) -> "Bytes":
        """The same vocabulary for all documents."""
        return cls()

    @property
    def size(self) -> int:
        """Always 257."""
        return 257

    @property
    def separator(self) -> int:
        """Always 256."""
        return 256

    def encode(self, text: str) -> Int32[np.ndarray, " length"]:
        """One id per byte."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of the bytes; U+FFFD for bytes that are not UTF-8."""
        return bytes(token for token in checked_ids(tokens, self.size) if token < 256).decode(errors="replace")

    def escape_bits(self, text: str) -> float:
        """Always 0."""
        return 0.0

    def to_json(self) -> str:
        """The kind, as JSON."""
        return json.dumps({"kind": "bytes"})

    @classmethod
    def from_json(cls, text: str) -> "Bytes":
        """The inverse of ``to_json``; raises as ``vocabulary_from_json``."""
        fields_of(text, "bytes")
        return cls()


@dataclass(frozen=True)
class BPE:
    """Byte-pair encoding of bytes (Sennrich et al. 2016), by the library ``tokenizers``. Lossless for every text.

    ``model`` is the JSON of a ``tokenizers.Tokenizer``. The separator is the last id.
    """

    model: str
    _tokenizer: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Load the tokenizer from its JSON.

        Raises:
            ValueError: not the JSON of a ``tokenizers.Tokenizer``, or one whose n ids are not 0 ... n - 1.
            ImportError: the extra ``text`` is not installed.
        """
        library = _tokenizers()
        try:
            tokenizer = library.Tokenizer.from_str(self.model)
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"the model of a BPE vocabulary cannot be loaded: {str(error)[:120]}") from None
        if sorted(tokenizer.get_vocab().values()) != list(range(tokenizer.get_vocab_size())):
            raise ValueError(f"the ids of a BPE vocabulary must be 0 ... {tokenizer.get_vocab_size() - 1}, each once")
        object.__setattr__(self, "_tokenizer", tokenizer)

    @classmethod
    def fit(cls, documents: Iterable[str], *, vocab_size: int = 1024) -> "BPE":
        """Learn the merges from the documents. ``vocab_size`` is an upper bound: a small text gives fewer merges.

        Raises:
            ValueError: ``vocab_size`` below 257 (256 bytes and the separator).
            ImportError: the extra ``text`` is not installed.
        """
        library = _tokenizers()
        if vocab_size < 257:
            raise ValueError(f"a BPE vocabulary needs a vocab_size of at least 257, not {vocab_size}")
        level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = level
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size - 1, initial_alphabet=sorted(level.alphabet()), show_progress=False
        )
        tokenizer.train_from_iterator(documents, trainer)
        return cls(tokenizer.to_str())

    @property
    def size(self) -> int:
        """The number of tokens of the model, plus 1."""
        return self._tokenizer.get_vocab_size() + 1

    @property
    def separator(self) -> int:
        """The last id."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> Int32[np.ndarray, " length"]:
        """The ids of the merged bytes."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of the bytes; U+FFFD for bytes that are not UTF-8."""
        kept = [token for token in checked_ids(tokens, self.size) if token != self.separator]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def escape_bits(self, text: str) -> float:
        """Always 0."""
        return 0.0

    def to_json(self) -> str:
        """The tokenizer's model, as JSON."""
        return json.dumps({"kind": "bpe", "model": self.model})

    @classmethod
    def from_json(cls, text: str) -> "BPE":
        """The inverse of ``to_json``; raises as ``vocabulary_from_json``."""
        return cls(text_field(fields_of(text, "bpe"), "model", "a BPE vocabulary"))


Kind: TypeAlias = type[Characters] | type[Bytes] | type[BPE] | type[Words]

VOCABULARIES: dict[str, Kind] = {"characters": Characters, "bytes": Bytes, "bpe": BPE, "words": Words}


def fit_vocabulary(
    name: str, documents: Iterable[str], *, vocab_size: int | None = None, min_count: int | None = None
) -> Vocabulary:
    """Make the vocabulary of a name in ``VOCABULARIES`` from training documents.

    ``vocab_size`` is the largest size of a ``"bpe"`` vocabulary (default 1024). ``min_count`` is the number of
    occurrences that a word of a ``"words"`` vocabulary needs (default 1).

    Raises:
        ValueError: an unknown name (lists the known ones), or an option of another vocabulary.
    """
    kind = _named(name)
    given = {"vocab_size": (vocab_size, "bpe"), "min_count": (min_count, "words")}
    options: dict[str, Any] = {option: value for option, (value, _) in given.items() if value is not None}
    for option, value in options.items():
        if given[option][1] != name:
            raise ValueError(f"{option}={value} is an option of {given[option][1]!r}, not of {name!r}")
    return kind.fit(documents, **options)


def vocabulary_from_json(text: str) -> Vocabulary:
    """The inverse of every vocabulary's ``to_json``.

    Raises:
        ValueError: not the JSON of a vocabulary, an unknown kind (lists the known ones), or fields that are missing, of
            another type or make no vocabulary. The message is short, however long the text.
    """
    return _named(fields_of(text)["kind"]).from_json(text)


def _named(name: str) -> Kind:
    if name not in VOCABULARIES:
        raise ValueError(f"unknown vocabulary {shown(name)}; known: {', '.join(VOCABULARIES)}")
    return VOCABULARIES[name]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError("a BPE vocabulary needs tokenizers: pip install 'jaxseq[text]'") from None
    return tokenizers
