"""Attention maps: a panel for each word, any size of map, and clear errors."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `plots`)")

from jaxseq.plotting import attention_maps, draw_attention_maps
from jaxseq.plotting.attention_maps import _outer, _padded

IMAGE = np.zeros((6, 8, 3), np.uint8)


def test_the_file_has_a_panel_for_each_word(tmp_path):
    from matplotlib import image

    def width(words: int) -> int:
        maps = np.ones((words, 2, 3)) / 6
        file = draw_attention_maps(IMAGE, ["word"] * words, maps, tmp_path / f"{words}.png", notes=["reference: $a 字"])
        return image.imread(file).shape[1]

    assert width(3) < width(5)
    alone = draw_attention_maps(IMAGE, ["a", "$b"], None, tmp_path / "alone.png")
    assert alone.read_bytes().startswith(b"\x89PNG")


def test_a_title_is_no_wider_than_its_panel(tmp_path, monkeypatch):
    made, figures = attention_maps.make_figure, []

    def kept(*sizes, **options):
        figure = made(*sizes, **options)
        figures.append(figure)
        return figure

    monkeypatch.setattr(attention_maps, "make_figure", kept)
    draw_attention_maps(IMAGE, ["black-and-white", "m" * 60], np.ones((2, 2, 2)), tmp_path / "long.png")
    shown = [axes.get_title(loc="left") for axes in figures[0].axes[1:3]]
    assert shown == ["black-and-white", "m" * 17 + "…"]


def test_the_cells_of_a_map_part_the_image_evenly():
    table = np.arange(6.0).reshape(2, 3)
    padded, (left, right, bottom, top) = _padded(table), _outer((0.0, 9.0, 4.0, 0.0), table)
    cell = (right - left) / padded.shape[1], (bottom - top) / padded.shape[0]
    assert cell == (3.0, 2.0) and left + cell[0] == 0 and top + cell[1] == 0
    np.testing.assert_array_equal(padded[1:-1, 1:-1], table)


@pytest.mark.parametrize(
    ("image", "weights", "message"),
    [
        (IMAGE[..., :2], np.ones((1, 2, 2)), r"the image is \(6, 8, 2\), not \[Y X 3\]"),
        (IMAGE + 0.5 - 1, np.ones((1, 2, 2)), "pixels lie in -0.5 to -0.5, not 0 to 255"),
        (IMAGE, np.ones((2, 2, 2)), r"weights are \(2, 2, 2\) for 1 words"),
        (IMAGE, np.ones((1, 4)), r"weights are \(1, 4\) for 1 words"),
        (IMAGE, -np.ones((1, 2, 2)), "finite and not negative"),
        (IMAGE, np.full((1, 2, 2), np.nan), "finite and not negative"),
    ],
)
def test_what_cannot_be_drawn_is_refused(untyped, tmp_path, image, weights, message):
    with pytest.raises(ValueError, match=message):
        draw_attention_maps(image, ["word"], weights, tmp_path / "none.png")
