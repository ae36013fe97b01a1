"""Vocabularies: text to token ids and back.

Each has a ``separator``, an id of its own that no text encodes to: it stands before every document, so that
a first character has something to be predicted from and an end can be predicted. It decodes to nothing.

To compare vocabularies, count bits per *character*: add up the nats of all tokens, divide by log 2, add
``escape_bits(text)``, and divide by the number of characters.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

UNKNOWN = "\ufffd"
UNICODE_BITS = math.log2(0x110000)


@runtime_checkable
class Vocabulary(Protocol):
    """What every vocabulary can do."""

    @property
    def size(self) -> int:
        """The number of ids, the separator among them."""

    @property
    def separator(self) -> int:
        """The id that stands between documents."""

    def encode(self, text: str) -> Int32[np.ndarray, " length"]:
        """Token ids of a text; never the separator."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids; the separator gives nothing."""

    def escape_bits(self, text: str) -> float:
        """Bits to spell out what this vocabulary cannot: 0 where it can encode everything."""

    def to_json(self) -> str:
        """All that is needed to make this vocabulary again (``vocabulary_from_json``)."""


@dataclass(frozen=True)
class Characters:
    """One id for each character that the training text has; others become the id of U+FFFD.

    Ids: 0 the separator, 1 an unknown character, then the characters by code point.
    """

    characters: str

    def __post_init__(self) -> None:
        """Refuse anything but distinct characters in order."""
        if list(self.characters) != sorted(set(self.characters)):
            raise ValueError("characters must be distinct and in the order of their code points")

    @classmethod
    def fit(cls, documents: Iterable[str]) -> "Characters":
        """The characters that stand in the training documents."""
        return cls("".join(sorted(set().union(*documents))))

    @property
    def size(self) -> int:
        """Two more than there are characters."""
        return len(self.characters) + 2

    @property
    def separator(self) -> int:
        """Always 0."""
        return 0

    @cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.characters)

    def encode(self, text: str) -> Int32[np.ndarray, " length"]:
        """One id a character."""
        codes = _code_points(text)
        if not len(self._codes):
            return np.ones(len(codes), np.int32)
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[places] == codes, places + 2, 1).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """One character an id; U+FFFD for an unknown one."""
        table = ["", UNKNOWN, *self.characters]
        return "".join(table[token] for token in _checked(tokens, self.size))

    def escape_bits(self, text: str) -> float:
        """log2 of the number of code points for each unknown character: what its id leaves open."""
        return UNICODE_BITS * int(np.sum(self.encode(text) == 1))

    def to_json(self) -> str:
        """The characters."""
        return json.dumps({"kind": "characters", "characters": self.characters})

    @classmethod
    def from_json(cls, text: str) -> "Characters":
        """The inverse of ``to_json``."""
        return cls(_fields(text, "characters")["characters"])


@dataclass(frozen=True)
class Bytes:
    """The 256 bytes of UTF-8, and 256 for the separator: loses nothing, and knows every text."""

    @classmethod
    def fit(cls, documents: Iterable[str]) -> "Bytes":
        """There is nothing to learn."""
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
        """One id a byte."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of the bytes; U+FFFD where they are not UTF-8."""
        return bytes(token for token in _checked(tokens, self.size) if token < 256).decode(errors="replace")

    def escape_bits(self, text: str) -> float:
        """Always 0."""
        return 0.0

    def to_json(self) -> str:
        """Only its name."""
        return json.dumps({"kind": "bytes"})

    @classmethod
    def from_json(cls, text: str) -> "Bytes":
        """The inverse of ``to_json``."""
        _fields(text, "bytes")
        return cls()


@dataclass(frozen=True)
class BPE:
    """Byte-pair encoding over bytes (Sennrich et al. 2016), by ``tokenizers``: loses nothing.

    ``model`` is the JSON of a ``tokenizers.Tokenizer``. The separator is the last id.
    """

    model: str
    _tokenizer: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Load the tokenizer.

        Raises:
            ImportError: the extra ``text`` is not installed.
        """
        object.__setattr__(self, "_tokenizer", _tokenizers().Tokenizer.from_str(self.model))

    @classmethod
    def fit(cls, documents: Iterable[str], *, size: int = 1024) -> "BPE":
        """Learn the merges from the training documents; ``size`` is an upper bound (a small text has fewer).

        Raises:
            ValueError: a size below 257 (256 bytes and the separator).
            ImportError: the extra ``text`` is not installed.
        """
        library = _tokenizers()
        if size < 257:
            raise ValueError(f"a BPE vocabulary needs a size of at least 257, not {size}")
        level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = level
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size - 1, initial_alphabet=sorted(level.alphabet()), show_progress=False
        )
        tokenizer.train_from_iterator(documents, trainer)
        return cls(tokenizer.to_str())

    @property
    def size(self) -> int:
        """One more than the tokens of the model."""
        return self._tokenizer.get_vocab_size() + 1

    @property
    def separator(self) -> int:
        """The last id."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> Int32[np.ndarray, " length"]:
        """The ids of the merged bytes."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of the bytes; U+FFFD where they are not UTF-8."""
        kept = [token for token in _checked(tokens, self.size) if token != self.separator]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def escape_bits(self, text: str) -> float:
        """Always 0."""
        return 0.0

    def to_json(self) -> str:
        """The whole model."""
        return json.dumps({"kind": "bpe", "model": self.model})

    @classmethod
    def from_json(cls, text: str) -> "BPE":
        """The inverse of ``to_json``."""
        return cls(_fields(text, "bpe")["model"])


VOCABULARIES: dict[str, Any] = {"characters": Characters, "bytes": Bytes, "bpe": BPE}


def fit_vocabulary(name: str, documents: Iterable[str], **options: Any) -> Vocabulary:
    """A vocabulary by its name in ``VOCABULARIES``, made from the training documents alone.

    Raises:
        ValueError: an unknown name (lists the known ones).
    """
    return _named(name).fit(documents, **options)


def vocabulary_from_json(text: str) -> Vocabulary:
    """The inverse of every vocabulary's ``to_json``.

    Raises:
        ValueError: not such a JSON, or of an unknown kind (lists the known ones).
    """
    try:
        kind = json.loads(text)["kind"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"not the JSON of a vocabulary: {text[:60]!r}") from None
    return _named(kind).from_json(text)


def _named(name: str) -> Any:
    if name not in VOCABULARIES:
        raise ValueError(f"unknown vocabulary {name!r}; known: {', '.join(VOCABULARIES)}")
    return VOCABULARIES[name]


def _fields(text: str, kind: str) -> dict[str, Any]:
    fields = json.loads(text)
    if fields.get("kind") != kind:
        raise ValueError(f"a vocabulary of kind {fields.get('kind')!r}, not {kind!r}")
    return fields


def _checked(tokens: Sequence[int] | np.ndarray, size: int) -> list[int]:
    ids = np.asarray(tokens).ravel().tolist()
    for token in ids:
        if not 0 <= token < size:
            raise ValueError(f"token id {token} outside the vocabulary of {size}")
    return ids


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError("a BPE vocabulary needs tokenizers: pip install 'jaxseq[text]'") from None
    return tokenizers
