"""Dates and names in two languages: the same thing on both sides, whole years held out."""

import datetime
import re
import sys

import pytest

from jaxseq.data import date_lists, date_pairs, held_out_years, name_pairs

REASON = "the extra 'translation' is not installed"
babel = pytest.importorskip("babel", reason=REASON)
dates = pytest.importorskip("babel.dates", reason=REASON)


def years_of(pairs) -> set[int]:
    return {int(year) for _, target in pairs for year in re.findall(r"\d{4}(?=-)", target)}


@pytest.mark.parametrize("dates_per_line", [1, 3])
def test_each_date_is_the_same_day_on_both_sides_in_one_of_the_formats(dates_per_line):
    formats = ("medium", "full")
    corpus = date_pairs(
        "fr", "iso", formats=formats, first_year=1990, last_year=1999, num_pairs=300, dates_per_line=dates_per_line
    )
    counts = set()
    for source, target in corpus.train + corpus.held_out:
        ones, others = source.split("; "), target.split("; ")
        counts.add(len(ones))
        for one, other in zip(ones, others, strict=True):
            day = datetime.date.fromisoformat(other)
            assert one in [dates.format_date(day, name, locale="fr") for name in formats]
    assert counts == set(range(1, dates_per_line + 1))


def test_both_sides_are_written_in_the_same_format():
    corpus = date_pairs("en", "de", first_year=2000, last_year=2003, num_pairs=400)
    days = [datetime.date(2000, 1, 1) + datetime.timedelta(i) for i in range(4 * 366)]
    expected = {
        tuple(dates.format_date(day, name, locale=locale) for locale in ("en", "de"))
        for day in days
        for name in ("long", "full")
    }
    assert set(corpus.train) <= expected and set(corpus.held_out) <= expected
    assert len(corpus.train) == 400 and len(set(corpus.train)) == 400
    assert any("," in target for _, target in corpus.train) and any("," not in target for _, target in corpus.train)


def test_whole_years_are_held_out_and_all_the_rest_can_be_trained_on():
    arguments = dict(first_year=1980, last_year=1999, held_out_fraction=0.25, seed=2)
    judged = held_out_years(**arguments)
    assert len(judged) == 5 and list(judged) == sorted(set(judged))
    corpus = date_pairs("en", "iso", formats=("long",), num_held_out_pairs=5000, **arguments)
    assert years_of(corpus.held_out) == set(judged)
    assert years_of(corpus.train) == set(range(1980, 2000)) - set(judged)
    assert len(corpus.train) + len(corpus.held_out) == (datetime.date(2000, 1, 1) - datetime.date(1980, 1, 1)).days
    lists = date_pairs("en", "iso", dates_per_line=4, num_pairs=500, **arguments)
    assert not years_of(lists.train) & set(judged) and years_of(lists.held_out) <= set(judged)
    assert "5 of 20 years held out" in corpus.summary()
    assert held_out_years(**{**arguments, "seed": 3}) != judged
    for held_out, count in [(0.001, 1), (0.999, 19)]:
        assert len(held_out_years(1980, 1999, held_out_fraction=held_out)) == count


def test_dates_that_two_formats_write_alike_are_there_once():
    corpus = date_pairs(
        "fa", "iso", formats=("medium", "long"), first_year=2001, last_year=2002, num_held_out_pairs=999
    )
    assert len(corpus.train) == len(set(corpus.train)) == 365
    assert len(corpus.held_out) == len(set(corpus.held_out)) == 365


def test_lists_have_as_many_dates_as_are_asked_for():
    years = held_out_years()
    for count in (1, 7):
        pairs = date_lists("en", "iso", years=years, dates_per_line=count, num_pairs=40)
        assert len(pairs) == 40
        assert all(len(side.split("; ")) == count for pair in pairs for side in pair)
        assert years_of(pairs) <= set(years)
    assert len(set(date_lists(years=[2001], dates_per_line=1, num_pairs=9999, formats=["long"]))) == 365
    assert date_lists(years=years, dates_per_line=2, num_pairs=5, seed=1) != date_lists(
        years=years, dates_per_line=2, num_pairs=5, seed=2
    )


def test_what_is_held_out_does_not_depend_on_how_much_is_trained_on():
    small, large, again = (date_pairs(num_pairs=number, seed=5) for number in (10, 500, 500))
    assert small.held_out == large.held_out and large == again
    assert large.sha256 != date_pairs(num_pairs=500, seed=6).sha256


def test_dates_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="unknown locale 'klingon'; Babel knows"):
        date_pairs("klingon")
    with pytest.raises(ValueError, match="unknown locale ''"):
        date_pairs("en", "")
    with pytest.raises(ValueError, match="unknown format 'longish'; known: short, medium, long, full"):
        date_pairs(formats=("long", "longish"))
    with pytest.raises(ValueError, match="at least one format"):
        date_pairs(formats=())
    with pytest.raises(ValueError, match="format 'short' of en leaves out the century: years 1900 to 2099"):
        date_pairs(formats=("short",))
    assert date_pairs(formats=("short",), first_year=2000, num_pairs=5).train
    for first, last in [(0, 5), (2000, 2000), (2001, 2000), (9990, 10_000)]:
        with pytest.raises(ValueError, match=rf"at least 2 of 1 ... 9999, not {first} to {last}"):
            date_pairs(first_year=first, last_year=last)
    with pytest.raises(ValueError, match="between 0 and 1, not 1"):
        date_pairs(held_out_fraction=1.0)
    for sizes in (dict(num_pairs=0), dict(num_held_out_pairs=0), dict(dates_per_line=0)):
        with pytest.raises(ValueError, match="must be at least 1, not 0"):
            date_pairs(**sizes)
    with pytest.raises(ValueError, match="must be at least 1, not 1, 1 and 0 years"):
        date_lists(years=[], dates_per_line=1, num_pairs=1)
    with pytest.raises(ValueError, match=r"in 1 \.\.\. 9999, not 0 to 3"):
        date_lists(years=[0, 3], dates_per_line=1, num_pairs=1)


@pytest.mark.parametrize("target", ["de", "ja", "pt-BR"])
def test_names_are_those_of_the_same_code(target):
    corpus = name_pairs("en", target, kinds=("territories", "scripts"))
    one, other = (babel.Locale.parse(name.replace("-", "_")) for name in ("en", target))
    expected = {
        (getattr(one, kind)[code], getattr(other, kind)[code])
        for kind in ("territories", "scripts")
        for code in set(getattr(one, kind)) & set(getattr(other, kind))
    }
    assert set(corpus.train + corpus.held_out) <= expected
    assert len(corpus.train + corpus.held_out) > 0.95 * len(expected)
    assert 0.08 < len(corpus.held_out) / len(expected) < 0.12
    assert any(source == "Germany" for source, _ in corpus.train + corpus.held_out)


def test_names_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="unknown kind of names 'rivers'; known: territories, languages"):
        name_pairs(kinds=("rivers",))
    with pytest.raises(ValueError, match="unknown locale 'xx'"):
        name_pairs("xx")
    with pytest.raises(ValueError, match="at least 2 different sources, not 0"):
        name_pairs(kinds=())


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)
    for make in (date_pairs, name_pairs):
        with pytest.raises(ImportError, match=r"pip install 'jaxseq\[translation\]'"):
            make()
