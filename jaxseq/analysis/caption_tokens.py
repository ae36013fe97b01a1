"""Tokenizers of captions, and the checks and counts that all caption scores share."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

Ngram = tuple[str, ...]

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""The 17 tokens that pycocoevalcap drops."""

VERSION = "caption-scores.1"
"""Of the definitions, in every signature. A change that changes a score increases it."""

BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
CONTRACTIONS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}
_TOKEN = re.compile(
    r"""
      (?:https?://|www\.)\S*[^\s.,;:!?'")\]}]            # an address in the web
    | (?:[^\W\d_]\.){2,}                                 # u.s. a.m.
    | (?:mr|mrs|ms|dr|st|jr|sr|prof|vs|etc|mt|ft|no)\.(?=\s|$)
    | \d+(?:[.,:/]\d+)+(?!\w) | (?<!\w)[.]\d+            # 1,000.5 10:30 1/2 .5
    | (?<!\w)'t(?=is\b|was\b)                            # 'tis 'twas
    | \w+?(?=n't\b)                                      # do|n't
    | n't\b
    | '(?:s|m|d|re|ve|ll)\b                              # it|'s
    | (?:o|d|l)'\w+ | \w+(?:-\w+)*                       # o'clock, black-and-white
    | \.{2,} | -{2,} | `` | '' | \S
    """,
    re.VERBOSE,
)


def ptb_tokens(text: str) -> list[str]:
    """Lower-case tokens of the Penn Treebank without 17 tokens of punctuation, as pycocoevalcap takes them.

    Contractions are parted (``do n't``, ``it 's``, ``can not``), words with hyphens, numbers (``1,000.5``, ``10:30``)
    and abbreviations (``u.s.``, ``mr.``) stay whole. Brackets become ``-lrb-`` and ``-rrb-``, which are kept: the list of
    dropped tokens has them in upper case, and Stanford's tokenizer in lower case. These are the tokenizer's rules for
    plain English; it knows further abbreviations, and rules for e-mail addresses and markup.
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(text.lower().replace("’", "'").replace("“", "``").replace("”", "''")):
        tokens.extend(CONTRACTIONS.get(token, (BRACKETS.get(token, token),)))
    return [_ellipsis(token) for token in tokens if _ellipsis(token) not in PUNCTUATION and token != '"']


def words(text: str) -> list[str]:
    """The parts of the text between white space."""
    return text.split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"ptb": ptb_tokens, "words": words}


def tokenized(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """The tokens of the hypotheses and of the references.

    Raises:
        ValueError: no hypotheses, unequal numbers, a hypothesis without references, a text in place of a sequence of
            references, or an unknown tokenizer.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, but references of {len(references)} images")
    return [split(tokenizer)(text) for text in hypotheses], tokenized_references(references, tokenizer)


def tokenized_references(references: Sequence[Sequence[str]], tokenizer: str) -> list[list[list[str]]]:
    """The tokens of the references of every image; raises ValueError as ``tokenized``."""
    if not len(references):
        raise ValueError("no captions to score")
    for i, texts in enumerate(references):
        if isinstance(texts, str):
            raise ValueError(f"the references of image {i} are a text, {texts!r}, not a sequence of texts")
        if not len(texts):
            raise ValueError(f"image {i} has no references")
    return [[split(tokenizer)(text) for text in texts] for texts in references]


def split(tokenizer: str) -> Callable[[str], list[str]]:
    """The tokenizer of a name.

    Raises:
        ValueError: the name is unknown.
    """
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"unknown tokenizer {tokenizer!r}; known: {', '.join(TOKENIZERS)}")
    return TOKENIZERS[tokenizer]


def ngrams(tokens: Sequence[str], order: int) -> Counter[Ngram]:
    """How often each n-gram of ``order`` tokens occurs."""
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def signature(score: str, references: Sequence[Sequence[object]], tokenizer: str, **terms: object) -> str:
    """``SCORE|nrefs:5|tok:ptb|...|version:...``, the form of sacrebleu's signatures."""
    counts = {len(texts) for texts in references}
    number = str(counts.pop()) if len(counts) == 1 else "var"
    parts = [score, f"nrefs:{number}", f"tok:{tokenizer}", *(f"{name}:{value}" for name, value in terms.items())]
    return "|".join([*parts, f"version:{VERSION}"])


def _ellipsis(token: str) -> str:
    """Any row of dots is the token ``...``, any row of hyphens ``--``."""
    if len(token) > 1 and set(token) in ({"."}, {"-"}):
        return "..." if token[0] == "." else "--"
    return token
