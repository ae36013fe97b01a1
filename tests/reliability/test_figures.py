"""Every figure in PNG, SVG and PDF, with the same bytes each time; another suffix is refused before it is drawn."""

import inspect
from pathlib import Path
from types import SimpleNamespace as Made

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `plots`)")

from jaxseq import plotting
from jaxseq.analysis import compare_to_base
from jaxseq.plotting.style import METADATA

TOKENS = ["the", "$x$", "学", "⟨end⟩"]
WEIGHTS = np.full((4, 4), 0.25)
GREY = np.full((8, 8, 3), 128, np.uint8)
NODES = [
    Made(parent=-1, depth=0, token=0, probability=0.6, log_probability=-0.5, status="live", rank=None),
    Made(parent=0, depth=1, token=1, probability=0.5, log_probability=-1.2, status="finished", rank=0),
    Made(parent=0, depth=1, token=2, probability=0.2, log_probability=-2.1, status="pruned", rank=None),
]
BOX = {"boxes": np.array([[1.0, 1, 6, 6]]), "classes": np.array([0])}
OBJECTS, FOUND = Made(**BOX, ignored=np.array([False])), Made(**BOX, scores=np.array([0.9]))
POINTS = [Made(mean_length=n, exact_match=0.5, low=0.4, high=0.6, bleu=30.0, count=9) for n in (5.0, 9.0)]
PRECISION = Made(name="cat", ap=0.5, precision=np.array([1.0, 0.5]), recall=np.array([0.5, 1.0]), objects=2)
RECALL = Made(numbers=(1, 10), ious=(0.5, 0.9), recall=np.array([[0.2, 0.1], [0.6, 0.5]]), mean_number=8.0)
ROWS = [{"tokens": n, "loss": 1.0 / n, "learning_rate": 0.1, "gradient_norm": 1.0} for n in (1, 2, 3)]
CURVES = {"a": plotting.Curve([1, 2], [1.0, 2.0], low=[0.5, 1.0], high=[2.0, 3.0])}
GRID = plotting.GridTable("a", "b", ("1", "$x$"), ("2",), np.array([[1.0], [2.0]]), np.array([[np.nan], [0.1]]), (0, 0))
PANEL = plotting.RunPanel("Loss", {"a": plotting.RunCurve([1.0, 2.0], [3.0, 2.0])}, "tokens seen", "nats", noisy=True)

DRAWINGS = {
    "draw_alignment": lambda file: plotting.draw_alignment(WEIGHTS, TOKENS, TOKENS, file, title="$a$"),
    "draw_alignments": lambda file: plotting.draw_alignments([plotting.Alignment(WEIGHTS, TOKENS, TOKENS)] * 2, file),
    "draw_attention_maps": lambda file: plotting.draw_attention_maps(GREY, TOKENS[:2], np.ones((2, 2, 2)), file),
    "draw_comparisons": lambda file: plotting.draw_comparisons({"m": compare_to_base({"base": {0: 1.0}})}, file),
    "draw_curves": lambda file: plotting.draw_curves([plotting.CurvePanel("$p$", CURVES, "x", "y", log_x=True)], file),
    "draw_detections": lambda file: plotting.draw_detections([GREY], [OBJECTS], [FOUND], ["cat"], file),
    "draw_grids": lambda file: plotting.draw_grids({"m": GRID}, file, title="$t$"),
    "draw_heads": lambda file: plotting.draw_heads(WEIGHTS[None], TOKENS, TOKENS, file),
    "draw_heat_maps": lambda file: plotting.draw_heat_maps([plotting.HeatMap("m", WEIGHTS, "x", "y")], file),
    "draw_length_curves": lambda file: plotting.draw_length_curves({"a": POINTS}, file, trained_length=7),
    "draw_precision_recall": lambda file: plotting.draw_precision_recall([PRECISION], file, mean=0.5),
    "draw_proposal_recall": lambda file: plotting.draw_proposal_recall({"a": RECALL}, file),
    "draw_run_curves": lambda file: plotting.draw_run_curves([PANEL], file),
    "draw_search_tree": lambda file: plotting.draw_search_tree(NODES, file, TOKENS.__getitem__),
    "draw_training_curves": lambda file: draw_loss(file),
}
BEGINNINGS = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF"}
FULL = pytest.mark.full
CHEAP = ("draw_search_tree", "draw_attention_maps")


def draw_loss(file: Path) -> Path:
    """The curves of a run write several files."""
    made = plotting.draw_training_curves(ROWS, file.parent, suffix=file.suffix)["Loss"]
    return made.rename(file)


def test_every_function_that_draws_is_here():
    functions = {name for name in plotting.__all__ if name.startswith("draw_")}
    assert functions == {*DRAWINGS} and {*METADATA} == {*BEGINNINGS}
    for name in functions:
        assert {"file", "folder"} & {*inspect.signature(getattr(plotting, name)).parameters}, name


@pytest.mark.parametrize("kind", METADATA)
@pytest.mark.parametrize("name", [name if name in CHEAP else pytest.param(name, marks=FULL) for name in DRAWINGS])
def test_a_figure_is_written_in_every_format_with_the_same_bytes(tmp_path, name, kind):
    first, second = (DRAWINGS[name](tmp_path / f"{number}.{kind}").read_bytes() for number in (1, 2))
    assert first == second and first.startswith(BEGINNINGS[kind])
    for said in (b"CreationDate", b"Producer", b"<dc:date>", b"Software", b"matplotlib.org"):
        assert said not in first, said


@pytest.mark.parametrize("file", ["a.jpg", "a", "a.PNG.gz"])
@pytest.mark.parametrize("name", DRAWINGS)
def test_another_suffix_is_refused_before_anything_is_drawn(tmp_path, monkeypatch, name, file):
    monkeypatch.setattr(plotting.style, "require_matplotlib", lambda: pytest.fail("a figure is drawn"))
    with pytest.raises(ValueError, match=r"is not a figure's file: known are \.png, \.svg, \.pdf"):
        DRAWINGS[name](tmp_path / file)
    assert not [*tmp_path.iterdir()]
