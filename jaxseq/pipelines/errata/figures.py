"""The figures of docs/errata.md."""

from pathlib import Path

import jax
import numpy as np

from jaxseq.pipelines.errata import attention, recurrence
from jaxseq.pipelines.errata.search import scored_candidates
from jaxseq.plotting import Curve, CurvePanel, HeatMap, draw_curves, draw_heat_maps


def draw_errata(folder: Path) -> dict[str, Path]:
    """Draw all figures as PNG files in the folder; returns them by caption."""
    with jax.enable_x64(True):
        return {
            "E1, E5: the gradient of soft argmax, and norms of Jacobians against lag": draw_curves(
                [soft_argmax_panel(), bound_panel()], folder / "errata-gradients.png"
            ),
            "E2 to E4: products of Jacobians against lag": draw_curves(
                [product_panel(), four_term_panel()], folder / "errata-jacobians.png"
            ),
            "E7: positional encodings with both bases": draw_curves(
                [encoding_panel()], folder / "errata-positions.png"
            ),
            "E11: attention weights under the commonly written mask and under the causal one": draw_masks(
                folder / "errata-masks.png"
            ),
            "E15, E17: counts of operations and of candidates": draw_curves(
                [cost_panel(), candidate_panel()], folder / "errata-costs.png"
            ),
        }


def product_panel() -> CurvePanel:
    """E2 and E4: relative errors of three forms of the product, medians over networks."""
    errors, lags = recurrence.product_errors(), np.arange(recurrence.MAX_LAG + 1)
    forms = {"slopes and R^k apart": errors.commuted, "one factor too many": errors.one_too_many}
    forms["factors one step early"] = errors.shifted
    curves = {name: Curve(lags, np.median(form, 0)) for name, form in forms.items()}
    return CurvePanel("E2, E4: d h_t / d h_s of Elman networks", curves, "lag t - s", "relative error")


def four_term_panel() -> CurvePanel:
    """E3: relative errors of the product of four-term matrices."""
    names = {"product of four terms": 1.0, "the same, with 2 R": 2.0}
    lags = np.arange(1, recurrence.MAX_LAG + 1)
    curves = {name: _quartiles(lags, recurrence.four_term_errors(scale)[0]) for name, scale in names.items()}
    return CurvePanel("E3: d c_t / d c_s of LSTMs", curves, "lag t - s", "relative error", band="quartiles")


def bound_panel() -> CurvePanel:
    """E5: norms against the bound, for a matrix that grows first and for one that only shrinks."""
    bounds = recurrence.norm_bounds()
    shown = bounds.growing_bound < 1e4
    curves = {
        "triangular, radius 0.8": Curve(bounds.lags, bounds.growing),
        "triangular, radius 0.8 bound": Curve(bounds.lags[shown], bounds.growing_bound[shown], dashed=True),
        "0.8 × orthogonal": Curve(bounds.lags, bounds.orthogonal),
        "0.8 × orthogonal bound": Curve(bounds.lags, bounds.orthogonal_bound, dashed=True),
    }
    return CurvePanel("E5: the largest singular value", curves, "lag t - s", "|d h_t / d h_s|", log_y=True)


def soft_argmax_panel() -> CurvePanel:
    """E1: norms of the gradient and of the error of the common form, against t."""
    sharpness = np.geomspace(0.1, 10, 15)
    found = [attention.soft_argmax_errors(t) for t in sharpness.tolist()]
    norms, errors = (np.stack([row[index] for row in found], axis=1) for index in (0, 1))
    curves = {"gradient": _quartiles(sharpness, norms), "error of t i s (1 - s)": _quartiles(sharpness, errors)}
    title = "E1: soft argmax of 6 numbers"
    return CurvePanel(title, curves, "sharpness t", "norm", log_x=True, log_y=True, band="quartiles")


def encoding_panel() -> CurvePanel:
    """E7: similarity of encodings against distance, for both bases."""
    distances = np.unique(np.geomspace(1, 20_000, 300).astype(int))
    curves = {
        f"base {base}": Curve(distances, attention.encoding_similarities(float(base), distances))
        for base in (1000, 10000)
    }
    title = "E7: encodings of positions 0 and p, 512 features"
    return CurvePanel(title, curves, "position p", "cosine similarity", log_x=True)


def draw_masks(file: Path) -> Path:
    """E11: attention weights side by side; the first position in the bottom row."""
    maps = [
        HeatMap(title, weights, "key position", "query position", log=False, unit="attention weight")
        for title, weights in zip(
            ("scores[t, t:-1] = -inf", "scores[t, t+1:] = -inf"), attention.mask_weights(), strict=True
        )
    ]
    return draw_heat_maps(maps, file, columns=2)


def cost_panel(width: int = 64) -> CurvePanel:
    """E15: FLOPs against length."""
    lengths = 2 ** np.arange(2, 12)
    functions = {
        "attention": attention.attention_flops,
        "attention with projections": attention.projected_attention_flops,
        "recurrence": attention.recurrence_flops,
        "convolution of 3": attention.convolution_flops,
    }
    curves = {name: Curve(lengths, [count(int(n), width) for n in lengths]) for name, count in functions.items()}
    return CurvePanel(f"E15: a layer of width d = {width}", curves, "length n", "FLOPs", log_x=True, log_y=True)


def candidate_panel(num_beams: int = 4) -> CurvePanel:
    """E17: candidates of a step of beam search against the size of the vocabulary."""
    sizes = np.array([8, 32, 128, 512])
    curves = {
        "scored": Curve(sizes, [scored_candidates(num_beams, int(size)) for size in sizes]),
        "k²": Curve(sizes, np.full(sizes.shape, num_beams**2), dashed=True),
    }
    title = f"E17: beam search, k = {num_beams} beams"
    return CurvePanel(title, curves, "vocabulary V", "candidates of a step", log_x=True, log_y=True)


def _quartiles(x: np.ndarray, rows: np.ndarray) -> Curve:
    low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    return Curve(x, middle, low=low, high=high)
