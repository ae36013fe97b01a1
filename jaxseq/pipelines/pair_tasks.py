"""Tasks for translation models: sources of text pairs. Each class has only the fields that it reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from jaxseq import data

Pairs: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True)
class Dates:
    """Dates from one locale to another, of Unicode's locale data; whole years are held out."""

    source: str = "en"
    """The source's locale, as Babel names it."""
    target: str = "de"
    """The target's locale, or iso for YYYY-MM-DD."""
    num_pairs: int = 20_000
    """Maximum number of training pairs."""
    dates_per_line: int = 1
    """Maximum number of dates per line."""
    length_extrapolation: int = 1
    """Also evaluate on lines with up to this multiple of dates_per_line."""

    def __post_init__(self) -> None:
        check_minimum(self, num_pairs=1, dates_per_line=1, length_extrapolation=1)

    def corpus(self, seed: int, num_held_out_pairs: int) -> data.ParallelCorpus:
        """Training and held-out pairs."""
        counts: dict[str, Any] = {"num_pairs": self.num_pairs, "num_held_out_pairs": num_held_out_pairs}
        return data.date_pairs(self.source, self.target, dates_per_line=self.dates_per_line, seed=seed, **counts)

    def longer_pairs(self, seed: int, num_pairs: int) -> Pairs:
        """``num_pairs`` pairs for each number of dates above ``dates_per_line``."""
        counts = range(self.dates_per_line + 1, self.length_extrapolation * self.dates_per_line + 1)
        common: dict[str, Any] = {"years": data.held_out_years(seed=seed), "num_pairs": num_pairs, "seed": seed + 1}
        lists = [data.date_lists(self.source, self.target, dates_per_line=count, **common) for count in counts]
        return [pair for pairs in lists for pair in pairs]


@dataclass(frozen=True)
class Names:
    """Names of territories, languages, scripts and currencies, of Unicode's locale data."""

    length_extrapolation: ClassVar[int] = 1

    source: str = "en"
    """The source's locale, as Babel names it."""
    target: str = "de"
    """The target's locale."""

    def corpus(self, seed: int, num_held_out_pairs: int) -> data.ParallelCorpus:
        """Training and held-out pairs: a tenth of the names, however many."""
        del num_held_out_pairs
        return data.name_pairs(self.source, self.target, seed=seed)

    def longer_pairs(self, seed: int, num_pairs: int) -> Pairs:
        """No pairs: the task has no longer ones."""
        return []


@dataclass(frozen=True)
class Words:
    """Numbers in digits, to be written in words."""

    length_extrapolation: ClassVar[int] = 1

    language: str = "de"
    """The words' language, as num2words names it."""
    num_pairs: int = 20_000
    """Maximum number of training pairs."""

    def __post_init__(self) -> None:
        check_minimum(self, num_pairs=1)

    def corpus(self, seed: int, num_held_out_pairs: int) -> data.ParallelCorpus:
        """Training and held-out pairs."""
        counts: dict[str, Any] = {"num_pairs": self.num_pairs, "num_held_out_pairs": num_held_out_pairs}
        return data.number_pairs(self.language, direction="words", seed=seed, **counts)

    def longer_pairs(self, seed: int, num_pairs: int) -> Pairs:
        """No pairs: the task has no longer ones."""
        return []


@dataclass(frozen=True)
class Digits:
    """Numbers in words, to be written in digits."""

    length_extrapolation: ClassVar[int] = 1

    language: str = "en"
    """The words' language, as num2words names it."""
    num_pairs: int = 20_000
    """Maximum number of training pairs."""

    def __post_init__(self) -> None:
        check_minimum(self, num_pairs=1)

    def corpus(self, seed: int, num_held_out_pairs: int) -> data.ParallelCorpus:
        """Training and held-out pairs."""
        counts: dict[str, Any] = {"num_pairs": self.num_pairs, "num_held_out_pairs": num_held_out_pairs}
        return data.number_pairs(self.language, direction="digits", seed=seed, **counts)

    def longer_pairs(self, seed: int, num_pairs: int) -> Pairs:
        """No pairs: the task has no longer ones."""
        return []


@dataclass(frozen=True)
class Reversal:
    """Random strings, to be written backwards: the alignment is known."""

    max_string_length: int = 20
    """Maximum number of characters of a string."""
    num_pairs: int = 20_000
    """Number of strings drawn; a tenth of the distinct ones is held out."""
    length_extrapolation: int = 1
    """Also evaluate on strings of up to this multiple of the maximum training length."""

    def __post_init__(self) -> None:
        check_minimum(self, num_pairs=1, max_string_length=1, length_extrapolation=1)

    def corpus(self, seed: int, num_held_out_pairs: int) -> data.ParallelCorpus:
        """Training and held-out pairs: a tenth of the strings, however many."""
        del num_held_out_pairs
        return data.reversal_pairs(max_string_length=self.max_string_length, num_pairs=self.num_pairs, seed=seed)

    def longer_pairs(self, seed: int, num_pairs: int) -> Pairs:
        """``num_pairs`` pairs for each length above the training pairs'."""
        lengths = range(self.max_string_length + 1, self.length_extrapolation * self.max_string_length + 1)
        made = [data.random_strings(length=length, num_strings=num_pairs, seed=seed + 1) for length in lengths]
        return [(text, text[::-1]) for texts in made for text in texts]


@dataclass(frozen=True)
class Files:
    """Your own pairs."""

    length_extrapolation: ClassVar[int] = 1

    pairs: Path
    """A .tsv or .txt file (columns separated by tabs), a .jsonl file, or with pairs_target the source side of two
    aligned files; each may be .gz."""
    pairs_target: Path | None = None
    """The target side of two aligned files."""
    columns: str | None = None
    """The columns of the source and of the target: numbers from 1 (2,4), or names in the header line or of the fields
    of JSON lines (english,german). None: the two columns of a table, or the columns or fields named source and
    target."""
    header: data.Header = "auto"
    """Whether the first line of a table names its columns. auto: if it has the names in columns, or if both cells are
    names of languages or sides (en, German, source)."""
    held_out: Path | None = None
    """Pairs to evaluate on, in the same form; a tenth of the sources if not given."""
    held_out_target: Path | None = None
    """The target side of the pairs to evaluate on."""

    def __post_init__(self) -> None:
        if self.held_out_target is not None and self.held_out is None:
            raise ValueError(f"held_out_target={self.held_out_target} belongs to held_out, which is not given")
        if self.columns is not None:
            data.parse_columns(self.columns)

    def corpus(self, seed: int, num_held_out_pairs: int) -> data.ParallelCorpus:
        """Training and held-out pairs."""
        del num_held_out_pairs
        held_out: Any = self.held_out
        if self.held_out_target is not None:
            held_out = self.held_out, self.held_out_target
        columns = None if self.columns is None else data.parse_columns(self.columns)
        options: dict[str, Any] = {"columns": columns, "header": self.header, "held_out_path": held_out, "seed": seed}
        return data.text_pairs(self.pairs, self.pairs_target, **options)

    def longer_pairs(self, seed: int, num_pairs: int) -> Pairs:
        """No pairs: the task has no longer ones."""
        return []


def check_minimum(config: Any, **minimum: int) -> None:
    """Check integer fields against their least values.

    Raises:
        ValueError: the first field below its minimum.
    """
    for name, bound in minimum.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} must be at least {bound}, not {getattr(config, name)}")
