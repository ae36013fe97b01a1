"""Compare run folders of any experiments, finished or not: the settings that differ, curves, and last and best values.

Nothing of a folder is executed, locked or written, so that runs that are still training and runs of somebody else may
be read.
"""

import itertools
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxseq import plotting, training
from jaxseq.terminal import printable, shorten
from jaxseq.training.settings import flatten

IGNORED = ("run",)
"""Fields that differ between any two runs."""

LOWER = ("loss", "bits", "perplexity", "error", "nats")
HIGHER = ("exact", "match", "bleu", "chrf", "cider", "rouge", "accuracy", "ap", "recall", "precision", "f1", "iou")
"""Words in the names of metrics of which the lowest, or the highest, value is the best."""

NOTHING = "–"


class ComparedRun(NamedTuple):
    """What a comparison reads of a run folder."""

    folder: Path
    experiment: str
    settings: dict[str, Any]
    """The config with dotted names."""
    rows: list[dict[str, Any]]
    """The rows of ``metrics.jsonl``."""
    results: dict[str, Any]
    """``results.json``, empty for a run that is not finished."""
    parameters: int | None


class MetricSummary(NamedTuple):
    """The last value of a metric, and the best one with its step; the best is None if no order of values is known."""

    last: float
    best: float | None
    best_step: int | None


def read_compared_run(folder: Path) -> ComparedRun:
    """Read a run folder; files that the run has not written yet are empty.

    Raises:
        RunFolderError: not a run folder, or files that differ from what the run wrote.
    """
    saved = training.read_run(folder)
    environment, results = (saved.files.read(name) for name in ("environment.json", "results.json"))
    table = saved.files.read("parameters.json")
    sizes = [row.get("size") for row in table if isinstance(row, dict)] if isinstance(table, list) else []
    return ComparedRun(
        folder,
        _experiment(environment.get("command") if isinstance(environment, dict) else None),
        flatten(saved.config),
        training.read_json_lines(saved.path / "metrics.jsonl"),
        results if isinstance(results, dict) else {},
        sum(size for size in sizes if type(size) is int) if sizes else None,
    )


def read_compared_runs(folders: Sequence[Path]) -> tuple[list[ComparedRun], dict[Path, str]]:
    """The runs, and why the other folders are skipped.

    Raises:
        RunFolderError: no folder is a run.
    """
    runs, skipped = list[ComparedRun](), dict[Path, str]()
    for folder in dict.fromkeys(folders):
        try:
            runs.append(read_compared_run(folder))
        except (training.RunFolderError, OSError, ValueError) as error:
            skipped[folder] = shorten(str(error).split("\n")[0], 300)
    if not runs:
        raise training.RunFolderError("no run folder to compare:\n  " + "\n  ".join(skipped.values()))
    return runs, skipped


def _experiment(command: Any) -> str:
    """The experiment's name in a run's command: ``language_model`` of ``python experiments/language_model.py ...``."""
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        words = []
    name = Path(words[1]).stem if len(words) > 1 else "unknown"
    if name == "ablation":  # which executes the runs of another experiment
        named = [value for option, value in itertools.pairwise(words) if option == "--experiment"]
        name = Path(named[0]).stem if named else "language_model"
    return printable(name.replace("-", "_"))


def differing_settings(runs: Sequence[ComparedRun]) -> list[str]:
    """The names of the settings that differ between runs of one experiment; ``experiment`` if there are several.

    A field that is one of several dataclasses is named by itself (``model``), and its fields are compared between the
    runs that chose the same dataclass.
    """
    names = ["experiment"] if len({run.experiment for run in runs}) > 1 else []
    for path in dict.fromkeys(path for run in runs for path in run.settings):
        values: dict[Any, set[str]] = {}
        for run in runs:
            parents = path.split(".")[:-1]
            heads = [".".join([*parents[:depth], "kind"]) for depth in range(1, len(parents) + (path[-5:] != ".kind"))]
            chosen = (run.experiment, *(run.settings.get(head) for head in heads))
            values.setdefault(chosen, set()).add(_text(run.settings.get(path, NOTHING)))
        if path not in IGNORED and any(len(each) > 1 for each in values.values()):
            names.append(path.removesuffix(".kind"))
    return names


