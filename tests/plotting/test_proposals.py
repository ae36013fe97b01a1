"""Recall of proposals: a colour for each source, lines for numbers and overlaps."""

from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `plots`)")

from jaxseq.plotting import CYCLE, draw_proposal_recall, proposals


class Table(NamedTuple):
    numbers: tuple
    ious: tuple
    recall: np.ndarray
    mean_number: float = 30.0


ONE = Table((1, 10, 100), (0.5, 0.7, 0.9), np.array([[0.2, 0.1, 0], [0.6, 0.5, 0.1], [0.9, 0.6, 0.2]]))


def test_each_source_has_its_colour_and_lines_for_numbers_and_overlaps(tmp_path, monkeypatch):
    make, figures = proposals.make_figure, []
    monkeypatch.setattr(proposals, "make_figure", lambda *sizes: figures.append(make(*sizes)) or figures[-1])
    tables = {"$search": ONE, "a name that is much too long to stand in a legend": ONE._replace(mean_number=1234.0)}
    file = draw_proposal_recall(tables, tmp_path / "a.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    left, right = figures[0].axes
    assert [line.get_color() for line in left.lines] == [CYCLE[0]] * 3 + [CYCLE[1]] * 3
    assert [line.get_ydata().tolist() for line in left.lines[:3]] == ONE.recall.T.tolist()
    assert [line.get_ydata().tolist() for line in right.lines[:3]] == ONE.recall[::-1].tolist()
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "100 proposals",
        "10 proposals",
        "1 proposal",
    ]
    named = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert named == ["$search (30 an image)", "a name that is much too long to stand i… (1,234 an image)"]
    draw_proposal_recall({"one": Table((5,), (0.5,), np.ones((1, 1)))}, tmp_path / "b.png")


def test_what_cannot_be_drawn_is_refused(tmp_path):
    for tables, message in (
        ({}, "0 sources of proposals: between 1 and 9"),
        ({str(index): ONE for index in range(10)}, "10 sources of proposals"),
        ({"a": ONE, "b": ONE._replace(numbers=(1, 2, 3))}, "'b' has other numbers or overlaps than the first source"),
        ({"a": ONE._replace(recall=np.ones((2, 3)))}, r"'a': recall is \(2, 3\), not \(3, 3\)"),
        ({"a": ONE._replace(recall=2 * ONE.recall)}, "'a': recall in 0 to 1.8, not 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_proposal_recall(tables, tmp_path / "none.png")
