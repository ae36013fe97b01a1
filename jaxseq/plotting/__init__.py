"""Figures in one style: alignments, comparisons, curves, boxes. Need matplotlib (extra ``plots``) when drawn."""

from jaxseq.plotting.alignments import Alignment, draw_alignment, draw_alignments, draw_heads
from jaxseq.plotting.attention_maps import draw_attention_maps
from jaxseq.plotting.comparisons import ComparisonRow, MeanInterval, draw_comparisons
from jaxseq.plotting.curves import Curve, CurvePanel, draw_curves
from jaxseq.plotting.descriptions import PngText, describe_figure, read_png
from jaxseq.plotting.detections import BoxedDetections, BoxedObjects, BoxOutcomes, draw_detections
from jaxseq.plotting.grids import GridTable, draw_grids
from jaxseq.plotting.heat_maps import HeatMap, draw_heat_maps
from jaxseq.plotting.labels import Labels, missing_characters, text_label, token_labels
from jaxseq.plotting.length_curves import CurvePoint, draw_length_curves
from jaxseq.plotting.precision_recall import PrecisionCurve, draw_precision_recall
from jaxseq.plotting.proposals import RecallTable, draw_proposal_recall
from jaxseq.plotting.run_curves import RunCurve, RunPanel, draw_run_curves
from jaxseq.plotting.search_tree import draw_search_tree
from jaxseq.plotting.style import (
    BLUE,
    CYCLE,
    DASHED,
    EDGE,
    GRID,
    INK,
    MUTED,
    PALE,
    RED,
    SEQUENTIAL,
    SOFT,
    figure_format,
    make_figure,
    prepare_axes,
    require_matplotlib,
    save_figure,
    sequential_colormap,
)
from jaxseq.plotting.training_curves import draw_training_curves

__all__ = [
    "BLUE",
    "CYCLE",
    "DASHED",
    "EDGE",
    "GRID",
    "INK",
    "MUTED",
    "PALE",
    "RED",
    "SEQUENTIAL",
    "SOFT",
    "Alignment",
    "BoxOutcomes",
    "BoxedDetections",
    "BoxedObjects",
    "ComparisonRow",
    "Curve",
    "CurvePanel",
    "CurvePoint",
    "GridTable",
    "HeatMap",
    "Labels",
    "MeanInterval",
    "PngText",
    "PrecisionCurve",
    "RecallTable",
    "RunCurve",
    "RunPanel",
    "describe_figure",
    "draw_alignment",
    "draw_alignments",
    "draw_attention_maps",
    "draw_comparisons",
    "draw_curves",
    "draw_detections",
    "draw_grids",
    "draw_heads",
    "draw_heat_maps",
    "draw_length_curves",
    "draw_precision_recall",
    "draw_proposal_recall",
    "draw_run_curves",
    "draw_search_tree",
    "draw_training_curves",
    "figure_format",
    "make_figure",
    "missing_characters",
    "prepare_axes",
    "read_png",
    "require_matplotlib",
    "save_figure",
    "sequential_colormap",
    "text_label",
    "token_labels",
]
