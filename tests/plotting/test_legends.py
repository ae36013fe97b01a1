"""Nothing in a figure is without a name: each colour is in a legend, of a label, or alone under its axis's title."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `plots`)")

from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from jaxseq import plotting
from jaxseq.plotting.style import EDGE, INK
from tests.reliability.test_figures import DRAWINGS, NODES, ROWS

PIXELS = ("draw_attention_maps", "draw_detections")
"""Figures whose images are photographs, which have no colour scale."""

WITHOUT_NAMES = {EDGE, INK, "#ffffff"}
"""Frames, and the outlines that set boxes off from any image."""


@pytest.fixture
def saved(monkeypatch):
    """The figures that are written."""
    figures = []
    write = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (figures.append(self), write(self, *a, **o))[1])
    return figures


def named_colors(figure):
    """The colours of all legends and of all texts."""
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    handles = [handle for legend in legends for handle in legend.legend_handles]
    texts = [text for axes in figure.axes for text in axes.texts]
    return {color_of(handle) for handle in handles} | {to_hex(text.get_color()) for text in texts if text.get_text()}


def color_of(artist):
    """The colour of a line, a band or a box."""
    if isinstance(artist, Patch):
        return to_hex(artist.get_facecolor() if artist.get_fill() else artist.get_edgecolor())
    if isinstance(artist, PolyCollection):
        return to_hex(artist.get_facecolor()[0])
    return to_hex(artist.get_color())


def check_names(figure, name=""):
    """Every line, band and box has a named colour, or is alone and its axis is titled; every image has a scale."""
    known = named_colors(figure) | WITHOUT_NAMES
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            continue
        artists = [*axes.get_lines(), *axes.collections, *axes.patches]
        alone = len(artists) == 1 and axes.get_ylabel()
        assert alone or {color_of(artist) for artist in artists} <= known, (name, axes.get_title(loc="left"))
        assert not axes.axison or name in PIXELS or name == "draw_comparisons" or (
            axes.get_xlabel() and (axes.get_ylabel() or not axes.get_subplotspec().is_first_col())
        ), (name, "has an axis without a title")  # fmt: skip
        if any(isinstance(artist, AxesImage) for artist in axes.images) and name not in PIXELS:
            scales = [each for each in figure.axes if each.get_label() == "<colorbar>"]
            assert scales and all(scale.get_ylabel() for scale in scales), (name, "has no scale of colours")


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_line_band_dot_and_colour_is_named(name, tmp_path, saved):
    if name == "draw_heat_maps":
        plotting.draw_heat_maps(
            [plotting.HeatMap("m", [[1, np.nan], [1e-30, 0]], "x", "y", unit="|g|")], tmp_path / "a.png"
        )
    else:
        DRAWINGS[name](tmp_path / "a.png")
    assert saved
    for figure in saved:
        check_names(figure, name)


def test_the_pale_curve_of_logged_values_and_its_mean_are_in_the_legend(tmp_path, saved):
    rows = [{"tokens": n, "loss": 1.0 / (n + 1), "gradient_norm": 1.0 + n % 2} for n in range(100)]
    plotting.draw_training_curves(rows, tmp_path, clip_norm=2.0)
    for figure in saved:
        check_names(figure)
        said = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert said[0].endswith("as logged") and "running mean of 3 log lines" in said[1]


def test_what_a_figure_shows_is_written_into_its_file(tmp_path):
    file = plotting.draw_training_curves([*ROWS, {"tokens": 3, "evaluation/loss": 0.25}], tmp_path)["Loss"]
    found = plotting.read_png(file)
    assert (found.width, found.height) == (960, 570)
    assert found.description == "Loss, nats per token against tokens seen: training 1 to 0.3333."
    words = ["日本\n語", "\udc80\x07"]
    tree = plotting.draw_search_tree(NODES, tmp_path / "tree.png", lambda token: words[token % 2])
    assert plotting.read_png(tree).description == (
        "The tree of a beam search with 3 nodes; results: #1 日本 語 \ufffd\ufffd (log-probability -1.20)."
    )
    weights = np.eye(3)
    drawn = plotting.draw_alignment(weights, list("abc"), list("xyz"), tmp_path / "a.png", title="t")
    assert "t: xyz from abc." in plotting.read_png(drawn).description


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, b"GIF89a"])
def test_a_file_without_a_description_has_none(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert plotting.read_png(tmp_path / "a.png") == (0, 0, "")
