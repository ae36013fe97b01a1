"""Curves of precision and recall: one for each class with objects, ending at its last correct detection."""

from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `plots`)")

from jaxseq.plotting import draw_precision_recall, precision_recall


class Curve(NamedTuple):
    name: str
    ap: float | None
    precision: np.ndarray
    recall: np.ndarray
    objects: int = 4


@pytest.fixture
def figures(monkeypatch):
    """The figures that are made."""
    make, made = precision_recall.make_figure, []

    def kept(*sizes, **options):
        made.append(make(*sizes, **options))
        return made[-1]

    monkeypatch.setattr(precision_recall, "make_figure", kept)
    return made


ONE = Curve("$cat", 0.5, np.array([1, 1 / 2, 2 / 3, 1 / 2]), np.array([1 / 4, 1 / 4, 1 / 2, 1 / 2]))
NONE = Curve("dog", None, np.zeros(1), np.full(1, np.nan), 0)
NOTHING = Curve("a name that is much too long for a legend", 0.0, np.zeros(0), np.zeros(0))


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_curve_is_the_greatest_precision_at_its_recall_or_a_higher_one(tmp_path, figures):
    file = draw_precision_recall([NONE, NOTHING, ONE], tmp_path / "a.png", mean=0.25, title="$AP")
    assert file.read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    assert axes.get_title(loc="left") == "$AP: mean AP 0.250"
    curve = axes.lines[0]
    np.testing.assert_allclose(curve.get_xdata(), [0, 1 / 4, 1 / 4, 1 / 2])
    np.testing.assert_allclose(curve.get_ydata(), [1, 1, 2 / 3, 2 / 3])
    assert legend(figures[0]) == ["0.50  $cat (4)", "0.00  a name that is much too… (4)"]
    assert [text.get_text() for text in figures[0].texts] == ["without objects: dog"]


def test_many_classes_have_different_lines_or_the_worst_are_named(tmp_path, figures):
    curves = [ONE._replace(name=f"class {index}", ap=index / 40) for index in range(40)]
    draw_precision_recall(curves[:27], tmp_path / "a.png", mean=0.5)
    lines = figures[0].legends[0].get_lines()
    assert len({(line.get_color(), line._dash_pattern[1] and tuple(line._dash_pattern[1])) for line in lines}) == 27
    draw_precision_recall(curves, tmp_path / "b.png", mean=0.5)
    named = legend(figures[1])
    assert named[0] == "14 better classes" and named[-1] == "0.00  class 0 (4)" and len(named) == 27


def test_what_cannot_be_drawn_is_refused(tmp_path):
    for curves, message in (
        ([], "none of 0 classes has objects"),
        ([NONE], "none of 1 classes has objects"),
        ([ONE._replace(recall=np.zeros(3))], r"class '\$cat': precision is \(4,\), recall \(3,\)"),
        ([ONE._replace(precision=2 * ONE.precision)], "precision in 1 to 2, not 0 to 1"),
        ([ONE._replace(recall=ONE.recall[::-1])], "recall falls"),
        ([ONE._replace(recall=np.full(4, np.nan))], "recall in nan to nan"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_precision_recall(curves, tmp_path / "none.png", mean=0.5)
