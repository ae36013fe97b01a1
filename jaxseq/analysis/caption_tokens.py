"""Tokenizers of captions, and the checks and counts that all caption scores share."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

Ngram = tuple[str, ...]

VERSION = "caption-scores.1"
"""Of the definitions, in every signature. A change that changes a score increases it."""

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
PUNCTUATION |= {"-LRB-", "-RRB-", "-LCB-", "-RCB-"}
"""The 17 tokens that pycocoevalcap drops."""

ABBREVIATIONS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    mr mrs ms dr drs prof gen col lt sgt capt rev hon gov pres sen rep adm maj messrs jr sr esq ph.d
    st mt ft ave blvd rd sq bldg dept est assn bros corp co inc ltd etc vs al cf v
    va calif fla tex mass wash ariz ala ill ind ore penn
"""
SPELLINGS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SPELLINGS |= {"£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4"}
CONTRACTIONS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}
_CHARACTERS = {"’": "'", "‘": "'", "´": "'", "“": '"', "”": '"', "–": " - ", "—": " - ", "―": " - ", "…": " ... "}
_TRANSLATION = str.maketrans({**_CHARACTERS, "½": " ½ ", "¼": " ¼ ", "¾": " ¾ "})
_DROPPED = re.compile(r'"|-{1,4}|\.+')  # quotes, and rows that become the tokens -- and ...
_TOKEN = re.compile(
    rf"""
      (?:https?://|www\.)\S*[^\s.,;:!?'")\]}}]                                  # an address in the web
    | [\w.+-]+@\w+(?:\.\w+)+ | [@\#][a-z]\w* | <[a-z/][^<>\s]*>                  # mail, names, tags
    | (?<!\w)(?:{"|".join(ABBREVIATIONS.split())})\.(?!\w) | (?<!\w)no\.(?=\s*\d)
    | (?<!\w)(?:[a-z]\.)+(?!\w)                                                     # u.s. a.m.
    | (?<!\w)[+-]?\d*(?:[.,:/]\d+)+(?![\w/-]) | (?<!\w)[+-]\d+(?![\w/-])         # 1,000.5 10:30 1/2 -5
    | (?<!\w)\d*\.\d+(?=x)
    | (?<!\w)(?:'n'?(?!\w)|'(?:em|til|cause)\b|'\d\ds?(?![\w']))
    | (?<!\w)'t(?=is\b|was) | \b[y]'(?=\w)                                      # 'tis, y'all
    | \w+?(?=n't\b) | n't\b                                                     # do|n't
    | '(?:s|m|d|re|ve|ll|n)\b                                                   # it|'s
    | \b[odnl]'\w+ | \bma'am\b | \bc'mon\b                                      # o'clock
    | \w+(?:[-.]\w+|/\w+)*                                                      # black-and-white, and/or
    | [?!]{{2,}} | \.{{2,}} | -{{2,}} | `` | '' | \S
    """,
    re.VERBOSE,
)


def ptb_tokens(text: str) -> list[str]:
    """Lower-case tokens of the Penn Treebank without 17 tokens of punctuation, as pycocoevalcap takes them.

    Contractions are split (``do n't``, ``it 's``, ``can not``). Words with hyphens, numbers (``1,000.5``, ``10:30``)
    and abbreviations (``u.s.``, ``mr.``) stay whole. Brackets become ``-lrb-`` and ``-rrb-`` and are kept, as are rows
    like ``!!``: pycocoevalcap's list has brackets in upper case only, and single marks only. These are the rules of
    Stanford's tokenizer 3.4.1 for plain English; it also has rules for emoticons, telephone numbers and markup, and
    knows more abbreviations.
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(text.lower().translate(_TRANSLATION)):
        tokens.extend(CONTRACTIONS.get(token, (SPELLINGS.get(token, token),)))
    return [token for token in tokens if token not in PUNCTUATION and not _DROPPED.fullmatch(token)]


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
