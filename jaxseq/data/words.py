"""A vocabulary of words, for captions."""

import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Int32

from jaxseq.data.vocabulary_fields import UNICODE_BITS, checked_ids, fields_of, shown

UNKNOWN_WORD = "<unk>"
JOINERS = "\u200c\u200d"
"""Zero-width characters that are part of words in some scripts."""


def split_words(text: str, *, lowercase: bool = True, punctuation: bool = True) -> list[str]:
    """The words and punctuation marks of a text, in order.

    The text is lower-cased (``str.lower``) if asked for, and normalized to NFC. Then

    - a word is a run of letters, digits, underscores, combining marks and zero-width joiners; an apostrophe
      (``'`` or ``’``) or a hyphen between two such runs joins them: ``man's`` and ``t-shirt`` are one word;
    - every other character that is no white space is a punctuation mark, a word of its own (omitted if
      ``punctuation`` is False);
    - ``<unk>`` is one word.

    A script without spaces between words, for example Chinese, gives one word for a run of letters.
    """
    text = unicodedata.normalize("NFC", text.lower() if lowercase else text)
    found = _pattern("" if text.isascii() else _marks()).findall(text)
    return found if punctuation else [word for word in found if has_letters(word)]


def has_letters(text: str) -> bool:
    """Whether a text holds a letter or a digit, that is, a word."""
    return any(character.isalnum() for character in text)


@dataclass(frozen=True)
class Words:
    """One id per word of the training texts (``split_words``); other words become ``<unk>``.

    Ids: 0 the separator, 1 ``<unk>``, then ``words`` in order. Decoding joins words with spaces, so that a text comes
    back without its capitals and its spacing. To keep ``<unk>`` out of generated text, forbid the id ``unknown``
    (``decoding.Forbid``).

    Args:
        words: the known words.
        lowercase: lower-case texts before splitting.
        punctuation: keep punctuation marks as words.
        max_words: texts are cut after this number of words; None: never.
    """

    words: tuple[str, ...]
    lowercase: bool = True
    punctuation: bool = True
    max_words: int | None = None

    def __post_init__(self) -> None:
        """Check the words.

        Raises:
            ValueError: a word twice, ``<unk>``, a text that is not one word, or ``max_words`` below 1.
        """
        if self.max_words is not None and self.max_words < 1:
            raise ValueError(f"max_words must be at least 1, not {shown(self.max_words)}")
        for word, count in Counter(self.words).items():
            if count > 1:
                raise ValueError(f"the word {shown(word)} is given {count} times")
            if word == UNKNOWN_WORD or self.split(word) != [word]:
                raise ValueError(f"not one word of this vocabulary: {shown(word)}")

    @classmethod
    def fit(
        cls,
        documents: Iterable[str],
        *,
        min_count: int = 1,
        lowercase: bool = True,
        punctuation: bool = True,
        max_words: int | None = None,
    ) -> "Words":
        """The words that occur at least ``min_count`` times, the most frequent first (equal counts: alphabetically).

        With ``min_count=1`` no training text holds ``<unk>``, so that its embedding stays untrained. The usual
        preparation of COCO captions (Karpathy and Li 2015) is ``min_count=6, punctuation=False, max_words=16``.

        Raises:
            ValueError: ``min_count`` or ``max_words`` below 1.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, not {min_count}")
        counts: Counter[str] = Counter()
        for text in documents:
            counts.update(split_words(text, lowercase=lowercase, punctuation=punctuation))
        kept = (word for word, count in counts.items() if count >= min_count and word != UNKNOWN_WORD)
        words = sorted(kept, key=lambda word: (-counts[word], word))
        return cls(tuple(words), lowercase, punctuation, max_words)

    @property
    def size(self) -> int:
        """The number of words, plus 2."""
        return len(self.words) + 2

    @property
    def separator(self) -> int:
        """Always 0."""
        return 0

    @property
    def unknown(self) -> int:
        """The id of ``<unk>``, always 1."""
        return 1

    def split(self, text: str) -> list[str]:
        """The words of a text by this vocabulary's rule, known or not, without a limit on their number."""
        return split_words(text, lowercase=self.lowercase, punctuation=self.punctuation)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words, 2)}

    def encode(self, text: str) -> Int32[np.ndarray, " length"]:
        """One id per word, of the first ``max_words`` words."""
        return np.array([self._ids.get(word, 1) for word in self.split(text)[: self.max_words]], np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The words, with spaces between them; ``<unk>`` for an unknown word."""
        table = ["", UNKNOWN_WORD, *self.words]
        return " ".join(table[token] for token in checked_ids(tokens, self.size) if token)

    def escape_bits(self, text: str) -> float:
        """log2 of the number of code points for each character, and the end, of each word that is unknown or cut."""
        words = self.split(text)
        lost = [word for index, word in enumerate(words) if word not in self._ids or index >= (self.max_words or 2**62)]
        return UNICODE_BITS * sum(len(word) + 1 for word in lost)

    def to_json(self) -> str:
        """The words and the rule, as JSON."""
        rule = {"lowercase": self.lowercase, "punctuation": self.punctuation, "max_words": self.max_words}
        return json.dumps({"kind": "words", "words": self.words, **rule})

    @classmethod
    def from_json(cls, text: str) -> "Words":
        """The inverse of ``to_json``.

        Raises:
            ValueError: the JSON of another kind of vocabulary, or a field of a wrong type.
        """
        fields = fields_of(text, "words")
        words, limit = fields.get("words"), fields.get("max_words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("the JSON of a vocabulary of words needs a list of strings as 'words'")
        if limit is not None and type(limit) is not int:
            raise ValueError(f"max_words must be a number or null, not {shown(limit)}")
        flags = {name: fields.get(name, True) for name in ("lowercase", "punctuation")}
        for name, value in flags.items():
            if type(value) is not bool:
                raise ValueError(f"{name} must be true or false, not {shown(value)}")
        return cls(tuple(words), flags["lowercase"], flags["punctuation"], limit)


@cache
def _marks() -> str:
    """All combining marks and joiners, for a character class."""
    return JOINERS + "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "M")


@cache
def _pattern(marks: str) -> re.Pattern[str]:
    more = f"[{marks}]*" if marks else ""
    run = f"[\\w{marks}]*"
    return re.compile(rf"{UNKNOWN_WORD}|\w{run}(?:['’-]\w{run})*|[^\w\s]{more}")
