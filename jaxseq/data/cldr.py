"""Pairs in any two languages of Babel: dates and names, from Unicode's locale data (CLDR).

They are exact, of controlled length, and need no download.
"""

import datetime
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxseq.data.parallel import (
    HELD_OUT_FRACTION,
    ParallelCorpus,
    check_held_out_fraction,
    parallel_corpus,
    split_pairs,
)

FORMATS = ("short", "medium", "long", "full")
KINDS = ("territories", "languages", "scripts", "currencies")
ISO = "iso"
SEPARATOR = "; "

Pair = tuple[str, str]
Choice = tuple[int, str]  # a day (its proleptic ordinal) and its format


def date_pairs(
    source: str = "en",
    target: str = "de",
    *,
    formats: Sequence[str] = ("long", "full"),
    first_year: int = 1900,
    last_year: int = 2099,
    held_out_fraction: float = HELD_OUT_FRACTION,
    num_pairs: int | None = None,
    num_held_out_pairs: int = 1000,
    dates_per_line: int = 1,
    seed: int = 0,
) -> ParallelCorpus:
    """Dates as two locales write them, in the same format.

    Whole years are held out (``held_out_years``). The population of a part is every day of its years in every format.

    Args:
        source: the locale of the sources.
        target: the locale of the targets, or ``"iso"`` for YYYY-MM-DD.
        formats: the formats of dates, of ``"short"``, ``"medium"``, ``"long"``, ``"full"``.
        first_year: the first year.
        last_year: the last year.
        held_out_fraction: the fraction of the years that is held out.
        num_pairs: the number of pairs drawn to train on; None draws as many as the population has.
        num_held_out_pairs: the number of pairs drawn from the held-out years.
        dates_per_line: 1 draws distinct dates, at most the whole population. Otherwise each side is a list of dates
            joined by "; ", their number uniform in 1 ... ``dates_per_line``, each with its own format; duplicate lists
            are dropped. ``date_lists`` makes longer lists for evaluation.
        seed: the seed of the split and of the draws.

    Raises:
        ValueError: an unknown locale or format, years outside 1 ... 9999 or fewer than two years, a fraction outside
            (0, 1), a count below 1, or a format that writes two of the years alike (without the century).
        ImportError: the extra ``translation`` is not installed.
    """
    smallest = min(num_held_out_pairs, dates_per_line, 1 if num_pairs is None else num_pairs)
    if smallest < 1:
        raise ValueError(f"num_pairs, num_held_out_pairs and dates_per_line must be at least 1, not {smallest}")
    held_out = held_out_years(first_year, last_year, held_out_fraction=held_out_fraction, seed=seed)
    years = [year for year in range(first_year, last_year + 1) if year not in held_out]
    write = _writer(source, target, formats, range(first_year, last_year + 1))
    parts = []
    for part, (years_of_part, count) in enumerate([(years, num_pairs), (held_out, num_held_out_pairs)]):
        random = np.random.default_rng((seed, 1, part))
        choices = _choices(years_of_part, formats)
        count = len(choices) if count is None else count
        if dates_per_line == 1:
            sizes = np.ones(min(count, len(choices)), int)
        else:
            sizes = random.integers(1, dates_per_line + 1, count)
        parts.append(_write_lists(write, choices, sizes, random))
    lists = "" if dates_per_line == 1 else f", lists of 1 to {dates_per_line}"
    return parallel_corpus(
        parts[0],
        list(dict.fromkeys(parts[1])),
        description=f"dates {first_year} to {last_year} ({', '.join(formats)}{lists}), {source} to {target}, by Babel "
        f"{_babel().__version__}; {len(held_out)} of {len(held_out) + len(years)} years held out",
    )


def held_out_years(
    first_year: int = 1900, last_year: int = 2099, *, held_out_fraction: float = HELD_OUT_FRACTION, seed: int = 0
) -> tuple[int, ...]:
    """The sorted years that ``date_pairs`` holds out with the same arguments, at least one.

    Raises:
        ValueError: years outside 1 ... 9999 or fewer than two of them, or a fraction outside (0, 1).
    """
    check_held_out_fraction(held_out_fraction)
    if not 1 <= first_year < last_year <= 9999:
        raise ValueError(f"years must be at least 2 of 1 ... 9999, not {first_year} to {last_year}")
    count = last_year - first_year + 1
    num_held_out = min(count - 1, max(1, round(held_out_fraction * count)))
    chosen = np.random.default_rng((seed, 0)).permutation(count)[:num_held_out]
    return tuple(sorted((first_year + chosen).tolist()))


