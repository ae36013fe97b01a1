"""Curves and heat maps: one colour a name, logarithmic axes without what they cannot show, one colour scale."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `plots`)")

from jaxseq.plotting import Curve, CurvePanel, HeatMap, curves, draw_curves, draw_heat_maps, heat_maps


@pytest.fixture
def figures(monkeypatch):
    """The figures that are made."""
    made = []
    for module in (curves, heat_maps):
        make = module.make_figure

        def kept(*sizes, make=make, **options):
            made.append(make(*sizes, **options))
            return made[-1]

        monkeypatch.setattr(module, "make_figure", kept)
    return made


def test_a_name_has_one_colour_and_its_reference_the_same(tmp_path, figures):
    x = np.arange(1, 5)
    first = CurvePanel("$a", {"gru": Curve(x, x), "lstm": Curve(x, 2 * x)}, "lag [steps]", "norm", log_y=True)
    second = CurvePanel("b", {"lstm": Curve(x, x), "lstm bound": Curve(x, 3 * x, dashed=True)})
    third = CurvePanel("c", {"lstm": Curve(x, x, low=x - 1, high=x + 1)}, band="quartiles")
    assert draw_curves([first, second, third], tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    one, two, three, empty = figures[0].axes
    assert one.get_title(loc="left") == "$a" and one.get_yscale() == "log" and not empty.axison
    lstm = one.lines[1].get_color()
    assert lstm != one.lines[0].get_color()
    assert {line.get_color() for line in two.lines} | {three.lines[0].get_color()} == {lstm}
    assert two.lines[1].get_linestyle() == "--" and len(three.collections) == 1
    assert [text.get_text() for text in three.get_legend().get_texts()] == ["lstm", "quartiles"]


def test_points_that_an_axis_cannot_show_are_left_out(tmp_path, figures):
    x, y = np.array([0, 1, 2, 3.0]), np.array([1, 0, np.nan, 5])
    for log in (False, True):
        draw_curves([CurvePanel("a", {"a": Curve(x, y)}, log_x=log, log_y=log)], tmp_path / "a.png")
    np.testing.assert_array_equal(figures[0].axes[0].lines[0].get_xdata(), [0, 1, 3])
    np.testing.assert_array_equal(figures[1].axes[0].lines[0].get_xdata(), [3])


def test_heat_maps_share_a_scale_and_show_zeros_as_the_lowest_value(tmp_path, figures):
    values = np.array([[0, 1e-3], [1e-30, np.inf]])
    maps = [HeatMap("$a", values, x_range=(1, 2), unit="norm"), HeatMap("b", [[10.0]], unit="norm")]
    draw_heat_maps(maps, tmp_path / "a.png")
    one, two = (axes.images[0] for axes in figures[0].axes[:2])
    assert one.norm is two.norm and (one.norm.vmin, one.norm.vmax) == (1e-7, 10.0)
    assert one.get_extent() == [0.5, 2.5, -0.5, 1.5]
    shown = one.get_array()
    assert shown[0, 0] == one.norm.vmin and shown.mask[1, 1]
    draw_heat_maps([HeatMap("a", [[-1.0, 2]], log=False)], tmp_path / "b.png")
    assert (figures[1].axes[0].images[0].norm.vmin, figures[1].axes[0].images[0].norm.vmax) == (-1, 2)


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda file: draw_curves([], file), "nothing to draw"),
        (lambda file: draw_curves([CurvePanel("a", {})], file), "'a' has no curve"),
        (lambda file: draw_curves([CurvePanel("a", {"b": Curve([1], [1, 2])})], file), "'b'.*of one length"),
        (lambda file: draw_heat_maps([], file), "nothing to draw"),
        (lambda file: draw_heat_maps([HeatMap("a", [1.0])], file), "'a' of shape"),
        (lambda file: draw_heat_maps([HeatMap("a", [[np.nan]])], file), "finite"),
        (lambda file: draw_heat_maps([HeatMap("a", [[1.0]]), HeatMap("a", [[1.0]], log=False)], file), "agree"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, draw, told):
    with pytest.raises(ValueError, match=told):
        draw(tmp_path / "a.png")
