import pytest

from jaxseq.analysis import LengthScores
from jaxseq.plotting import draw_length_curves

pytest.importorskip("matplotlib", reason="the plots extra is not installed")


def rows(share, bleu=30.0, count=6):
    return [LengthScores(5 * i, 5 * i + 4, 5 * i + 2.0, 50, share, share / 2, 1.0, bleu) for i in range(count)]


def colors(file):
    """The different colours of a PNG, as whole numbers."""
    from matplotlib.image import imread

    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = (imread(file)[..., :3] * 255).round().astype(int)
    for edge in (image[0], image[-1], image[:, -1]):
        assert (edge == 255).all(), "something is cut off"
    return {tuple(color) for color in image.reshape(-1, 3).tolist()}


@pytest.mark.parametrize("metric", ["exact_match", pytest.param("bleu", marks=pytest.mark.full)])
def test_every_model_has_a_curve_of_its_own_colour(tmp_path, metric):
    both = {"GRU": rows(0.5, 20.0), "Transformer, a rather long name $x$": rows(0.9, 35.0, count=1)}
    drawn = colors(draw_length_curves(both, tmp_path / "a.png", metric=metric, trained_length=20))
    assert {(0x2B, 0x5C, 0x8F), (0xB5, 0x48, 0x3A)} <= drawn
    alone = colors(draw_length_curves({"GRU": both["GRU"]}, tmp_path / "b.png", metric=metric))
    assert (0xB5, 0x48, 0x3A) not in alone


@pytest.mark.full
def test_names_in_any_script_and_equal_ends_raise_no_warning(tmp_path):
    names = ["модель", "日本語", "نموذج", "a", "b", "c", "d", "e"]
    colors(draw_length_curves({name: rows(0.0) for name in names}, tmp_path / "a.png"))
    colors(draw_length_curves({name: rows(1.0) for name in names}, tmp_path / "a.png"))


def test_bins_without_bleu_are_left_out(tmp_path):
    mixed = [*rows(0.5, None, count=2), *rows(0.5, 12.0)[2:]]
    draw_length_curves({"a": mixed, "b": rows(0.5, None)}, tmp_path / "a.png", metric="bleu")
    with pytest.raises(ValueError, match="0 curves of BLEU"):
        draw_length_curves({"a": rows(0.5, None)}, tmp_path / "b.png", metric="bleu")


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown metric 'rouge'; known: exact_match, bleu"):
        draw_length_curves({"a": rows(0.5)}, tmp_path / "a.png", metric="rouge")
    with pytest.raises(ValueError, match="0 curves of exact match"):
        draw_length_curves({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="10 curves"):
        draw_length_curves({str(i): rows(0.5) for i in range(10)}, tmp_path / "a.png")