def date_lists(
    source: str = "en",
    target: str = "de",
    *,
    years: Sequence[int],
    dates_per_line: int,
    num_pairs: int,
    formats: Sequence[str] = ("long", "full"),
    seed: int = 0,
) -> tuple[Pair, ...]:
    """Pairs of exactly ``dates_per_line`` dates of the given years, joined by "; ", to evaluate on longer texts.

    With ``dates_per_line=1`` the dates are distinct, at most as many as exist. Pass ``held_out_years`` as ``years`` to
    evaluate a model that was trained on ``date_pairs``.

    Raises:
        ValueError: as ``date_pairs``, or no years.
        ImportError: the extra ``translation`` is not installed.
    """
    if dates_per_line < 1 or num_pairs < 1 or not years:
        counts = f"{dates_per_line}, {num_pairs} and {len(years)} years"
        raise ValueError(f"dates_per_line, num_pairs and the number of years must be at least 1, not {counts}")
    if not 1 <= min(years) <= max(years) <= 9999:
        raise ValueError(f"years must lie in 1 ... 9999, not {min(years)} to {max(years)}")
    choices = _choices(years, formats)
    count = min(num_pairs, len(choices)) if dates_per_line == 1 else num_pairs
    sizes = np.full(count, dates_per_line)
    write = _writer(source, target, formats, years)
    return tuple(_write_lists(write, choices, sizes, np.random.default_rng((seed, 2, dates_per_line))))


def name_pairs(
    source: str = "en",
    target: str = "de",
    *,
    kinds: Sequence[str] = KINDS,
    held_out_fraction: float = HELD_OUT_FRACTION,
    seed: int = 0,
) -> ParallelCorpus:
    """Names in two locales: of territories, languages, scripts and currencies.

    Codes without a name in one of the locales are omitted. Split by ``split_pairs``.

    Raises:
        ValueError: an unknown locale or kind, fewer than two names, or a fraction outside (0, 1).
        ImportError: the extra ``translation`` is not installed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of names {kind!r}; known: {', '.join(KINDS)}")
    locales = _locale(source), _locale(target)
    pairs = []
    for kind in kinds:
        one, other = (getattr(locale, kind) for locale in locales)
        shared = sorted(code for code in set(one) & set(other) if code not in (one[code], other[code]))
        pairs += [(one[code], other[code]) for code in shared]
    return split_pairs(
        pairs,
        description=f"names of {', '.join(kinds)}, {source} to {target}, by Babel {_babel().__version__}",
        held_out_fraction=held_out_fraction,
        seed=seed,
    )


def _choices(years: Sequence[int], formats: Sequence[str]) -> list[Choice]:
    """Every day of these years in every format."""
    days = [
        day
        for year in years
        for day in range(datetime.date(year, 1, 1).toordinal(), datetime.date(year, 12, 31).toordinal() + 1)
    ]
    return [(day, name) for day in days for name in formats]


def _write_lists(
    write: Callable[[Choice], Pair], choices: list[Choice], sizes: np.ndarray, random: np.random.Generator
) -> list[Pair]:
    """Lists with the given numbers of dates; distinct dates if each list has one."""
    if sizes.max() == 1 and len(sizes) <= len(choices):
        drawn = random.permutation(len(choices))[: len(sizes)]
    else:
        drawn = random.integers(len(choices), size=sizes.sum())
    parts = np.split(drawn, np.cumsum(sizes)[:-1])
    pairs = []
    for part in parts:
        written = [write(choices[index]) for index in part.tolist()]
        pairs.append((SEPARATOR.join(one for one, _ in written), SEPARATOR.join(other for _, other in written)))
    return pairs


def _writer(source: str, target: str, formats: Sequence[str], years: Sequence[int]) -> Callable[[Choice], Pair]:
    """A cached function from a date to its two texts; raises for formats that write two years alike."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    if not formats:
        raise ValueError(f"at least one format is needed; known: {', '.join(FORMATS)}")
    one = _locale(source)
    other = None if target == ISO else _locale(target)
    format_date = _babel().dates.format_date
    for name in formats:
        distinct = {format_date(datetime.date(year, 7, 1), name, locale=one) for year in years}
        if len(distinct) < len(set(years)):
            span = f"{min(years)} to {max(years)}"
            raise ValueError(f"format {name!r} of {source} leaves out the century: years {span} look alike")

    @functools.cache
    def write(choice: Choice) -> Pair:
        day, name = datetime.date.fromordinal(choice[0]), choice[1]
        text = day.isoformat() if other is None else format_date(day, name, locale=other)
        return format_date(day, name, locale=one), text

    return write


def _locale(name: str) -> Any:
    babel = _babel()
    try:
        return babel.Locale.parse(name.replace("-", "_"))
    except (babel.UnknownLocaleError, ValueError, TypeError):
        known = len(babel.localedata.locale_identifiers())
        raise ValueError(f"unknown locale {name!r}; Babel knows {known}, such as de, pt_BR, zh_Hant") from None


def _babel() -> Any:
    try:
        import babel
        import babel.dates
        import babel.localedata
    except ImportError:
        raise ImportError("dates and names in two languages need Babel: pip install 'jaxseq[translation]'") from None
    return babel
