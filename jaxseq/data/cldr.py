"""Real pairs in any two languages that Babel knows: dates and names, from Unicode's locale data (CLDR).

They are facts about languages rather than sentences: small, exact, of controlled length, and never fetched.
"""

import datetime
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxseq.data.parallel import HELD_OUT, ParallelCorpus, check_held_out, parallel_corpus, split_pairs

FORMATS = ("short", "medium", "long", "full")
KINDS = ("territories", "languages", "scripts", "currencies")
ISO = "iso"
JOINT = "; "

Pair = tuple[str, str]
Choice = tuple[int, str]  # a day (its proleptic ordinal) and the format it is written in


def date_pairs(
    source: str = "en",
    target: str = "de",
    *,
    formats: Sequence[str] = ("long", "full"),
    first_year: int = 1900,
    last_year: int = 2099,
    held_out: float = HELD_OUT,
    number: int | None = None,
    held_out_number: int = 1000,
    most: int = 1,
    seed: int = 0,
) -> ParallelCorpus:
    """The same date as two locales write it, in the same format; ``target="iso"`` gives YYYY-MM-DD.

    Held out are whole years (``held_out_years``): no date of one is trained on, whatever its format. What can
    be drawn is every day of a part's years in every format. ``most = 1``: distinct dates, at most ``number``
    to train on (``None``: all of them, in a random order) and ``held_out_number`` held out. ``most > 1``: each
    side is a list of dates, as many as are drawn uniformly from 1 ... ``most``, each with a format of its own,
    joined by "; "; ``number = None`` draws as many lists as there are dates to draw, lists drawn twice are
    dropped. ``date_lists`` makes the longer lists to evaluate with.

    Raises:
        ValueError: an unknown locale or format, years outside 1 ... 9999 or fewer than two of them, a fraction
            outside (0, 1), a number below 1, or a format that writes two of the years alike (no century).
        ImportError: the extra ``translation`` is not installed.
    """
    least = min(held_out_number, most, 1 if number is None else number)
    if least < 1:
        raise ValueError(f"number, held_out_number and most must be at least 1, not {least}")
    judged = held_out_years(first_year, last_year, held_out=held_out, seed=seed)
    years = [year for year in range(first_year, last_year + 1) if year not in judged]
    write = _writer(source, target, formats, range(first_year, last_year + 1))
    parts = []
    for part, (among, count) in enumerate([(years, number), (judged, held_out_number)]):
        random = np.random.default_rng((seed, 1, part))
        choices = _choices(among, formats)
        count = len(choices) if count is None else count
        sizes = np.ones(min(count, len(choices)), int) if most == 1 else random.integers(1, most + 1, count)
        parts.append(_written(write, choices, sizes, random))
    lists = "" if most == 1 else f", lists of 1 to {most}"
    return parallel_corpus(
        parts[0],
        list(dict.fromkeys(parts[1])),
        source=f"dates {first_year} to {last_year} ({', '.join(formats)}{lists}), {source} to {target}, by Babel "
        f"{_babel().__version__}; {len(judged)} of {len(judged) + len(years)} years held out",
    )


def held_out_years(
    first_year: int = 1900, last_year: int = 2099, *, held_out: float = HELD_OUT, seed: int = 0
) -> tuple[int, ...]:
    """The years, in order, that ``date_pairs`` holds out with the same arguments (at least one of them).

    Raises:
        ValueError: years outside 1 ... 9999 or fewer than two of them, or a fraction outside (0, 1).
    """
    check_held_out(held_out)
    if not 1 <= first_year < last_year <= 9999:
        raise ValueError(f"years must be at least 2 of 1 ... 9999, not {first_year} to {last_year}")
    count = last_year - first_year + 1
    chosen = np.random.default_rng((seed, 0)).permutation(count)[: min(count - 1, max(1, round(held_out * count)))]
    return tuple(sorted((first_year + chosen).tolist()))


def date_lists(
    source: str = "en",
    target: str = "de",
    *,
    years: Sequence[int],
    count: int,
    number: int,
    formats: Sequence[str] = ("long", "full"),
    seed: int = 0,
) -> tuple[Pair, ...]:
    """Pairs of exactly ``count`` dates of these years, joined by "; ": how a model does on longer texts.

    With ``count = 1`` the dates are distinct, and no more than there are. Give it ``held_out_years``.

    Raises:
        ValueError: as ``date_pairs``, and where there are no years.
        ImportError: the extra ``translation`` is not installed.
    """
    if count < 1 or number < 1 or not years:
        raise ValueError(f"count, number and years must be at least 1, not {count}, {number} and {len(years)} years")
    if not 1 <= min(years) <= max(years) <= 9999:
        raise ValueError(f"years must lie in 1 ... 9999, not {min(years)} to {max(years)}")
    choices = _choices(years, formats)
    sizes = np.full(min(number, len(choices)) if count == 1 else number, count)
    write = _writer(source, target, formats, years)
    return tuple(_written(write, choices, sizes, np.random.default_rng((seed, 2, count))))


def name_pairs(
    source: str = "en",
    target: str = "de",
    *,
    kinds: Sequence[str] = KINDS,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> ParallelCorpus:
    """The names of the same thing in two locales: territories, languages, scripts and currencies.

    What one of them has no name for (none, or only its code) is left out. Split by ``split_pairs``.

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
        source=f"names of {', '.join(kinds)}, {source} to {target}, by Babel {_babel().__version__}",
        held_out=held_out,
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


def _written(
    write: Callable[[Choice], Pair], choices: list[Choice], sizes: np.ndarray, random: np.random.Generator
) -> list[Pair]:
    """Lists of these many dates; distinct dates where each list holds one."""
    if sizes.max() == 1 and len(sizes) <= len(choices):
        drawn = random.permutation(len(choices))[: len(sizes)]
    else:
        drawn = random.integers(len(choices), size=sizes.sum())
    parts = np.split(drawn, np.cumsum(sizes)[:-1])
    pairs = []
    for part in parts:
        written = [write(choices[index]) for index in part.tolist()]
        pairs.append((JOINT.join(one for one, _ in written), JOINT.join(other for _, other in written)))
    return pairs


def _writer(source: str, target: str, formats: Sequence[str], years: Sequence[int]) -> Callable[[Choice], Pair]:
    """A date's two texts, remembered; refuses formats that cannot tell the years apart."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    if not formats:
        raise ValueError(f"at least one format is needed; known: {', '.join(FORMATS)}")
    one = _locale(source)
    other = None if target == ISO else _locale(target)
    format_date = _babel().dates.format_date
    for name in formats:
        told_apart = {format_date(datetime.date(year, 7, 1), name, locale=one) for year in years}
        if len(told_apart) < len(set(years)):
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
