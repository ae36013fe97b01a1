import sys

import pytest

from jaxseq.plotting import CYCLE, make_figure, prepare_axes, save_figure, sequential_colormap


def test_a_figure_is_white_and_names_no_software(tmp_path):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    from matplotlib.image import imread

    figure = make_figure(2, 1.5)
    prepare_axes(figure.subplots(), "costs $1 to $2", x_label="$x$", y_label="y_1")
    file = save_figure(figure, tmp_path / "a.png")
    assert b"Software" not in file.read_bytes()
    image = imread(file)
    assert image.shape[:2] == (225, 300)
    assert all((edge[:, :3] == 1).all() for edge in (image[0], image[-1], image[:, 0], image[:, -1]))


def test_colours_are_distinct_and_the_colour_map_darkens():
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    assert len(set(CYCLE)) == len(CYCLE)
    shades = sequential_colormap()([0.0, 0.25, 0.5, 0.75, 1.0])[:, :3].sum(-1)
    assert shades[0] == 3 and (shades[1:] < shades[:-1]).all()


@pytest.mark.parametrize("call", [lambda: make_figure(2, 2), sequential_colormap])
def test_without_matplotlib_the_error_names_the_extra(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib: pip install 'jaxseq\[plots\]'") as caught:
        call()
    assert caught.value.name == "matplotlib"
