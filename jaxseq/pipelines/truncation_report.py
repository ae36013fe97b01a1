"""Tables and figures of the bias of truncated back-propagation and of the losses that it trains to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxseq import analysis
from jaxseq.pipelines.truncation_gradients import BiasRow
from jaxseq.pipelines.truncation_runs import TruncationRun
from jaxseq.plotting import Curve, CurvePanel, draw_curves

MODES = ("zero", "carry", "recompute")
FULL = "full"
"""The name of full back-propagation, one chunk a sequence."""


def loss_estimates(runs: Sequence[TruncationRun]) -> dict[tuple[str, int], analysis.Estimate]:
    """The held-out loss by mode and cut: mean and 95 % interval over seeds."""
    kinds = dict.fromkeys((run.mode, run.cut) for run in runs)
    return {kind: analysis.mean_interval([run.loss for run in runs if (run.mode, run.cut) == kind]) for kind in kinds}


def mean_microseconds(runs: Sequence[TruncationRun]) -> dict[tuple[str, int], float]:
    """Training time per token by mode and cut, the mean over seeds."""
    kinds = dict.fromkeys((run.mode, run.cut) for run in runs)
    times = {kind: [run.microseconds_per_token for run in runs if (run.mode, run.cut) == kind] for kind in kinds}
    return {kind: sum(values) / len(values) for kind, values in times.items()}


def loss_table(runs: Sequence[TruncationRun]) -> str:
    """A markdown table with a row for each mode and cut."""
    lines = [
        "| mode | cut | updates | held-out loss, nats per token | 95 % interval | us per token | recomputed chunks |",
        "|:--|--:|--:|--:|:-:|--:|--:|",
    ]
    times, rows = mean_microseconds(runs), {(run.mode, run.cut): run for run in runs}
    for (mode, cut), loss in sorted(loss_estimates(runs).items(), key=lambda item: (item[0][1], _order(item[0][0]))):
        row = rows[mode, cut]
        interval = "" if loss.low is None else f"{loss.low:.3f} to {loss.high:.3f}"
        lines.append(
            f"| {mode} | {cut} | {row.updates} | {loss.mean:.3f} | {interval} | {times[mode, cut]:.1f} "
            f"| {row.recomputed_chunks} |"
        )
    return "\n".join(lines)


def bias_table(rows: Sequence[BiasRow], parameters: str = "all") -> str:
    """A markdown table of cosine and norm ratio: a row for each mode and moment, a column for each cut."""
    rows = [row for row in rows if row.parameters == parameters]
    cuts = sorted({row.cut for row in rows})
    lines = [
        f"| mode | moment | {' | '.join(f'cut {cut}' for cut in cuts)} |",
        f"|:--|--:|{'--:|' * len(cuts)}",
    ]
    for mode in dict.fromkeys(row.mode for row in rows):
        for moment in dict.fromkeys(row.moment for row in rows):
            found = {row.cut: row for row in rows if (row.mode, row.moment) == (mode, moment)}
            cells = [f"{found[cut].cosine:.3f}, {found[cut].norm_ratio:.3f}" for cut in cuts]
            lines.append(f"| {mode} | {moment:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_truncation_bias(rows: Sequence[BiasRow], file: Path, *, title: str = "") -> Path:
    """Cosine (above) and norm ratio (below) against the cut for each mode, a curve for each moment.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows, panels = [row for row in rows if row.parameters == "all"], []
    names = {"carry": "carry, along a path of updates"}
    for measure, label in (
        ("cosine", "cosine to the full gradient"),
        ("norm_ratio", "norm / norm of the full gradient"),
    ):
        for mode in MODES:
            curves = {}
            for moment in dict.fromkeys(row.moment for row in rows):
                found = [row for row in rows if (row.mode, row.moment) == (mode, moment)]
                y = [getattr(row, measure) for row in found]
                curves[f"{moment:.0%} of training"] = Curve([row.cut for row in found], y)
            cuts = sorted({row.cut for row in rows})
            curves["full back-propagation"] = Curve([cuts[0], cuts[-1]], [1.0, 1.0], dashed=True)
            panels.append(CurvePanel(names.get(mode, mode), curves, "cut, tokens", label, log_x=True))
    return draw_curves(panels, file, title=title, columns=len(MODES))


def draw_truncation_losses(
    runs: Sequence[TruncationRun], file: Path, *, references: Mapping[str, float], title: str = ""
) -> Path:
    """The held-out loss (left, with 95 % intervals over seeds) and the training time per token against the cut.

    ``references`` are known losses, drawn as dashed lines.

    Raises:
        ImportError: matplotlib is not installed.
    """
    losses, times, loss_curves, time_curves = loss_estimates(runs), mean_microseconds(runs), {}, {}
    for mode in MODES:
        kinds = sorted((kind for kind in losses if kind[0] in (mode, FULL)), key=lambda kind: kind[1])
        cuts, found = [cut for _, cut in kinds], [losses[kind] for kind in kinds]
        low, high = ([getattr(e, end) for e in found] for end in ("low", "high"))
        band = (None, None) if None in low + high else (low, high)
        loss_curves[mode] = Curve(cuts, [estimate.mean for estimate in found], False, *band)
        time_curves[mode] = Curve(cuts, [times[kind] for kind in kinds])
    for name, value in references.items():
        loss_curves[name] = Curve([cuts[0], cuts[-1]], [value, value], dashed=True)
    length = f"cut, tokens ({cuts[-1]}: full back-propagation)"
    panels = [
        CurvePanel(
            "held-out loss after equal tokens", loss_curves, length, "nats per token", log_x=True, band="95 % interval"
        ),
        CurvePanel("training time", time_curves, length, "microseconds per token", log_x=True),
    ]
    return draw_curves(panels, file, title=title)


def _order(mode: str) -> int:
    return MODES.index(mode) if mode in MODES else len(MODES)
