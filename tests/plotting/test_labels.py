import sys

import pytest

from jaxseq.plotting import missing_characters, text_label, token_labels

UNKNOWN = "\U00013000"  # an Egyptian hieroglyph: no ordinary font has it


@pytest.fixture(autouse=True)
def only_the_fonts_of_matplotlib(monkeypatch):
    """The fonts that come with matplotlib, so that the machine's own change nothing."""
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "mpl-data" in font.fname])


@pytest.fixture
def tiny_font(tmp_path):
    """A font of two characters and a mark, 日, 本 and U+3099, known to matplotlib during the test."""
    builder = pytest.importorskip("fontTools.fontBuilder", reason="comes with matplotlib")
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager

    pen = TTGlyphPen(None)
    for number, point in enumerate([(100, 0), (100, 700), (800, 700), (800, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    names = [".notdef", "sun", "book", "voiced"]
    font = builder.FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord("日"): "sun", ord("本"): "book", 0x3099: "voiced"})
    font.setupGlyf({name: pen.glyph() for name in names})
    font.setupHorizontalMetrics({name: (900, 100) for name in names})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Tiny Test", "styleName": "Regular"})
    font.setupOS2(usWeightClass=400)
    font.setupPost()
    font.save(tmp_path / "tiny.ttf")
    fontManager.addfont(tmp_path / "tiny.ttf")
    return "Tiny Test"


@pytest.mark.parametrize(
    ("token", "label"),
    [
        ("word", "word"),
        ("$x^2$", "$x^2$"),
        ("a b", "a␣b"),
        (" ", "␣"),
        ("\n", "⏎"),
        ("\t", "⇥"),
        ("\x07", "\\x07"),
        ("\x7f", "\\x7f"),
        ("", "∅"),
        ("e\u0301", "e\u0301"),
        ("\u0301x", "◌\u0301x"),
        ("\u200b", "U+200B"),
        ("a\u00a0b", "a U+00A0 b"),
        ("a\u202eb", "a U+202E b"),
        ("\udc80", "U+DC80"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\u200c", "U+200C"),
        ("日本", "U+65E5 U+672C"),
        ("a日b", "a U+65E5 b"),
        ("日\u0301", "U+65E5 ◌\u0301"),
        ("x" * 40, "x" * 23 + "…"),
        ("日本日本日", "U+65E5 U+672C U+65E5 …"),
    ],
)
def test_every_token_has_a_label_that_can_be_read(token, label):
    assert token_labels([token]).texts == (label,)


def test_what_no_font_has_is_told():
    assert missing_characters(["日本", "abc", "привет", f"a{UNKNOWN}", "\x07 \n"]) == ("日", "本", UNKNOWN)
    assert missing_characters(["Ελλάς", "שלום", "مرحبا"]) == ()


def test_dejavu_is_first_and_a_font_is_added_only_for_what_is_left(tiny_font):
    assert token_labels(["abc"]).families == ("DejaVu Sans",)
    made = token_labels(["abc", "日本", "語"])
    assert made.families == ("DejaVu Sans", tiny_font)
    assert made.texts == ("abc", "日本", "U+8A9E")
    assert made.missing == ("語",)


def test_a_mark_is_drawn_only_from_the_font_of_its_base(tiny_font):
    assert token_labels(["日\u3099", "日\u0301", "a\u3099"]).texts == ("日\u3099", "日 U+0301", "a U+3099")


def test_a_sentence_keeps_its_spaces():
    assert text_label("one  two\n日").texts == ("one two U+65E5",)


def test_fonts_that_claim_what_they_do_not_draw_are_not_taken():
    families = token_labels([chr(code) for code in range(0x20, 0x3000)]).families
    assert not any(name.startswith(("cm", "Last Resort", "STIXSize", "STIXNon")) for name in families)


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib: pip install 'jaxseq\[plots\]'"):
        token_labels(["a"])
