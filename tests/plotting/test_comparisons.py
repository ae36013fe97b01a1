import math

import pytest

from jaxseq.analysis import compare_to_base
from jaxseq.plotting import draw_comparisons


@pytest.mark.full
def test_a_difference_that_excludes_0_is_red_and_no_other(tmp_path):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    from matplotlib.image import imread

    def colors(values):
        made = {"$score$": compare_to_base({"base": {0: 1.0, 1: 2.0, 2: 3.0}, "модель " + "long/" * 30: values})}
        image = imread(draw_comparisons(made, tmp_path / "a.png", title="Runs $x$"))
        return {tuple(color) for color in (image[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}

    red, blue = (0xB5, 0x48, 0x3A), (0x2B, 0x5C, 0x8F)
    assert {red, blue} <= colors({0: 2.0, 1: 3.01, 2: 4.0})
    for values in ({0: 2.0, 1: 1.0, 2: 3.0}, {0: math.inf, 1: 9.0, 7: 9.0}):
        found = colors(values)
        assert blue in found and red not in found


def test_a_figure_of_other_variants_in_each_metric_is_refused(tmp_path):
    a, b = compare_to_base({"base": {0: 1.0}}), compare_to_base({"other": {0: 1.0}})
    with pytest.raises(ValueError, match="the same variants"):
        draw_comparisons({"a": a, "b": b}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="the same variants"):
        draw_comparisons({}, tmp_path / "a.png")


def test_a_long_name_is_cut_and_the_base_stays_marked(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    from matplotlib.figure import Figure

    saved, write = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (saved.append(self), write(self, *a, **o))[1])
    long = "field=" + "x" * 90
    draw_comparisons({"m": compare_to_base({f"{long} (base)": {0: 1.0}, long: {0: 2.0}})}, tmp_path / "a.png")
    base, other = (label.get_text() for label in saved[0].axes[0].get_yticklabels())
    assert base.endswith("x… (base)") and other.endswith("x…") and len(other) == 48
