"""Pairs made by a rule: strings reversed, and numbers as digits and in words. As many as are wanted, of any length."""

from collections.abc import Collection
from typing import Any

import numpy as np

from jaxseq.data.parallel import HELD_OUT, ParallelCorpus, parallel_corpus, split_pairs

LETTERS = "abcdefghijklmnopqrstuvwxyz"

DIRECTIONS = ("digits", "words")


def reversal_pairs(
    *,
    alphabet: str = LETTERS,
    shortest: int = 1,
    longest: int = 20,
    number: int = 20_000,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> ParallelCorpus:
    """Random strings and the same reversed: the last that is read is the first that is written.

    ``number`` strings are drawn, their lengths uniform in ``shortest`` ... ``longest``; those drawn before
    (among the short ones) are dropped, and counted. Split by ``split_pairs``.

    Raises:
        ValueError: an empty alphabet or one with a letter twice, lengths that are none, or a number below 2.
    """
    _check_alphabet(alphabet)
    if not 1 <= shortest <= longest or number < 2:
        raise ValueError(
            f"a number of at least 2 and lengths 1 <= shortest <= longest are needed, "
            f"not {number}, {shortest} and {longest}"
        )
    random = np.random.default_rng((seed, 0))
    texts = _strings(random, alphabet, random.integers(shortest, longest + 1, number))
    return split_pairs(
        [(text, text[::-1]) for text in texts],
        source=f"{number:,} strings of {shortest} to {longest} of {len(alphabet)} letters, reversed (seed {seed})",
        held_out=held_out,
        seed=seed,
    )


def random_strings(
    *, length: int, number: int, alphabet: str = LETTERS, without: Collection[str] = (), seed: int = 0
) -> tuple[str, ...]:
    """Distinct random strings of exactly this length, none of them in ``without`` (what was trained on).

    There are fewer than ``number`` where, of 2 ``number`` draws, so many were distinct and not excluded.

    Raises:
        ValueError: an empty alphabet or one with a letter twice, or a length or number below 1.
    """
    _check_alphabet(alphabet)
    if length < 1 or number < 1:
        raise ValueError(f"length and number must be at least 1, not {length} and {number}")
    random = np.random.default_rng((seed, 1, length))
    known = set(without)
    texts = dict.fromkeys(_strings(random, alphabet, np.full(2 * number, length)))
    return tuple(text for text in texts if text not in known)[:number]


def number_pairs(
    language: str = "en",
    *,
    direction: str = "digits",
    largest: int = 999_999,
    number: int = 10_000,
    held_out_number: int = 1000,
    seed: int = 0,
) -> ParallelCorpus:
    """Whole numbers in words and in digits; ``direction`` is what is written: digits from words, or words.

    Distinct numbers, uniform in 0 ... ``largest``, so that most of them have as many digits as it has. Those
    held out do not depend on ``number``.

    Raises:
        ValueError: an unknown language (lists the known ones) or direction, numbers below 1, more numbers than
            there are, or a number that this language has no words for.
        ImportError: the extra ``translation`` is not installed.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}; known: {', '.join(DIRECTIONS)}")
    if number < 1 or held_out_number < 1:
        raise ValueError(f"number and held_out_number must be at least 1, not {number} and {held_out_number}")
    if number + held_out_number > largest + 1:
        raise ValueError(f"{number} + {held_out_number} different numbers from 0 to {largest}: there are not so many")
    library = _num2words()
    name = language.replace("-", "_")
    if name not in library.CONVERTER_CLASSES:
        known = ", ".join(sorted(library.CONVERTER_CLASSES))
        raise ValueError(f"unknown language {language!r} of number words; known: {known}")
    judged = np.random.default_rng((seed, 2)).choice(largest + 1, held_out_number, replace=False)
    others = np.random.default_rng((seed, 3)).choice(largest + 1, number + held_out_number, replace=False)
    pairs = []
    for value in [*judged.tolist(), *others[~np.isin(others, judged)][:number].tolist()]:
        try:
            words = library.num2words(value, lang=name)
        except Exception as error:
            raise ValueError(f"no words for {value} in {language!r}: {type(error).__name__}") from error
        pairs.append((words, str(value)) if direction == "digits" else (str(value), words))
    return parallel_corpus(
        pairs[held_out_number:],
        pairs[:held_out_number],
        source=f"numbers up to {largest:,} in {language}, to {direction}, by num2words (seed {seed})",
    )


def _strings(random: np.random.Generator, alphabet: str, lengths: np.ndarray) -> list[str]:
    letters = np.array(list(alphabet))[random.integers(len(alphabet), size=lengths.sum())]
    whole, ends = "".join(letters.tolist()), np.cumsum(lengths).tolist()
    return [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _check_alphabet(alphabet: str) -> None:
    if not alphabet or len(set(alphabet)) < len(alphabet):
        raise ValueError(f"an alphabet needs letters, each once, not {alphabet!r}")


def _num2words() -> Any:
    try:
        import num2words
    except ImportError:
        raise ImportError("numbers in words need num2words: pip install 'jaxseq[translation]'") from None
    return num2words