def setting(run: ComparedRun, name: str) -> str:
    """The text of a run's setting; a dash if its config has no such field."""
    if name == "experiment" and name not in run.settings:
        return run.experiment
    return _text(run.settings.get(name, run.settings.get(f"{name}.kind", NOTHING)))


def run_labels(runs: Sequence[ComparedRun], names: Sequence[str]) -> list[str]:
    """A label for each run: the settings that differ; with the folder's name if that is not enough."""
    labels = [
        " ".join(f"{name}={text}" for name in names if (text := setting(run, name)) != NOTHING) or run.folder.name
        for run in runs
    ]
    for which in (lambda run: run.folder.name, lambda run: str(run.folder)):
        labels = [
            f"{label} ({which(run)})" if labels.count(label) > 1 else label
            for run, label in zip(runs, labels, strict=True)
        ]
    return labels


def state(run: ComparedRun) -> str:
    """``finished``, or the step that an unfinished run has logged last."""
    if run.results:
        return "finished"
    steps = run.settings.get("train.steps")
    of = f" of {steps:,}" if type(steps) is int else ""
    return f"step {run.rows[-1]['step']:,}{of}" if run.rows else "no step yet"


def metric_names(runs: Sequence[ComparedRun]) -> list[str]:
    """``loss``, and the metrics of the evaluations, that any run has values of."""
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row if _number(row[name]) is not None)
    return [name for name in names if name == "loss"] + [name for name in names if name.startswith("evaluation/")]


def summarize(run: ComparedRun, name: str) -> MetricSummary | None:
    """The last and the best value of a metric of ``metrics.jsonl``; None if the run has none."""
    pairs = [(number, row["step"]) for row in run.rows if (number := _number(row.get(name))) is not None]
    if not pairs:
        return None
    order = best_is(name)
    best = {"lower": min, "higher": max}[order](pairs, key=lambda pair: pair[0]) if order else (None, None)
    return MetricSummary(pairs[-1][0], *best)


def best_is(name: str) -> str:
    """``"lower"`` or ``"higher"`` by the name of a metric; empty if that tells nothing."""
    words = name.rpartition("/")[2].lower().replace("-", "_").split("_")
    found = [order for order, known in (("lower", LOWER), ("higher", HIGHER)) if _any_starts(words, known)]
    return found[0] if len(found) == 1 else ""


def _any_starts(words: Sequence[str], known: Sequence[str]) -> bool:
    return any(word.rstrip("0123456789") == start or word == start for word in words for start in known)


def tokens_per_second(run: ComparedRun) -> float | None:
    """The median over the log lines; the first one, which compiles, counts only if it is alone."""
    rates = [rate for row in run.rows if (rate := _number(row.get("tokens_per_second"))) is not None]
    return statistics.median(rates[1:] or rates) if rates else None


