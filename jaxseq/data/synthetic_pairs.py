"""Synthetic pairs of unlimited number and length: reversed strings, and numbers in words."""

from collections.abc import Collection
from typing import Any

import numpy as np

from jaxseq.data.parallel import HELD_OUT_FRACTION, ParallelCorpus, parallel_corpus, split_pairs

LETTERS = "abcdefghijklmnopqrstuvwxyz"

DIRECTIONS = ("digits", "words")


def reversal_pairs(
    *,
    alphabet: str = LETTERS,
    min_string_length: int = 1,
    max_string_length: int = 20,
    num_pairs: int = 20_000,
    held_out_fraction: float = HELD_OUT_FRACTION,
    seed: int = 0,
) -> ParallelCorpus:
    """Random strings with their reversals as targets.

    ``num_pairs`` strings are drawn, with lengths uniform in ``min_string_length`` ... ``max_string_length``; duplicates
    (among short strings) are dropped and counted. Split by ``split_pairs``.

    Raises:
        ValueError: an alphabet that is empty or repeats a letter, invalid lengths, or fewer than 2 pairs.
    """
    _check_alphabet(alphabet)
    if num_pairs < 2:
        raise ValueError(f"num_pairs must be at least 2, not {num_pairs}")
    if not 1 <= min_string_length <= max_string_length:
        lengths = f"{min_string_length} and {max_string_length}"
        raise ValueError(f"1 <= min_string_length <= max_string_length must hold, not {lengths}")
    random = np.random.default_rng((seed, 0))
    texts = _strings(random, alphabet, random.integers(min_string_length, max_string_length + 1, num_pairs))
    return split_pairs(
        [(text, text[::-1]) for text in texts],
        description=f"{num_pairs:,} strings of {min_string_length} to {max_string_length} of {len(alphabet)} letters, "
        f"reversed (seed {seed})",
        held_out_fraction=held_out_fraction,
        seed=seed,
    )


def random_strings(
    *, length: int, num_strings: int, alphabet: str = LETTERS, exclude: Collection[str] = (), seed: int = 0
) -> tuple[str, ...]:
    """Distinct random strings of one length, none of them in ``exclude`` (for example the training strings).

    Of ``2 * num_strings`` draws, duplicates and excluded strings are dropped; fewer than ``num_strings`` may remain.

    Raises:
        ValueError: an alphabet that is empty or repeats a letter, or a length or number below 1.
    """
    _check_alphabet(alphabet)
    if length < 1 or num_strings < 1:
        raise ValueError(f"length and num_strings must be at least 1, not {length} and {num_strings}")
    random = np.random.default_rng((seed, 1, length))
    excluded = set(exclude)
    texts = dict.fromkeys(_strings(random, alphabet, np.full(2 * num_strings, length)))
    return tuple(text for text in texts if text not in excluded)[:num_strings]


def number_pairs(
    language: str = "en",
    *,
    direction: str = "digits",
    max_number: int = 999_999,
    num_pairs: int = 10_000,
    num_held_out_pairs: int = 1000,
    seed: int = 0,
) -> ParallelCorpus:
    """Integers in words and in digits; ``direction`` is the target: ``"digits"`` or ``"words"``.

    The integers are distinct and uniform in 0 ... ``max_number``, so that most have as many digits as ``max_number``.
    The held-out ones do not depend on ``num_pairs``.

    Raises:
        ValueError: an unknown language or direction (lists the known ones), counts below 1, more pairs than integers,
            or an integer without words in this language.
        ImportError: the extra ``translation`` is not installed.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}; known: {', '.join(DIRECTIONS)}")
    if num_pairs < 1 or num_held_out_pairs < 1:
        raise ValueError(
            f"num_pairs and num_held_out_pairs must be at least 1, not {num_pairs} and {num_held_out_pairs}"
        )
    if num_pairs + num_held_out_pairs > max_number + 1:
        raise ValueError(
            f"{num_pairs} + {num_held_out_pairs} pairs: more than there are integers from 0 to {max_number}"
        )
    library = _num2words()
    name = language.replace("-", "_")
    if name not in library.CONVERTER_CLASSES:
        known = ", ".join(sorted(library.CONVERTER_CLASSES))
        raise ValueError(f"unknown language {language!r} of number words; known: {known}")
    held_out = np.random.default_rng((seed, 2)).choice(max_number + 1, num_held_out_pairs, replace=False)
    others = np.random.default_rng((seed, 3)).choice(max_number + 1, num_pairs + num_held_out_pairs, replace=False)
    pairs = []
    for value in [*held_out.tolist(), *others[~np.isin(others, held_out)][:num_pairs].tolist()]:
        try:
            words = library.num2words(value, lang=name)
        except Exception as error:
            raise ValueError(f"no words for {value} in {language!r}: {type(error).__name__}") from error
        pairs.append((words, str(value)) if direction == "digits" else (str(value), words))
    return parallel_corpus(
        pairs[num_held_out_pairs:],
        pairs[:num_held_out_pairs],
        description=f"numbers up to {max_number:,} in {language}, to {direction}, by num2words (seed {seed})",
    )


def _strings(random: np.random.Generator, alphabet: str, lengths: np.ndarray) -> list[str]:
    letters = np.array(list(alphabet))[random.integers(len(alphabet), size=lengths.sum())]
    whole, ends = "".join(letters.tolist()), np.cumsum(lengths).tolist()
    return [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _check_alphabet(alphabet: str) -> None:
    if not alphabet or len(set(alphabet)) < len(alphabet):
        raise ValueError(f"an alphabet needs at least one letter, each once, not {alphabet!r}")


def _num2words() -> Any:
    try:
        import num2words
    except ImportError:
        raise ImportError("numbers in words need num2words: pip install 'jaxseq[translation]'") from None
    return num2words