def compared_results(runs: Sequence[ComparedRun]) -> list[str]:
    """The names of the numbers in ``results.json`` that differ between runs, or that a single run has."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.results.items():
            if name not in ("parameters", "steps") and (number := _number(value)) is not None:
                found.setdefault(name, []).append(number)
    return [name for name, numbers in found.items() if len({*numbers}) > 1 or len(numbers) == 1]


def curve_panels(runs: Sequence[ComparedRun], labels: Sequence[str]) -> list[plotting.RunPanel]:
    """A panel for each metric; against tokens, or against steps if a run has logged no tokens."""
    rows = [row for run in runs for row in run.rows]
    x = "tokens" if all(_number(row.get("tokens")) is not None for row in rows) else "step"
    panels = []
    for name in metric_names(runs):
        curves = {}
        for run, label in zip(runs, labels, strict=True):
            pairs = [(float(row[x]), y) for row in run.rows if (y := _number(row.get(name))) is not None]
            if pairs:
                curves[label] = plotting.RunCurve([x for x, _ in pairs], [y for _, y in pairs])
        words = printable(name.rpartition("/")[2].replace("_", " "))
        held_out = name.startswith("evaluation/")
        unit = "nats per token" if words == "loss" else words
        title = f"Held-out {words}" if held_out else "Training loss"
        panels.append(plotting.RunPanel(title, curves, "tokens seen" if x == "tokens" else x, unit, not held_out))
    return panels


def tables(runs: Sequence[ComparedRun], names: Sequence[str]) -> list[training.PageTable]:
    """The tables of a comparison, each with a row a run: settings and speed, last and best values, results."""
    heads = [_name(run) for run in runs]
    known = {
        "state": [state(run) for run in runs],
        "steps": [_count(run.rows[-1]["step"] if run.rows else None) for run in runs],
        "parameters": [_count(run.parameters) for run in runs],
        "tokens/s": [_count(rate if rate is None else round(rate)) for rate in map(tokens_per_second, runs)],
    }
    columns = {name: [setting(run, name) for run in runs] for name in names} | known
    made = [_table("Runs", heads, columns, "tokens/s: the median over the log lines")]
    found: dict[str, list[str]] = {}
    for name in metric_names(runs):
        order = {"lower": "lowest", "higher": "highest", "": ""}[best_is(name)]
        found[f"{name}: last{order and f' ({order} at step)'}"] = [_last(summarize(run, name)) for run in runs]
    if found:
        made.append(_table("Metrics while training", heads, found))
    results = compared_results(runs)
    if results:
        columns = {name: [_value(_number(run.results.get(name))) for run in runs] for name in results}
        made.append(_table("Results", heads, columns, "the numbers of results.json that differ"))
    return made


def as_json(runs: Sequence[ComparedRun], names: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """The runs and the fields that differ, for ``comparison.json``."""
    rows = []
    for run, label in zip(runs, labels, strict=True):
        metrics = {name: made for name in metric_names(runs) if (made := summarize(run, name))}
        settings = {name: run.settings.get(name, run.settings.get(f"{name}.kind")) for name in names}
        row = {"folder": run.folder, "label": label, "experiment": run.experiment, "finished": bool(run.results)}
        row |= {"state": state(run), "steps": run.rows[-1]["step"] if run.rows else None, "settings": settings}
        row |= {"parameters": run.parameters, "tokens_per_second": tokens_per_second(run), "results": run.results}
        rows.append(row | {"metrics": {name: made._asdict() for name, made in metrics.items()}})
    return {"fields": names, "runs": rows}


def markdown(table: training.PageTable) -> str:
    """A table as markdown with its title and note."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [f"## {table.title}", "", line(table.columns), "|:--" + "|--:" * (len(table.columns) - 1) + "|"]
    return "\n".join([*lines, *map(line, table.rows), *(["", f"{table.note}."] if table.note else []), ""])


def _table(
    title: str, heads: Sequence[str], columns: Mapping[str, Sequence[str]], note: str = ""
) -> training.PageTable:
    rows = [(head, *cells) for head, *cells in zip(heads, *columns.values(), strict=True)]
    return training.PageTable(title, ("run", *map(printable, columns)), tuple(rows), note)


def _name(run: ComparedRun) -> str:
    return printable(str(run.folder))


def _last(found: MetricSummary | None) -> str:
    if found is None or found.best is None:
        return NOTHING if found is None else _value(found.last)
    return f"{_value(found.last)} ({_value(found.best)} at {found.best_step:,})"


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _value(value: float | None) -> str:
    if value is not None and value.is_integer() and abs(value) < 1e12:
        return f"{value:,.0f}"
    return NOTHING if value is None else f"{value:.5g}"


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return printable(shlex.join(map(str, value))) or "()"
    if isinstance(value, Mapping):
        return "{}"
    return printable(str(value)) or "''"
